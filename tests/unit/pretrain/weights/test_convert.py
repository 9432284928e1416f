"""The converter: published weights in and out bit by bit, statistics added, misuse answered by exit code 2."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.commands import refused
from support.foreign_checkpoints import dino, lightning, mae, with_head
from support.small_encoder import small_encoder

from pretrain.models.registry import build_encoder
from pretrain.weights.convert import main
from pretrain.weights.files import load_encoder
from pretrain.weights.pretrained import PretrainedEncoder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A flat published file, and its weights: a count that float32 can't hold, one tensor in half precision."""
    weights = dict(small_encoder().state_dict())
    weights["spectral_adapter.1.num_batches_tracked"] = torch.tensor(2**53 + 1)
    weights["vit_core.norm.weight"] = weights["vit_core.norm.weight"].half()
    path = tmp_path_factory.mktemp("published") / "spec_vit_tiny.pth"
    torch.save(weights, path)
    return path, weights


def _statistics(folder, bands=202):
    folder.mkdir()
    np.save(folder / "mu.npy", np.linspace(800, 3000, bands))
    np.save(folder / "sigma.npy", np.full(bands, 700.0, np.float32))
    return folder


def _equal(one, other):
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name]), name


def test_flat_to_safetensors_to_flat_is_exact(published, tmp_path, capsys):
    path, weights = published
    described, flat = tmp_path / "new" / "encoder.safetensors", tmp_path / "again.pth"
    assert main([str(path), str(described)]) == 0
    out = capsys.readouterr().out
    assert "flat weights, student network, spec_vit_tiny, image 8 px, patch 4 px" in out
    assert "matched              171" in out
    assert "normalization unknown" in out
    assert main([str(described), str(flat), "--to", "flat"]) == 0
    back = torch.load(flat)
    assert type(back) is dict
    _equal(back, weights)


def test_heads_are_left_out_and_files_hold_no_more_than_weights(published, tmp_path, capsys):
    weights = with_head(published[1])
    torch.save(lightning(mae(weights)), tmp_path / "mae.ckpt")
    assert main([str(tmp_path / "mae.ckpt"), str(tmp_path / "flat.pth"), "--to", "flat"]) == 0
    assert "left out" in capsys.readouterr().out
    _equal(torch.load(tmp_path / "flat.pth"), published[1])
    sizes = sum(tensor.nbytes for tensor in published[1].values())
    assert (tmp_path / "flat.pth").stat().st_size < 1.02 * sizes


def test_views_into_larger_tensors_are_written_alone(published, tmp_path):
    whole = torch.randn(1000, 192)
    weights = published[1] | {"vit_core.cls_token": whole[3][None, None]}
    torch.save(weights, tmp_path / "views.pth")
    assert main([str(tmp_path / "views.pth"), str(tmp_path / "flat.pth"), "--to", "flat"]) == 0
    _equal(torch.load(tmp_path / "flat.pth"), weights)
    assert (tmp_path / "flat.pth").stat().st_size < published[0].stat().st_size + 10000


def test_statistics_make_an_encoder_that_encodes(published, tmp_path, capsys):
    dest = tmp_path / "encoder.safetensors"
    statistics = _statistics(tmp_path / "statistics")
    assert main([str(published[0]), str(dest), "--statistics", str(statistics), "--sensor", "enmap"]) == 0
    assert "normalization unknown" not in capsys.readouterr().out
    encoder, description = load_encoder(dest)
    assert description.mu == list(np.linspace(800, 3000, 202))
    assert description.sigma == [700.0] * 202
    tiles = np.random.default_rng(0).integers(0, 6000, (1, 202, 8, 8), dtype=np.int16)
    values = torch.from_numpy((tiles - np.float32(description.mu)[:, None, None]) / np.float32(700))
    with torch.no_grad():
        torch.testing.assert_close(
            PretrainedEncoder(encoder, description).encode(tiles), encoder(values), rtol=1e-4, atol=1e-5
        )


def test_the_options_of_reading_reach_it(published, tmp_path, capsys):
    other = {name: tensor + 1 for name, tensor in published[1].items()}
    torch.save(lightning(dino(published[1], other)), tmp_path / "dino.ckpt")
    for network, weights in (("student", published[1]), ("teacher", other)):
        dest = tmp_path / f"{network}.pth"
        assert main([str(tmp_path / "dino.ckpt"), str(dest), "--to", "flat", "--network", network]) == 0
        _equal(torch.load(dest), weights)
    dest = tmp_path / "larger.safetensors"
    assert main([str(published[0]), str(dest), "--image-size", "16"]) == 0
    assert "vit_core.pos_embed: (1, 5, 192) to (1, 17, 192)" in capsys.readouterr().out
    assert load_encoder(dest)[1].image_size == 16


def test_what_is_there_stays_unless_told(published, tmp_path, capsys):
    dest = tmp_path / "encoder.safetensors"
    dest.write_text("precious")
    assert "choose another name, or add --overwrite" in refused(main, capsys, published[0], dest)
    assert dest.read_text() == "precious"
    assert main([str(published[0]), str(dest), "--overwrite"]) == 0
    assert main([str(dest), str(dest), "--overwrite"]) == 0  # onto itself
    _equal(load_encoder(dest)[0].state_dict(), small_encoder().state_dict() | _counted(published[1]))


def _counted(weights):
    name = "spectral_adapter.1.num_batches_tracked"
    return {name: weights[name], "vit_core.norm.weight": weights["vit_core.norm.weight"].float()}


def test_misuse_is_one_line(published, tmp_path, capsys):
    path, dest = published[0], tmp_path / "dest"
    few = _statistics(tmp_path / "few", bands=150)
    assert "no such encoder file" in refused(main, capsys, tmp_path / "none.pth", dest)
    assert "unknown sensor 'prisma'" in refused(main, capsys, path, dest, "--sensor", "prisma")
    assert "missing or not an array" in refused(main, capsys, path, dest, "--statistics", tmp_path)
    assert "shape (150,), but (202,) finite numbers" in refused(main, capsys, path, dest, "--statistics", few)
    assert "a flat file holds only weights" in refused(main, capsys, path, dest, "--to", "flat", "--statistics", few)
    assert "weights of another model" in refused(main, capsys, path, dest, "--architecture", "spec_vit_small")
    assert "does not divide image size 10" in refused(main, capsys, path, dest, "--image-size", "10")
    np.save(few / "mu.npy", np.ones(202))
    np.save(few / "sigma.npy", np.zeros(202))
    assert "a standard deviation is 0 or less" in refused(main, capsys, path, dest, "--statistics", few)
    weights = build_encoder("vit_tiny", 8, bands=12).state_dict()
    save_file(weights, tmp_path / "plain.safetensors")
    assert "enmap' has 202 bands" in refused(main, capsys, tmp_path / "plain.safetensors", dest, "--sensor", "enmap")
    assert not dest.exists()


@pytest.mark.parametrize("name", ["spec_vit_small", "spec_resnet50", "vit_tiny", "resnet50"])
def test_flat_files_have_the_published_names_in_order(reference, tmp_path, name):
    shapes = json.loads((reference / "state_dict_keys.json").read_text())[name]
    weights = {
        key: torch.randn(shape) if shape else torch.tensor(5)
        for key, shape in shapes.items()
        if ".head." not in key and ".fc." not in key
    }
    save_file(weights, tmp_path / "in.safetensors")  # which sorts them
    assert main([str(tmp_path / "in.safetensors"), str(tmp_path / "out.pth"), "--to", "flat"]) == 0
    _equal(torch.load(tmp_path / "out.pth"), weights)

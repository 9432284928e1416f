"""Encoder files: exact round trips, and one line for everything that can be wrong with one."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.foreign_checkpoints import our_checkpoint
from support.small_encoder import BANDS, SIZE, small_description, small_encoder
from support.tiles import write_archive

import spectralforge
from pretrain.models.patches import resize_positions
from pretrain.models.registry import build_encoder
from pretrain.weights.card import model_card
from pretrain.weights.description import WeightsError, describe_run, read_header
from pretrain.weights.export import export_encoder
from pretrain.weights.files import load_encoder, load_strictly, read_encoder, save_encoder
from pretrain.weights.pretrained import PretrainedEncoder
from shards.pack.build import PackConfig, pack
from shards.sensors.sensor import get_sensor


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An encoder file, and what is in it."""
    path = tmp_path_factory.mktemp("export") / "encoder.safetensors"
    encoder, description = small_encoder(), small_description()
    with torch.no_grad():
        encoder.get_buffer("spectral_adapter.1.running_var").fill_(1.25)
    save_encoder(path, encoder.state_dict(), description)
    return path, encoder, description


def _error(path) -> str:
    with pytest.raises(WeightsError) as raised:
        load_encoder(path)
    text = str(raised.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text


def _tiles(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(-100, 6000, (count, BANDS, SIZE, SIZE), dtype=np.int16)


def test_weights_buffers_and_description_come_back_exactly(exported):
    path, encoder, description = exported
    loaded, told = load_encoder(path)
    assert told == description
    assert not loaded.training
    before, after = encoder.state_dict(), loaded.state_dict()
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], tensor), name


def test_a_file_is_written_whole_or_not_at_all(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *names: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError):
        save_encoder(tmp_path / "encoder.safetensors", exported[1].state_dict(), exported[2])
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_views_are_written_too(tmp_path):
    encoder = small_encoder()
    weights = {
        name: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor
        for name, tensor in encoder.state_dict().items()
    }
    save_encoder(tmp_path / "e.safetensors", weights, small_description())
    loaded, _ = load_encoder(tmp_path / "e.safetensors")
    assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.01, 0.5, 0.999999])
def test_a_truncated_file_is_refused(exported, tmp_path, share):
    data = exported[0].read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data[: int(share * len(data))])
    assert "not a complete safetensors file" in _error(path)


def test_a_missing_file_is_refused(tmp_path):
    assert "no such encoder file" in _error(tmp_path / "none.safetensors")


def test_a_folder_gives_the_encoder_in_it(exported):
    assert load_encoder(exported[0].parent)[1] == exported[2]


def test_a_file_without_a_description_gets_one_without_normalization(exported, tmp_path):
    path = tmp_path / "bare.safetensors"
    save_file(exported[1].state_dict(), path)
    encoder, told = load_encoder(path)
    assert (told.architecture, told.image_size, told.sensor, told.bands) == ("spec_vit_tiny", SIZE, "enmap", 202)
    assert (told.mu, told.sigma, told.wavelength_nm) == ([], [], list(get_sensor("enmap").wavelength_nm))
    with pytest.raises(WeightsError, match=r"spectralforge-convert .* --statistics"):
        PretrainedEncoder(encoder, told).encode(np.zeros((1, 202, SIZE, SIZE), np.int16))


def test_a_description_of_an_older_version_is_read(exported, tmp_path):
    path = tmp_path / "older.safetensors"
    later = {"clip", "bands", "network", "config"}
    values = {name: value for name, value in vars(small_description()).items() if name not in later}
    save_file(exported[1].state_dict(), path, metadata={"spectralforge": json.dumps(values)})
    assert load_encoder(path)[1] == small_description(clip=None, bands=BANDS, network="student", config={})


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"architecture": "spec_vit_tiny"}'])
def test_a_damaged_description_is_refused(exported, tmp_path, text):
    path = tmp_path / "damaged.safetensors"
    save_file(exported[1].state_dict(), path, metadata={"spectralforge": text})
    assert "its description is damaged" in _error(path)


@pytest.mark.parametrize("change", [{"architecture": "spec_vit_colossal"}, {"patch_size": 3}])
def test_a_description_that_no_encoder_fits_is_refused(exported, tmp_path, change):
    path = tmp_path / "unknown.safetensors"
    save_encoder(path, exported[1].state_dict(), small_description(**change))
    assert str(next(iter(change.values()))) in _error(path)


def test_a_description_with_more_than_is_known_is_read(exported, tmp_path):
    path = tmp_path / "newer.safetensors"
    values = vars(small_description()) | {"license": "Apache-2.0"}
    save_file(exported[1].state_dict(), path, metadata={"spectralforge": json.dumps(values)})
    assert load_encoder(path)[1] == small_description()


def test_weights_of_another_shape_are_counted_and_named(exported, tmp_path):
    path = tmp_path / "other.safetensors"
    save_encoder(path, exported[1].state_dict(), small_description(image_size=16))
    text = _error(path)
    assert "170 of the 171 weights of" in text and "match, 1 of a different shape" in text
    assert "vit_core.pos_embed: (1, 5, 192) instead of (1, 17, 192)" in text


def test_missing_and_unexpected_weights_are_counted_and_named(exported, tmp_path):
    weights = exported[1].state_dict()
    for name in ("vit_core.cls_token", "vit_core.norm.bias"):
        del weights[name]
    weights["vit_core.pool.weight"] = torch.zeros(3)
    path = tmp_path / "other.safetensors"
    save_encoder(path, weights, small_description())
    text = _error(path)
    assert "169 of the 171 weights of" in text
    assert "2 missing (e.g. vit_core.cls_token), 1 unexpected (e.g. vit_core.pool.weight)" in text


def test_a_refused_load_changes_nothing(exported):
    encoder = small_encoder(seed=2)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    weights = exported[1].state_dict()
    del weights["vit_core.norm.bias"]
    with pytest.raises(WeightsError, match="here: "):
        load_strictly(encoder, weights, "here")
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_encode_is_the_encoder_on_normalized_tiles(exported):
    _, encoder, description = exported
    tiles = _tiles()
    mu, sigma = (np.float32(values)[:, None, None] for values in (description.mu, description.sigma))
    with torch.no_grad():
        expected = encoder(torch.from_numpy((tiles - mu) / sigma))
    features = PretrainedEncoder(encoder, description).encode(tiles)
    assert features.shape == (2, 192)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(PretrainedEncoder(encoder, description).encode(torch.from_numpy(tiles)), features)


def test_encode_cuts_where_training_did(exported):
    _, encoder, description = exported
    tiles = _tiles()
    tiles[0, 3] = 30000
    cut = small_description(clip=2.0)
    mu, sigma = (np.float32(values)[:, None, None] for values in (description.mu, description.sigma))
    with torch.no_grad():
        expected = encoder(torch.from_numpy(np.clip((tiles - mu) / sigma, -2, 2)))
    torch.testing.assert_close(PretrainedEncoder(encoder, cut).encode(tiles), expected, rtol=1e-4, atol=1e-5)


def test_a_resnet_encodes_images_of_any_size():
    encoder = build_encoder("spec_resnet50").eval()
    description = small_description(architecture="spec_resnet50", image_size=128)
    assert PretrainedEncoder(encoder, description).encode(np.zeros((1, BANDS, 16, 32), np.int16)).shape == (1, 2048)


# ---- other sizes ----


def test_positions_go_to_another_image_size(exported):
    encoder, told = load_encoder(exported[0], image_size=24)
    assert told.image_size == encoder.image_size == 24
    before, after = exported[1].state_dict(), encoder.state_dict()
    changed = [name for name in before if before[name].shape != after[name].shape]
    assert changed == ["vit_core.pos_embed"]
    assert torch.equal(after[changed[0]], resize_positions(before[changed[0]], (6, 6)))
    assert all(torch.equal(after[name], before[name]) for name in before if name not in changed)
    report = read_encoder(exported[0], image_size=24).report
    assert report.reshaped == ["vit_core.pos_embed: (1, 5, 192) to (1, 37, 192)"]


def test_an_image_size_that_patches_do_not_divide_is_refused(exported):
    with pytest.raises(WeightsError, match="patch size 4 does not divide image size 10"):
        load_encoder(exported[0], image_size=10)


def test_options_of_the_encoder_reach_it(exported, tmp_path):
    assert load_encoder(exported[0], 4)[0].spectral_adapter.bn_group == 4
    assert load_encoder(exported[0], attention="math")[0].core.blocks[0].attn.backend == "math"
    weights = build_encoder("spec_resnet50").state_dict()
    save_encoder(tmp_path / "r.safetensors", weights, small_description(architecture="spec_resnet50"))
    assert load_encoder(tmp_path / "r.safetensors", dilate=(True,) * 4)[0].stride == 1


# ---- export ----


def test_an_export_and_its_card_say_how_the_encoder_was_trained(tmp_path):
    student, teacher = (small_encoder(seed).state_dict() for seed in (1, 2))
    step = our_checkpoint(tmp_path, 10, student, teacher, {"augment": {"clip": 8.0}, "optim": {"lr": 1e-3}})
    export_encoder(step, tmp_path / "encoder.safetensors")
    encoder, told = load_encoder(tmp_path / "encoder.safetensors")
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in encoder.state_dict().items())
    assert (told.network, told.objective, told.clip, told.bands, told.samples_seen) == ("teacher", "dino", 8.0, 80, 160)
    assert told.config["optim"] == {"lr": 1e-3}
    card = (tmp_path / "encoder.md").read_text()
    expected = (
        "# spec_vit_tiny, dino",
        f"| {sum(parameter.numel() for parameter in encoder.parameters()):,} |",
        "weights of the teacher",
        "cut at ±8;",
        "enmap, 80 bands from 400",
    )
    assert [text for text in expected if text not in card] == []


def test_a_bound_on_the_errors_of_training_tiles_is_in_the_file_and_its_card(tmp_path):
    step = our_checkpoint(tmp_path, 10, small_encoder(1).state_dict(), config={"data": {"shards": "/data/small"}})
    state = json.loads((step / "state.json").read_text())  # of a run before there were bounds
    for bound, pretrained_on in (("", "small"), ("noise/4", "small; max error noise/4")):
        described = describe_run(state, "student", "state.json")
        told = read_header(described.to_header(), "encoder.safetensors")
        assert (told.max_error, told.pretrained_on) == (bound, pretrained_on)
        card = model_card(told, 1, "encoder.safetensors")
        assert ("stored with a maximum error of noise/4 (digital numbers, or" in card) == bool(bound)
        state["data"]["max_error"] = "noise/4"


def test_a_card_claims_nothing_that_is_not_known():
    bare = small_description(sensor="unknown", wavelength_nm=[], mu=[], sigma=[], objective="", samples_seen=0)
    card = model_card(bare, 1, "weights.safetensors")
    assert "Objective: unknown." in card
    assert "Tiles seen: unknown." in card
    assert "Normalization: unknown." in card
    assert 'load_encoder("weights.safetensors")' in card


def test_the_lines_of_a_card_run(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(exported[0].parent)
    code = model_card(exported[2], 1, exported[0].name).split("```python")[1].split("```")[0]
    names: dict = {}
    monkeypatch.setattr(spectralforge, "open_dataset", lambda folder: _tiles())
    exec(code, names)
    assert names["features"].shape == (1, 192)


def test_models_need_torch_numpy_and_safetensors_alone():
    absent = ("pydantic", "rasterio", "deepspeed", "numba", "numcodecs", "fsspec", "zarr", "yaml", "xxhash", "tqdm")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import pretrain.models, pretrain.weights.card"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_notebook_functions_go_from_shards_to_features(tmp_path):
    write_archive(tmp_path / "source", size=SIZE)
    pack(tmp_path / "source", tmp_path / "shards", PackConfig(tiles_per_shard=3))
    tiles = spectralforge.open_dataset(tmp_path / "shards")
    told = tiles.tiles.manifest
    description = small_description(
        wavelength_nm=told.wavelength_nm, fwhm_nm=told.fwhm_nm, mu=told.mean, sigma=told.std, dataset=told.content_hash
    )
    save_encoder(tmp_path / "encoder.safetensors", small_encoder().state_dict(), description)
    encoder = spectralforge.load_encoder(str(tmp_path / "encoder.safetensors"))
    features = torch.cat([encoder.encode(tiles[row], tiles.wavelength_nm) for row in range(len(tiles))])
    assert features.shape == (10, 192)
    assert features.isfinite().all()
    assert torch.unique(features, dim=0).shape == (10, 192)

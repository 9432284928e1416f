"""The benchmark of training steps: plain and ours give the same losses and gradients, its table and file, misuse."""

import json

import pytest
import torch
from support.commands import refused

from pretrain.objectives.masked_autoencoder import MaskedAutoencoder
from tools import bench_step
from tools.bench_step import main
from tools.plain_mae import PlainMaskedAutoencoder


@pytest.fixture(autouse=True)
def one_thread():
    """At these sizes threads lose more by waiting for each other than they win."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _ours_and_plain() -> tuple[MaskedAutoencoder, PlainMaskedAutoencoder, torch.Tensor, torch.Tensor]:
    config = bench_step.run_config("spec_vit_tiny", 2, 16, 0.75, "fp32")
    model, other = (bench_step.build(config, torch.device("cpu")).eval() for _ in range(2))
    tiles, masks = bench_step.batch(config, model, torch.device("cpu"))
    return model, PlainMaskedAutoencoder(other).eval(), tiles, masks


def test_both_ways_agree_in_evaluation_mode_alone():
    ours, plain, tiles, masks = _ours_and_plain()
    images = ours.normalize(tiles)
    losses = plain(images, masks)
    assert losses.shape == (2,)
    torch.testing.assert_close(ours(tiles, masks)[0], losses, rtol=1e-5, atol=0)
    assert torch.equal(ours(images, masks)[0], ours(tiles, masks)[0])  # int16 or float
    ours.train()  # batch norm then sees other pixels
    plain.train()
    assert not torch.allclose(ours(tiles, masks)[0], plain(images, masks), rtol=1e-5)


def test_both_ways_give_the_same_gradients():
    ours, plain, tiles, masks = _ours_and_plain()
    ours(tiles, masks)[0].mean().backward()
    plain(ours.normalize(tiles), masks).mean().backward()
    names = {"stem.": "encoder.spectral_adapter.", "proj.": "encoder.vit_core.patch_embed.proj."}
    own = dict(ours.named_parameters())
    for name, parameter in plain.named_parameters():
        prefix = next((mine for theirs, mine in names.items() if name.startswith(theirs)), None)
        if prefix is not None:
            mine = own[prefix + name.split(".", 1)[1]]
        else:
            mine = own[name] if name.startswith("decoder.") else own[f"encoder.vit_core.{name}"]
        worst = 1e-5 * max(float(parameter.grad.abs().max()), 1e-3)
        torch.testing.assert_close(mine.grad, parameter.grad, rtol=1e-3, atol=worst, msg=name)


def test_stems_side_by_side(tmp_path, capsys):
    arguments = ["--stem", "--micro-batch", "2", "--image-size", "16", "--mask-ratios", "0.75", "--rounds", "1"]
    assert main([*arguments, "--json", str(tmp_path / "stems.json")]) == 0
    conv, wave = json.loads((tmp_path / "stems.json").read_text())["stems"]
    assert (conv["stem"], wave["stem"], conv["pixels"], conv["share"]) == ("conv", "wave", 128, 1)
    assert wave["gflop"] < conv["gflop"] / 5
    assert wave["share"] == pytest.approx(wave["ms"] / conv["ms"])
    assert f"{wave['share']:.2f} x conv" in capsys.readouterr().out


@pytest.mark.nightly
def test_table_and_file(tmp_path, capsys):
    """One round of all ways, DeepSpeed's too."""
    path = tmp_path / "figures.json"
    size = ["--image-size", "16", "--micro-batch", "2", "--rounds", "1", "--mask-ratios", "0.75"]
    assert main(["--models", "spec_vit_tiny", *size, "--json", str(path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "[WARNING]" not in line]
    assert "micro batch 2, 16 px, 1 rounds" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == [
        *("plain", "ours", "zero1", "zero3"),
        *("ours/plain", "zero1/ours", "zero3/ours"),
    ]
    figures = json.loads(path.read_text())
    plain, ours, zero1, zero3 = figures["rows"]
    for ratio, one, other in zip(figures["ratios"], (ours, zero1, zero3), (plain, ours, ours), strict=True):
        assert (ratio["way"], ratio["to"]) == (one["way"], other["way"])
        assert ratio["speed"] == pytest.approx(one["tiles_per_s"] / other["tiles_per_s"])
        assert ratio["memory"] == pytest.approx(one["peak_mb"] / other["peak_mb"])
    assert 100 < ours["peak_mb"] < 10_000


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["--models", "spec_vit_tiny,vit_tiny"],
            "--models vit_tiny: a model with a spectral stem and patches is one of",
        ),
        (["--image-size", "30"], "model.patch_size 4 does not divide model.image_size 30"),
        (["--mask-ratios", "0.99", "--image-size", "16"], "leaves none of the 16 patches visible"),
        (["--ways", "ours,zero2"], "--ways zero2: choose from plain, ours, zero1, zero3"),
    ],
)
def test_misuse_is_one_line(arguments, error, capsys):
    assert error in refused(main, capsys, *arguments)


def test_numbers_are_positive(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--rounds", "0"])
    assert "--rounds: '0' is not a whole number above 0" in capsys.readouterr().err

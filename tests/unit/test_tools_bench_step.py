"""The benchmark of training steps: both ways give the same losses, its table and file hold together, misuse."""

import json

import pytest
import torch

from tools import bench_step
from tools.bench_step import full_losses, gathered_losses, main


@pytest.fixture(autouse=True)
def one_thread():
    """At these sizes threads lose more by waiting for each other than they win."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _refused(capsys, *arguments) -> str:
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def _model_and_batch():
    config = bench_step.run_config("spec_vit_tiny", 2, 16, 0.75, "fp32")
    model = bench_step.build(config, torch.device("cpu")).eval()
    tiles, noise = bench_step.batch(config, model, torch.device("cpu"))
    return model, (tiles.float() - 3000) / 1732, noise


def test_both_ways_agree_in_evaluation_mode_alone():
    model, images, noise = _model_and_batch()
    full = full_losses(model, images, noise)
    assert full.shape == (2,)
    torch.testing.assert_close(gathered_losses(model, images, noise), full, rtol=1e-5, atol=0)
    model.train()  # batch norm then sees other pixels
    assert not torch.allclose(gathered_losses(model, images, noise), full_losses(model, images, noise), rtol=1e-5)


def test_both_ways_give_the_same_gradients():
    model, images, noise = _model_and_batch()
    gradients = []
    for losses in (gathered_losses, full_losses):
        model.zero_grad()
        losses(model, images, noise).mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert list(gradients[0]) == list(gradients[1])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-6, msg=name)


def test_table_and_file(tmp_path, capsys):
    path = tmp_path / "figures.json"
    size = ["--image-size", "16", "--micro-batch", "2", "--rounds", "1"]
    assert main(["--models", "spec_vit_tiny", *size, "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "micro batch 2, 16 px, mask ratio 0.9, 1 rounds" in lines[0]
    assert [line.split()[:2] for line in lines[3:]] == [
        ["spec_vit_tiny", way] for way in ("gathered", "full", "gathered/full")
    ]
    figures = json.loads(path.read_text())
    gathered, full = figures["rows"]
    (ratio,) = figures["ratios"]
    assert ratio["speed"] == pytest.approx(gathered["tiles_per_s"] / full["tiles_per_s"])
    assert ratio["memory"] == pytest.approx(gathered["peak_mb"] / full["peak_mb"])
    assert ratio["loss_difference"] <= 1e-5
    assert gathered["gflop_per_tile"] < full["gflop_per_tile"]
    assert 100 < gathered["peak_mb"] < 10_000


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["--models", "spec_vit_tiny,vit_tiny"],
            "--models vit_tiny: a model with a spectral stem and patches is one of",
        ),
        (["--image-size", "30"], "patch_size 4 does not divide image_size 30"),
        (["--mask-ratio", "0.99", "--image-size", "16"], "leaves none of 16 patches visible"),
    ],
)
def test_misuse_is_one_line(arguments, error, capsys):
    assert error in _refused(capsys, *arguments)


def test_numbers_are_positive(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--rounds", "0"])
    assert "--rounds: 0 is not positive" in capsys.readouterr().err

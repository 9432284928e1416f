"""The two limits of a step: bytes are those of the operations, in proportion to the work."""

import pytest
import torch
from torch import nn

from pretrain.config import PretrainConfig
from pretrain.metrics.flops import sample_flops
from tools import bench_step
from tools.step_limits import Counter, count, main


def test_bytes_are_those_of_operations_by_part():
    model = nn.Module()
    model.encoder = nn.Linear(8, 4, bias=False)
    x = torch.randn(16, 8)
    with Counter(model) as counter:
        y = model.encoder(x)
        z = y.t()[:2].view(-1) if y.t()[:2].is_contiguous() else y.t()  # moves nothing
        z + z
    assert counter.parts == {"encoder": 4 * (16 * 8 + 8 * 4 + 16 * 4), "loss": 4 * (3 * 16 * 4)}


def test_a_step_of_a_larger_model_moves_more():
    flops, small = count("spec_vit_tiny", 0.75, 8)
    more_flops, base = count("spec_vit_small", 0.75, 8)
    config: PretrainConfig = bench_step.run_config("spec_vit_tiny", 8, 128, 0.75, "autocast")
    assert flops == sum(sample_flops(config, bench_step.BANDS).values()) < more_flops
    assert set(small) == {"stem", "encoder", "decoder", "loss", "optimizer"}
    assert base["encoder"] > 1.5 * small["encoder"]
    assert base["stem"] == small["stem"]  # it sees the same pixels
    hidden = count("spec_vit_tiny", 0.9, 8)[1]
    assert hidden["stem"] < 0.5 * small["stem"]


def test_misuse_is_one_line(capsys):
    assert main(["--models", "resnet50"]) == 2
    assert capsys.readouterr().err.startswith("error: --models resnet50: a model with a spectral stem")


def test_the_table(capsys):
    assert main(["--models", "spec_vit_tiny", "--micro-batch", "8", "--mask-ratios", "0.9", "--gpu", "A100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("A100: 312 TFLOP/s")
    assert lines[2].startswith("spec_vit_tiny    0.90")
    with pytest.raises(SystemExit, match="2"):
        main(["--gpu", "V100"])

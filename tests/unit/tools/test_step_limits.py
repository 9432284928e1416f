"""The predicted time of steps: a line for each model, whose parts add up."""

import subprocess
import sys

import pytest
from support.processes import REPOSITORY

from tools.fake_cuda import shim
from tools.step_limits import PARTS, format_row, main

COMMAND = "-m tools.step_limits --models s --mask-ratios 0.9 --micro-batch 8 --gpu a100-80 engine.compile=false"


@pytest.mark.nightly
@pytest.mark.skipif(shim.missing() is not None, reason=shim.missing() or "")
def test_the_parts_of_a_step_add_up():
    result = subprocess.run([sys.executable, *COMMAND.split()], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    header, names, row = result.stdout.splitlines()[:3]
    assert header.startswith("A100 80 GB: 312 TFLOP/s")
    assert names.split()[:5] == ["model", "mask", "stage", "kernels", "GB"]
    model, ratio, stage, kernels, _, *values = row.split()
    assert (model, ratio, stage) == ("s", "0.90", "2") and int(kernels) > 100
    parts, (total, mfu, _, _) = list(map(float, values[: len(PARTS)])), values[len(PARTS) :]
    assert sum(parts) == pytest.approx(float(total), abs=0.1)
    assert 0 < int(mfu.removesuffix("%")) < 72  # no kernel is faster than the roofline


def test_a_row_has_times_mfu_and_the_time_of_a_kernel():
    work = {"kernels": 5, "bytes": 2 * 10**9, "flops": 0, "seconds": 0.001}
    counted = {"parts": {"stem": work, "encoder": work}, "collectives": {"all_reduce float32": {"seconds": 0.0005}}}
    assert format_row("s", counted, 0.0004).split() == ["s", "10", "4.0", "1.00", "1.00", "2.0", "20%", "200.0", "0.50"]


def test_misuse_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--gpu", "v100"])
    assert capsys.readouterr().err.startswith("error: --gpu: invalid choice: 'v100'")

"""Configs to submit, and the message of a rejected submission."""

from pathlib import Path

import pytest

from launch.slurm import main

CONFIG = """\
run: {dir: run}
data: {shards: shards}
train: {steps: 10, global_batch: 64, micro_batch: 8}
"""
EVALUATION = """\
run: {dir: scores/NAME}
task: enmap_cdl
data: {images: images, labels: labels}
checkpoint: encoder.safetensors
"""


def write_configs(folder: Path) -> None:
    """Write config.yaml for pretraining, and cdl.yaml and nlcd.yaml for evaluations."""
    (folder / "config.yaml").write_text(CONFIG)
    for name in ("cdl", "nlcd"):
        (folder / f"{name}.yaml").write_text(EVALUATION.replace("NAME", name))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the one-line error of a submission."""
    with pytest.raises(SystemExit) as ended:
        main([*words])
    assert ended.value.code in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error

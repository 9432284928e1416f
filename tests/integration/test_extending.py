"""The examples of docs/extending.md, taken from the page and run by the commands in a folder outside the checkout."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from support.processes import REPOSITORY

import spectralforge
from pretrain.weights.description import WeightsError

PAGE = (REPOSITORY / "docs/extending.md").read_text()
FILES = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))
PLUGINS = [name for name in FILES if name.endswith(".py")]
ENCODER = "lab_encoder.py,lab_stem.py"

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the page's files, a stack of tiles, and tiles with labels."""
    folder = tmp_path_factory.mktemp("lab")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    python(folder, "-m", "tools.sample_data", "sample", "--locations", 16, "--size", 16)
    python(folder, "-m", "tools.sample_data", ".", "--task", "sample_covers", "--tiles", 15, "--size", 16)
    (folder / "stacks").mkdir()
    np.save(folder / "stacks/first.npy", np.stack([read(path) for path in sorted(folder.glob("sample/enmap/*/*.tif"))]))
    return folder


@pytest.fixture(scope="module")
def pretrained(lab: Path) -> Path:
    """Return the folder of a run that was packed, trained and resumed as the page does it."""
    words = FILES["pack.sh"].split()
    python(lab, *words[1:])
    config = ["--config", "pretrain.yaml"]
    python(lab, REPOSITORY / "launch/pretrain.py", *config)
    python(lab, REPOSITORY / "launch/pretrain.py", *config, "train.steps=6")
    return lab / "run"


@pytest.fixture(scope="module")
def scores(lab: Path, pretrained: Path) -> Path:
    """Return the folder of the evaluation."""
    python(lab, REPOSITORY / "launch/finetune.py", "--config", "finetune.yaml")
    return lab / "scores"


def run_python(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def python(folder: Path, *arguments: object) -> str:
    done = run_python(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read()


def test_there_is_an_example_of_everything_that_is_open() -> None:
    parts = "encoder stem objective optimizer augmentation logger callback head kind source codec".split()
    assert sorted(PLUGINS) == sorted(f"lab_{part}.py" for part in parts)


def test_shards_hold_the_tiles_of_the_source_in_the_codec(lab: Path, pretrained: Path) -> None:
    assert json.loads((lab / "shards/manifest.json").read_text())["codec"]["id"] == "lab_lzma"
    python(lab, "-m", "shards", "--plugins", "lab_codec.py", "verify", "shards")
    refused = run_python(lab, "-m", "shards", "verify", "shards")
    assert refused.returncode != 0 and "lab_lzma" in refused.stderr


def test_a_resumed_run_continues_what_plugins_keep(pretrained: Path) -> None:
    with open(pretrained / "metrics.csv", newline="") as file:
        means = {int(step): float(value) for step, name, value in csv.reader(file) if name == "mean_loss"}
        file.seek(0)
        losses = {int(step): float(value) for step, name, value in csv.reader(file) if name == "loss"}
    assert sorted(means) == [1, 2, 3, 4, 5, 6]
    assert means[5] == pytest.approx(0.5 * means[4] + 0.5 * losses[5], rel=1e-4)
    assert f"- {pretrained.parent}/lab_encoder.py" in (pretrained / "config.yaml").read_text()


def test_an_exported_encoder_is_loaded_with_its_plugins(lab: Path, pretrained: Path) -> None:
    python(lab, "-m", "pretrain.weights.convert", "--plugins", ENCODER, "run", "converted.safetensors")
    refused = run_python(lab, "-m", "pretrain.weights.convert", "run", "refused.safetensors")
    assert refused.returncode == 2
    assert "unknown encoder 'lab_conv'" in refused.stderr and "--plugins lab_encoder.py,lab_stem.py" in refused.stderr
    with pytest.raises(WeightsError, match=r"its run had plugins=\['lab_encoder\.py', 'lab_stem\.py', "):
        spectralforge.load_encoder(lab / "converted.safetensors")
    encoder = spectralforge.load_encoder(
        lab / "converted.safetensors", plugins=[str(lab / name) for name in ENCODER.split(",")]
    )
    tiles = np.load(lab / "stacks/first.npy")[:2]
    assert encoder.encode(tiles).shape == (2, 16)


def test_evaluation_and_report_know_head_and_kind(lab: Path, scores: Path) -> None:
    python(lab, "-m", "finetune", "report", "scores", "--output", "report", "--plugins", "lab_head.py,lab_kind.py")
    page = (lab / "report/report.html").read_text()
    assert "lab_covers" in page and "lab_dropout dropout=0.1" in page


def test_help_lists_the_keys_of_plugins(lab: Path) -> None:
    page = python(lab, REPOSITORY / "launch/pretrain.py", "--config", "pretrain.yaml", "--help-config")
    assert "objective (lab_spectrum):" in page and "Share of the mean that one step keeps." in page
    wrong = run_python(lab, REPOSITORY / "launch/pretrain.py", "--config", "pretrain.yaml", "model.widht=3")
    assert "unknown key 'model.widht'; did you mean 'model.width'?" in wrong.stderr

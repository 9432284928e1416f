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
from support.preloaded import run_preloaded
from support.processes import REPOSITORY

PAGE = (REPOSITORY / "docs/extending.md").read_text()
FILES = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))
PLUGINS = [name for name in FILES if name.startswith("lab_") and name.endswith(".py")]

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the page's files, and a stack of tiles."""
    folder = tmp_path_factory.mktemp("lab")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    python(folder, "-m", "tools.sample_data", "sample", "--locations", 16, "--size", 16)
    (folder / "stacks").mkdir()
    np.save(folder / "stacks/first.npy", np.stack([read(path) for path in sorted(folder.glob("sample/enmap/*/*.tif"))]))
    return folder


@pytest.fixture(scope="module")
def pretrained(lab: Path) -> Path:
    """Return the folder of a run that was packed, trained and resumed as the page does it."""
    python(lab, *FILES["pack.sh"].split()[1:])
    config = ["--config", "pretrain.yaml"]
    python(lab, REPOSITORY / "launch/pretrain.py", *config)
    python(lab, REPOSITORY / "launch/pretrain.py", *config, "train.steps=6")
    return lab / "run"


def run_python(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY)}
    return run_preloaded([sys.executable, *map(str, arguments)], folder, environment)


def python(folder: Path, *arguments: object) -> str:
    done = run_python(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read()


def test_there_is_an_example_of_everything_that_is_open() -> None:
    parts = "encoder stem objective optimizer augmentation logger callback head kind source product codec".split()
    assert sorted(PLUGINS) == sorted(f"lab_{part}.py" for part in parts)


def test_shards_hold_the_tiles_of_the_source_in_the_codec(lab: Path, pretrained: Path) -> None:
    assert json.loads((lab / "shards/manifest.json").read_text())["codec"]["id"] == "lab_lzma"
    python(lab, "-m", "shards", "--plugins", "lab_codec.py", "verify", "shards")
    refused = run_python(lab, "-m", "shards", "verify", "shards")
    assert refused.returncode != 0 and "lab_lzma" in refused.stderr


def test_a_product_is_packed_with_its_own_bands_and_masks(lab: Path) -> None:
    rng, shadow = np.random.default_rng(0), np.zeros((40, 40), bool)
    shadow[:5] = True
    values = rng.uniform(0, 1, (90, 40, 40)).astype(np.float32)
    place = np.array([0.1, 0, 366000, 0, -0.1, 5809000])
    arrays = {"wavelength_nm": 400 + 6.5 * np.arange(90), "transform": place, "time": "20220724T101530Z"}
    np.savez(lab / "field.npz", reflectance=values, shadow=shadow, **arrays)
    assert "packed 4 tiles" in python(lab, *FILES["pack_product.sh"].split()[1:])
    manifest = json.loads((lab / "camera/manifest.json").read_text())
    assert manifest["wavelength_nm"] == arrays["wavelength_nm"].tolist()
    assert manifest["sums"]["count"] == [27 * 32] * 90  # four tiles of 16 x 16 px without five rows of two of them


def test_a_resumed_run_continues_what_plugins_keep(pretrained: Path) -> None:
    with open(pretrained / "metrics.csv", newline="") as file:
        rows = [(int(step), name, float(value)) for step, name, value in csv.reader(file)]
    means = {step: value for step, name, value in rows if name == "mean_loss"}  # of the steps before
    losses = {step: value for step, name, value in rows if name == "loss"}
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]
    assert [means[step] for step in range(3, 7)] == pytest.approx(
        [0.5 * means[step] + 0.5 * losses[step] for step in range(2, 6)], rel=1e-5
    )
    assert f"- {pretrained.parent}/lab_encoder.py" in (pretrained / "config.yaml").read_text()


def test_an_exported_encoder_is_loaded_with_its_plugins(lab: Path, pretrained: Path) -> None:
    assert python(lab, "encode.py") == "torch.Size([2, 16])\n"
    convert = [lab, "-m", "pretrain.weights.convert", "run"]
    python(*convert, "converted.safetensors", "--plugins", "lab_encoder.py,lab_stem.py")
    refused = run_python(*convert, "refused.safetensors")
    assert refused.returncode == 2
    assert "unknown encoder 'lab_conv'" in refused.stderr and "--plugins lab_encoder.py,lab_stem.py" in refused.stderr


def test_evaluation_report_and_maps_know_head_and_kind(lab: Path, pretrained: Path) -> None:
    python(lab, "-m", "tools.sample_data", ".", "--task", "sample_covers", "--tiles", 15, "--size", 16)
    python(lab, REPOSITORY / "launch/finetune.py", "--config", "finetune.yaml")
    python(lab, *FILES["report.sh"].split()[1:])
    page = (lab / "report/report.html").read_text()
    assert "lab_covers" in page and "lab_dropout dropout=0.1" in page
    plugins = "lab_encoder.py,lab_stem.py,lab_head.py,lab_kind.py"
    scene = next(lab.glob("sample/enmap/*/*.tif"))
    python(lab, "-m", "finetune", "predict", "--plugins", plugins, "scores/model.safetensors", scene, "map.tif")
    assert read(lab / "map.tif").shape[0] == 1


def test_help_lists_the_keys_of_plugins(lab: Path) -> None:
    page = python(lab, REPOSITORY / "launch/pretrain.py", "--config", "pretrain.yaml", "--help-config")
    assert "objective (lab_spectrum):" in page and "Share of the mean that one step keeps." in page
    wrong = run_python(lab, REPOSITORY / "launch/pretrain.py", "--config", "pretrain.yaml", "model.widht=3")
    assert "unknown key 'model.widht'; did you mean 'model.width'?" in wrong.stderr

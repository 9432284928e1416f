"""Files written by an earlier version still open, and give the numbers that it gave (tests/fixtures/before)."""

import csv
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from safetensors import safe_open
from support.fixture_encoder import install_fixture_encoder
from support.preloaded import run_preloaded
from support.processes import REPOSITORY
from support.tiles import write_tile

import spectralforge
from finetune.__main__ import main as finetune
from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig
from pretrain.weights.export import export_encoder
from shards.__main__ import main as shards_command
from shards.config import load_config

BEFORE = REPOSITORY / "tests" / "fixtures" / "before"
EXPECTED = json.loads((BEFORE / "expected.json").read_text())
RUN_WITH_FIXTURE_ENCODER = REPOSITORY / "tests" / "support" / "fixture_encoder.py"


@pytest.fixture
def fixture_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    install_fixture_encoder(monkeypatch)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return shutil.copytree(BEFORE / "shards", tmp_path / "shards")


def _tile() -> np.ndarray:
    """The tile that the expected features and map are of: int16 (202, 16, 16)."""
    return np.asarray(spectralforge.open_dataset(BEFORE / "shards")[EXPECTED["scene"]])


def _digests(shards: Path) -> list[str]:
    tiles = spectralforge.open_dataset(shards)
    return [hashlib.sha256(np.asarray(tiles[number]).tobytes()).hexdigest() for number in range(len(tiles.tiles))]


def test_shards_read_equal_and_verify() -> None:
    assert _digests(BEFORE / "shards") == EXPECTED["tiles_sha256"]
    assert shards_command(["verify", str(BEFORE / "shards")]) == 0


def test_shards_grow(tmp_path: Path, shards: Path) -> None:
    more, before = tmp_path / "more", (shards / "shard-000000.tar").read_bytes()
    write_tile(more / "enmap" / "0002000" / "00007.tif", _tile())
    write_tile(more / "labels" / "0002000" / "00007.tif", np.ones((16, 16), np.uint8))
    options = ["--labels", str(more / "labels"), "--tiles-per-shard", "4", "--append"]
    assert shards_command(["pack", str(more), str(shards), *options]) == 0
    digests = _digests(shards)
    assert len(digests) == 7
    assert digests[:6] == EXPECTED["tiles_sha256"]
    assert (shards / "shard-000000.tar").read_bytes() == before


@pytest.mark.distributed
def test_a_checkpoint_resumes_with_the_same_losses(tmp_path: Path, shards: Path) -> None:
    run = shutil.copytree(BEFORE / "run", tmp_path / "run")
    options = ["--config", run / "config.yaml", f"run.dir={run}", f"data.shards={shards}"]
    command = [sys.executable, str(RUN_WITH_FIXTURE_ENCODER), "launch.pretrain", *map(str, options)]
    done = run_preloaded(command, Path.cwd(), os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"})
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {str(record["step"]): record["loss"] for record in records if "loss" in record}
    assert losses == pytest.approx(EXPECTED["losses"], rel=1e-5)  # other CPUs round differently
    assert (run / "encoder.safetensors").exists()


def test_a_checkpoint_is_exported(tmp_path: Path, fixture_encoder: None) -> None:
    export_encoder(BEFORE / "run", tmp_path / "encoder.safetensors")
    with (
        safe_open(tmp_path / "encoder.safetensors", "np") as new,
        safe_open(BEFORE / "encoder.safetensors", "np") as old,
    ):
        assert sorted(new.keys()) == sorted(old.keys())
        for name in old.keys():
            assert new.get_slice(name).get_shape() == old.get_slice(name).get_shape()


def test_an_encoder_gives_the_recorded_features(fixture_encoder: None) -> None:
    encoder = spectralforge.load_encoder(BEFORE / "encoder.safetensors")
    features = encoder.encode(_tile()[:, :8, :8], encoder.wavelength_nm)
    assert features[0].tolist() == pytest.approx(EXPECTED["features"], rel=1e-4, abs=1e-5)


def test_a_finetuned_model_predicts_the_recorded_map(tmp_path: Path, fixture_encoder: None) -> None:
    scene, dest = write_tile(tmp_path / "scene.tif", _tile()), tmp_path / "map.tif"
    assert finetune(["predict", str(BEFORE / "scores" / "model.safetensors"), str(scene), str(dest)]) == 0
    expected = np.array([[int(code) for code in row] for row in EXPECTED["map"]])
    with rasterio.open(dest) as file:
        assert (file.read(1) == expected).mean() > 0.99


def _scores(row: dict[str, str]) -> tuple[tuple[str, str, bool], list[float]]:
    key = (row["protocol"], row["metric"], row["checkpoint"] == "run/encoder.safetensors")
    return key, [float(row["mean"]), float(row["deviation"])]


def test_results_are_reported(tmp_path: Path) -> None:
    scores = shutil.copytree(BEFORE / "scores", tmp_path / "scores")
    assert finetune(["report", str(scores)]) == 0
    with open(scores / "report.csv", newline="", encoding="utf-8") as file:
        found = dict(map(_scores, csv.DictReader(file)))
    expected = dict(map(_scores, EXPECTED["report"]))
    assert len(expected) == 30
    assert {key: found[key] for key in expected} == {key: pytest.approx(value) for key, value in expected.items()}


@pytest.mark.parametrize("path", ["run/config.yaml", "configs/dino.yaml", "configs/moco.yaml"])
def test_pretraining_configs_load(path: str) -> None:
    assert load_config(BEFORE / path, [], PretrainConfig).model.name.startswith("spec_")


def test_an_evaluations_config_loads() -> None:
    config = load_config(BEFORE / "scores" / "config.yaml", [], FinetuneConfig)
    assert config.protocol == ("knn", "frozen", "full")

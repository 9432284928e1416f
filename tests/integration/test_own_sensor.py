"""A sensor of one's own, known by a CSV file alone, from tiles to features: pack, pretrain by each objective, use."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from support.preloaded import run_preloaded
from support.processes import REPOSITORY
from support.tiles import write_tile

import spectralforge

CENTERS = 1000 + 15.0 * np.arange(90)
"""Shortwave infrared: no red, green or blue."""

OBJECTIVES = {
    "mae": {"name": "mae", "mask_ratio": 0.5, "decoder": {"width": 32, "depth": 1, "heads": 2}},
    "moco": {"name": "moco", "queue": 16, "hidden": 16, "dim": 8},
    "dino": {"name": "dino", "hidden": 16, "bottleneck": 8, "prototypes": 16},
}

pytestmark = pytest.mark.distributed


def run(*arguments: object) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY)}
    done = run_preloaded([sys.executable, *map(str, arguments)], Path("/"), environment)
    assert done.returncode == 0, done.stdout + done.stderr


def write_lab(folder: Path) -> None:
    """Ten tiles without wavelengths, and a table as a spreadsheet of Europe writes it, in micrometers."""
    for number in range(10):
        noise = np.random.default_rng(number).normal(0, 200, (len(CENTERS), 8, 8))
        values = 2000 + 500 * np.sin(CENTERS / 300)[:, None, None] + noise
        write_tile(folder / "tiles" / f"t{number}.tif", values.astype(np.int16))
    rows = [f"B{band};{nm / 1000:.3f};0.012;1.0".replace(".", ",") for band, nm in enumerate(CENTERS)]
    table = "\r\n".join(["Band;Wavelength_um;FWHM_um;Kept", *rows, ";;;"])
    (folder / "swir.csv").write_bytes(b"\xef\xbb\xbf" + table.encode())


def pretrain(folder: Path, name: str) -> None:
    config = {
        "run": {"dir": str(folder / name)},
        "data": {"shards": str(folder / "shards"), "holdout": 0.1, "read_threads": 1},
        "augment": {"crop_scale": None},
        "model": {"name": "spec_vit_tiny", "image_size": 8, "patch_size": 4, "bn_group": 4},
        "objective": OBJECTIVES[name],
        "train": {"steps": 1, "global_batch": 8, "micro_batch": 8},
        "engine": {"precision": "fp32"},
        "log": {"every": 1, "validate_every": 1},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    run(REPOSITORY / "launch" / "pretrain.py", "--config", path)


@pytest.mark.parametrize("names", [["mae"], pytest.param(list(OBJECTIVES), marks=pytest.mark.nightly)], ids=len)
def test_a_band_table_goes_from_pack_to_predict_by_every_objective(tmp_path: Path, names: list[str]) -> None:
    write_lab(tmp_path)
    command = ["pack", tmp_path / "tiles", tmp_path / "shards", "--sensor", tmp_path / "swir.csv", "--workers", "1"]
    run("-m", "shards", *command)
    (tmp_path / "swir.csv").unlink()
    tiles = spectralforge.open_dataset(tmp_path / "shards")
    for name in names:
        pretrain(tmp_path, name)
        encoder = spectralforge.load_encoder(tmp_path / name / "encoder.safetensors")
        assert (encoder.description.sensor, encoder.wavelength_nm) == ("swir", CENTERS.tolist())
        assert encoder.encode(tiles[0], CENTERS / 1000).isfinite().all()
    assert (tmp_path / "mae" / "reconstruction.png").stat().st_size > 0
    scene, output = tmp_path / "tiles" / "t0.tif", tmp_path / "features.tif"
    run("-m", "finetune", "predict", tmp_path / "mae" / "encoder.safetensors", scene, output)
    with rasterio.open(output) as file:
        assert (file.count, file.shape) == (192, (2, 2))
        assert np.isfinite(file.read()).all()

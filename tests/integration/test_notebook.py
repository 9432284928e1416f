"""The notebook of docs/ runs from its first cell to its last, on an encoder and shards made here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.small_encoder import small_description, small_encoder
from support.tiles import write_archive

from pretrain.weights.files import save_encoder
from shards.format.manifest import read_manifest
from shards.pack.build import PackConfig, pack

REPOSITORY = Path(__file__).resolve().parent.parent.parent
NOTEBOOK = REPOSITORY / "docs" / "encode_tiles.ipynb"
COUNT_FIGURES = "import matplotlib.pyplot as plt\nplt.show = lambda: print('FIGURE', len(plt.gcf().axes))\n"


@pytest.fixture
def code() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_it_runs(code: list[str], tmp_path: Path) -> None:
    write_archive(tmp_path / "source", size=8)
    pack(tmp_path / "source", tmp_path / "shards", PackConfig(tiles_per_shard=3))
    told = read_manifest(tmp_path / "shards")
    known = {"wavelength_nm": told.wavelength_nm, "fwhm_nm": told.fwhm_nm, "mu": told.mean, "sigma": told.std}
    save_encoder(tmp_path / "encoder.safetensors", small_encoder().state_dict(), small_description(**known))
    program = tmp_path / "notebook.py"
    program.write_text(COUNT_FIGURES + "\n".join(code))
    files = {"ENCODER": str(tmp_path / "encoder.safetensors"), "SHARDS": str(tmp_path / "shards")}
    environment = os.environ | files | {"MPLBACKEND": "Agg", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(program)]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert "10 tiles of (202, 8, 8) -> (10, 192)" in process.stdout
    assert process.stdout.count("FIGURE") == 2


def test_its_outputs_are_stripped() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")

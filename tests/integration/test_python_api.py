"""The Python API where nothing but torch, numpy and safetensors is installed: deepspeed and rasterio are absent."""

import importlib.metadata
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from support.small_encoder import BANDS, SIZE, small_description, small_encoder

import spectralforge
from pretrain.weights.files import save_encoder

REPOSITORY = Path(__file__).resolve().parent.parent.parent
NEEDED = ("torch", "numpy", "safetensors")
ABSENT = ("deepspeed", "rasterio", "pydantic", "numba", "numcodecs", "zarr", "webdataset", "xxhash", "yaml", "tqdm")
PROGRAM = f"""
import importlib.util, sys
there = [name for name in {ABSENT!r} if importlib.util.find_spec(name)]
assert not there, there
import torch
import spectralforge
encoder = spectralforge.load_encoder(sys.argv[1])
tiles = (torch.arange({BANDS * SIZE * SIZE}) % 3000).view(1, {BANDS}, {SIZE}, {SIZE}).to(torch.int16)
torch.save(encoder.encode(tiles, encoder.wavelength_nm), sys.argv[2])
cube = spectralforge.resample(tiles, encoder.wavelength_nm, encoder.description.fwhm_nm, to=encoder)
assert torch.equal(encoder.encode(cube), encoder.encode(tiles))
"""


def _with_dependencies(names: tuple[str, ...]) -> set[str]:
    """Distributions that these need to run, on this machine."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name not in found:
            found.add(name)
            requirements = map(Requirement, importlib.metadata.requires(name) or [])
            todo += [one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture
def bare_packages(tmp_path: Path) -> Path:
    """A folder with links to what torch, numpy and safetensors consist of, and nothing else."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in _with_dependencies(NEEDED):
        distribution = importlib.metadata.distribution(name)
        tops = {Path(file).parts[0] for file in distribution.files or [] if not str(file).startswith("..")}
        for top in tops - {"__pycache__"}:
            source = Path(str(distribution.locate_file(top)))
            if source.exists() and not (folder / top).exists():
                (folder / top).symlink_to(source)
    return folder


def test_an_encoder_is_used_where_the_rest_is_not_installed(bare_packages: Path, tmp_path: Path) -> None:
    path, result = tmp_path / "encoder.safetensors", tmp_path / "features.pt"
    save_encoder(path, small_encoder().state_dict(), small_description())
    environment = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    environment["PYTHONPATH"] = f"{REPOSITORY}:{bare_packages}"
    command = [sys.executable, "-S", "-c", PROGRAM, str(path), str(result)]  # -S: no site-packages
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    tiles = (torch.arange(BANDS * SIZE * SIZE) % 3000).view(1, BANDS, SIZE, SIZE).to(torch.int16)
    assert torch.equal(torch.load(result), spectralforge.load_encoder(path).encode(tiles))


def test_what_is_absent_there_is_present_here() -> None:
    assert all(find_spec(name) for name in ABSENT if name != "deepspeed")
    assert find_spec("deepspeed")

"""Datasets of real scenes of several spectrometers, and of sample tiles as other sensors would see them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from support.documents import python_code

from finetune.encoders.band_sets import SENSORS
from shards.pack.build import PackConfig, pack
from tools import sample_sensors


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def write_arrays(folder: Path, scenes: Path) -> list[str]:
    """Write the scenes that are arrays as docs/inputs.md does it, and return their names; .mat files need SciPy."""
    names: dict = {}
    blocks = {"indian_pines": "indian_pines.npz"}
    if find_spec("scipy"):
        blocks["jasper_ridge"] = "jasperRidge2_R198.mat"
    for number, (name, file) in enumerate(blocks.items()):
        (folder / file).symlink_to(scenes / name / file)
        with inside(folder):
            exec(python_code("inputs.md", "Arrays", number), names)
    return list(blocks)


def pack_scenes(folder: Path, scenes: Path, emit: Path) -> list[str]:
    """Pack AVIRIS, AVIRIS-NG and EMIT scenes into folders of their names."""
    arrays = write_arrays(folder, scenes)
    for name in arrays:
        pack(folder / f"{name}.tif", folder / name, PackConfig(sensor=str(folder / f"{name}.tif"), size=32))
    first = min((scenes / "aviris_ng").glob("*.img"))
    pack(scenes / "aviris_ng", folder / "aviris_ng", PackConfig(sensor=str(first)))
    cut = next(path for path in emit.glob("*_ex"))
    pack(cut, folder / "emit", PackConfig(sensor=str(cut)))
    return [*arrays, "aviris_ng", "emit"]


def pack_made_sensors(folder: Path, tiles: Path, names: list[str] | None = None) -> list[str]:
    """Pack tiles of EnMAP as the sensors would see them into folders ``made-NAME``; all sensors if none are named."""
    names = names or list(SENSORS)
    assert sample_sensors.main([str(tiles), str(folder / "seen"), "--sensors", *names]) == 0
    for name in names:
        pack(folder / "seen" / name, folder / f"made-{name}", PackConfig(sensor=str(folder / f"seen/{name}.csv")))
    return [f"made-{name}" for name in names]

"""Error lines are advice that works: each case meets a line, does what it says, and then the product works."""

import re
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from support.small_encoder import BANDS as MODEL_BANDS
from support.small_encoder import small_description, small_encoder
from support.tiles import GRID, NODATA, spectra, write_tile

import spectralforge
from finetune.__main__ import main as finetune
from pretrain.weights.files import save_encoder
from shards.__main__ import main as shards
from shards.sensors.sensor import get_sensor
from tools.sample_scene import SceneOptions, make_scene

ENMAP = get_sensor("enmap")
SIZE = 8
TASK = """name: mine
description: two classes
classes:
  - {code: 1, name: water, color: "#3182bd"}
  - {code: 2, name: land, color: "#969696"}
ignore: [0]
"""


@dataclass
class Case:
    """What a user has and types.

    Attributes:
        folder: of the user's files.
        command: that is to work in the end.
        line: the error that it ended with.
    """

    folder: Path
    command: list[str]
    line: str = ""


def tiles(folder: Path, values: np.ndarray | None = None, count: int = 1, **options: object) -> Path:
    for number in range(count):
        tile = spectra(number, SIZE) if values is None else values
        write_tile(folder / f"t{number}.tif", tile, **({"nodata": NODATA} | options))  # type: ignore[arg-type]
    return folder


def pack(folder: Path, *options: str) -> list[str]:
    return ["shards", "pack", str(folder / "tiles"), str(folder / "out"), "--workers", "1", *options]


def remove_output(case: Case) -> None:
    """As the line about too many unusable tiles says."""
    assert f"repair them, remove {case.folder / 'out'} and pack again" in case.line
    shutil.rmtree(case.folder / "out")


def run(command: list[str]) -> int:
    program, *arguments = command
    try:
        return {"shards": shards, "finetune": finetune}[program](arguments)
    except SystemExit as stop:  # argparse
        return int(stop.code or 0)


# ---- pack ----


def reflectance(case: Case) -> None:
    """Percent: "store reflectance x 10000 as int16, with -32768 where nothing was measured"."""
    path = case.folder / "tiles" / "t0.tif"
    if not path.exists():
        values = spectra(0, SIZE).astype(np.float32) / 100
        values[spectra(0, SIZE) == NODATA] = np.nan
        tiles(path.parent, values, nodata=None)
        case.command = pack(case.folder)
        return
    assert "store reflectance x 10000 as int16, with -32768 where nothing was measured" in case.line
    with rasterio.open(path) as file:
        values = file.read()
    write_tile(path, np.nan_to_num(np.rint(values * 100), nan=NODATA).astype(np.int16))
    remove_output(case)


def contradiction(case: Case) -> None:
    """Two places that name other wavelengths: "correct one"."""
    path = case.folder / "tiles" / "t0.tif"
    if not path.exists():
        tiles(path.parent, wavelengths=ENMAP.wavelength_nm)
        with rasterio.open(path, "r+") as file:
            for band in file.indexes:
                file.set_band_description(band, f"{ENMAP.wavelength_nm[band - 1] + 7:.1f} nm")
        case.command = pack(case.folder)
        return
    assert "correct one" in case.line
    with rasterio.open(path, "r+") as file:
        for band in file.indexes:
            file.set_band_description(band, f"{ENMAP.wavelength_nm[band - 1]:.1f} nm")
    remove_output(case)


def other_sensor(case: Case) -> None:
    """Bands of another sensor: "name the sensor of these tiles with --sensor"."""
    centers = [500 + 5 * band for band in range(70)]
    if not case.command:
        tiles(case.folder / "tiles", spectra(0, SIZE, 70), wavelengths=centers)
        case.command = pack(case.folder)
        return
    assert "name the sensor of these tiles with --sensor" in case.line
    rows = "".join(f"{center},10\n" for center in centers)
    (case.folder / "mine.csv").write_text(f"wavelength_nm,fwhm_nm\n{rows}")
    case.command += ["--sensor", str(case.folder / "mine.csv")]
    remove_output(case)


def unknown_sensor(case: Case) -> None:
    """A sensor that nobody knows: "a CSV file with the columns wavelength_nm and fwhm_nm defines another"."""
    if not case.command:
        tiles(case.folder / "tiles", spectra(0, SIZE, 70))
        case.command = pack(case.folder, "--sensor", "mysensor")
        return
    assert "a CSV file with the columns wavelength_nm and fwhm_nm" in case.line
    rows = "".join(f"{500 + 5 * band},10\n" for band in range(70))
    (case.folder / "mysensor.csv").write_text(f"wavelength_nm,fwhm_nm\n{rows}")
    case.command[-1] = str(case.folder / "mysensor.csv")


def clouds(case: Case) -> None:
    """A product under clouds: the limit that left all tiles out, and its option."""
    if not case.command:
        product = make_scene(case.folder / "tiles", SceneOptions(size=96))
        with rasterio.open(next(product.glob("*CLOUD.TIF")), "r+") as file:
            file.write(np.ones((1, file.height, file.width), np.uint8))
        case.command = pack(case.folder, "--size", "32")
        return
    option = re.search(r"--max-cloud none", case.line)
    assert option, case.line
    case.command += option[0].split()


def scene(case: Case) -> None:
    """A scene that is no square tile: --size cuts it."""
    if not case.command:
        values = np.tile(spectra(0, SIZE), (1, 3, 5))
        write_tile(case.folder / "tiles" / "scene.tif", values, nodata=NODATA)
        case.command = pack(case.folder)
        return
    assert "--size" in case.line
    case.command += ["--size", "8"]


def bad_tiles(case: Case) -> None:
    """More damaged tiles than allowed: --max-bad."""
    if not case.command:
        tiles(case.folder / "tiles", count=4)
        (case.folder / "tiles" / "t0.tif").write_bytes(b"II*\0damaged")
        case.command = pack(case.folder)
        return
    assert "--max-bad now allows" in case.line
    case.command += ["--max-bad", "0.3"]


def splits_alone(case: Case) -> None:
    """--splits goes with --labels."""
    if not case.command:
        tiles(case.folder / "tiles", count=3)
        for name, number in (("train", 0), ("val", 1), ("test", 2)):
            (case.folder / "splits").mkdir(exist_ok=True)
            (case.folder / "splits" / f"{name}.txt").write_text(f"t{number}.tif\r\n", encoding="utf-8-sig")
            labels = np.ones((SIZE, SIZE), np.uint8)
            write_tile(case.folder / "labels" / f"t{number}.tif", labels)
        case.command = pack(case.folder, "--splits", str(case.folder / "splits"))
        return
    assert "--labels" in case.line
    case.command += ["--labels", str(case.folder / "labels")]


def packed_tar(case: Case) -> None:
    """A compressed tar can't be indexed: `pack` takes it."""
    if not case.command:
        tiles(case.folder / "raw")
        (case.folder / "tars").mkdir()
        with tarfile.open(case.folder / "tars" / "a.tar.gz", "w:gz") as archive:
            archive.add(case.folder / "raw" / "t0.tif", "t0.tif")
        case.command = ["shards", "index", str(case.folder / "tars"), "--workers", "1"]
        return
    assert "use `pack`" in case.line
    source = str(case.folder / "tars" / "a.tar.gz")
    case.command = ["shards", "pack", source, str(case.folder / "out"), "--workers", "1", "--size", "8"]


# ---- labels ----


def check(folder: Path, *options: str) -> list[str]:
    task, images, labels = folder / "mine.yaml", folder / "images", folder / "labels"
    task.write_text(TASK)
    command = ["finetune", "check", str(task), "--images", str(images), "--labels", str(labels), "--workers", "1"]
    return [*command, *options]


def labeled(folder: Path, labels: np.ndarray, **place: object) -> None:
    tiles(folder / "images", count=5)
    for number in range(5):
        path = folder / "labels" / f"t{number}.tif"
        path.parent.mkdir(exist_ok=True)
        profile = {"height": labels.shape[1], "width": labels.shape[2], "count": len(labels), "dtype": "uint8"}
        with rasterio.open(
            path, "w", driver="GTiff", **(profile | {"crs": "EPSG:32633", "transform": GRID} | place)
        ) as file:
            file.write(labels.astype(np.uint8))


def halves(size: int = SIZE) -> np.ndarray:
    """Two classes, (1, size, size)."""
    labels = np.ones((1, size, size), np.uint8)
    labels[:, :, size // 2 :] = 2
    return labels


def finer_labels(case: Case) -> None:
    """Labels of half the pixel size: --align nearest."""
    if not case.command:
        labeled(case.folder, halves(2 * SIZE), transform=GRID @ Affine.scale(0.5))
        case.command = check(case.folder)
        return
    assert "--align nearest" in case.line
    case.command += ["--align", "nearest"]


def one_hot(case: Case) -> None:
    """A band for each class: "give one band of class codes"."""
    if not case.command:
        labeled(case.folder, np.concatenate([halves() == 1, halves() == 2]))
        case.command = check(case.folder)
        return
    assert "give one band of class codes" in case.line
    labeled(case.folder, halves())


def unknown_code(case: Case) -> None:
    """A code of no class: add it to the classes or to 'ignore'."""
    if not case.command:
        labels = halves()
        labels[:, 0] = 9
        labeled(case.folder, labels)
        case.command = check(case.folder)
        return
    assert "'ignore'" in case.line
    assert "9" in case.line
    task = case.folder / "mine.yaml"
    task.write_text(TASK.replace("ignore: [0]", "ignore: [0, 9]"))


def no_such_split_tile(case: Case) -> None:
    """A line that fits two tiles: "write a longer part of its path"."""
    if not case.command:
        for year in (2021, 2022):
            labels = halves()[0]
            for number in range(3):
                write_tile(case.folder / "images" / f"{year}" / f"t{number}.tif", spectra(number + year, SIZE))
                write_tile(case.folder / "labels" / f"{year}" / f"t{number}.tif", labels)
        (case.folder / "splits").mkdir()
        for name, number in (("train", 0), ("val", 1), ("test", 2)):
            (case.folder / "splits" / f"{name}.txt").write_text(f"t{number}.tif\n")
        case.command = check(case.folder, "--splits", str(case.folder / "splits"))
        return
    assert "write a longer part of its path" in case.line
    for name, number in (("train", 0), ("val", 1), ("test", 2)):
        (case.folder / "splits" / f"{name}.txt").write_text(f"2021\\t{number}.tif\n")


# ---- predict ----


def predict_other_bands(case: Case) -> None:
    """A scene without the model's wavelengths: "resample them"."""
    told = small_description()
    scene_path = case.folder / "scene.tif"
    if not case.command:
        encoder = small_encoder()
        save_encoder(case.folder / "encoder.safetensors", encoder.state_dict(), told)
        centers = [480 + 5.0 * band for band in range(100)]
        write_tile(scene_path, spectra(0, SIZE, 100), nodata=NODATA, wavelengths=centers)
        paths = [case.folder / name for name in ("encoder.safetensors", "scene.tif", "out.tif")]
        case.command = ["finetune", "predict", *map(str, paths)]
        return
    assert "resample them" in case.line
    encoder = spectralforge.load_encoder(case.folder / "encoder.safetensors")
    with spectralforge.open_raster(scene_path) as raster:
        cube = spectralforge.resample(raster.read(), raster.wavelength_nm, raster.fwhm_nm, to=encoder)
    cube = np.where(np.isnan(cube), NODATA, np.rint(cube)).astype(np.int16)
    assert len(cube) == MODEL_BANDS
    write_tile(scene_path, cube, nodata=NODATA, wavelengths=told.wavelength_nm)


CASES: list[Callable[[Case], None]] = [
    reflectance,
    contradiction,
    other_sensor,
    unknown_sensor,
    clouds,
    scene,
    bad_tiles,
    splits_alone,
    packed_tar,
    finer_labels,
    one_hot,
    unknown_code,
    no_such_split_tile,
    predict_other_bands,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_who_follows_the_advice_gets_there(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: Callable) -> None:
    state = Case(tmp_path, [])
    case(state)
    assert run(state.command) != 0
    told = capsys.readouterr()
    lines = [line for line in (told.out + told.err).splitlines() if "error: " in line]
    assert lines, told
    assert "Traceback" not in told.err
    state.line = lines[0]
    case(state)
    assert run(state.command) == 0, capsys.readouterr()

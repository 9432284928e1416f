"""A synthetic sample in SpectralEarth's layout, for the demo and tests: `python -m tools.sample_data DEST`.

Every pixel is a mixture of six material spectra on the true 202-band wavelength axis, with spatial
patches, season, terrain illumination, residual atmosphere and sensor noise, as int16 reflectance x 10000.
Physically plausible, and made up: scores on it show that the path works, not how good a model is.

::

    DEST/
      enmap/<location>/<scene>.tif     202 bands, pixel-interleaved, some locations with two dates
      labels/<location>/<scene>.tif    uint8: classes 1 to 6, 0 where mixed or not measured
      splits/{train,val,test}.txt      60/20/20 by location
      sample.json  README.txt          how it was made
"""

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine
from tqdm import tqdm

from shards.atomic import TEMPORARY
from shards.errors import ForgeError, SourceError
from shards.sensors import NODATA, get_sensor

SENSOR = get_sensor("enmap")
NM = np.asarray(SENSOR.wavelength_nm)
CLASSES = ("cropland", "grassland", "forest", "bare soil", "built-up", "water")
"""Code 1 to 6, as finetune/tasks/sample_materials.yaml lists them."""


@dataclass(frozen=True)
class SampleOptions:
    """What fixes the sample: number of locations, tile side in pixels, seed."""

    locations: int = 30
    size: int = 128
    seed: int = 0


def make_sample(dest: Path, options: SampleOptions) -> str:
    """Make the sample in ``dest``, or leave it where it is this one already; returns a line that says which.

    Raises:
        SourceError: ``dest`` holds something else.
    """
    if dest.exists():
        found = dest / "sample.json"
        if not found.is_file() or json.loads(found.read_text()) != asdict(options):
            raise SourceError(f"{dest}: holds something else than this sample; remove it or choose another folder")
        return f"{dest}: the sample is there already"
    staged = dest.with_name(dest.name + TEMPORARY)
    shutil.rmtree(staged, ignore_errors=True)
    scenes: dict[str, list[str]] = {}
    for number in tqdm(range(options.locations), desc="sample", unit="location", mininterval=1.0):
        name = f"{1000 + 37 * number:07d}"
        scenes[name] = _write_location(staged, name, number, options)
    _write_splits(staged / "splits", scenes)
    (staged / "README.txt").write_text(str(__doc__))
    (staged / "sample.json").write_text(json.dumps(asdict(options)) + "\n")
    os.rename(staged, dest)
    tiles = sum(len(names) for names in scenes.values())
    return f"{dest}: {tiles} synthetic tiles of {options.locations} locations, {len(CLASSES)} labelled classes"


# ---- spectra: reflectance (202,), each from a few parameters ----


def _dip(centre: float, width: float) -> np.ndarray:
    return np.exp(-(((NM - centre) / width) ** 2) / 2)


LEAF_WATER = (
    0.08 * _dip(970, 30) + 0.2 * _dip(1190, 45) + 1.6 * _dip(1450, 75) + 2.6 * _dip(1940, 110) + 2.2 * _dip(2500, 260)
)
"""Absorbance of liquid water in leaves and soil, for a unit of thickness."""


def green(pigment: float, water: float, plateau: float, edge_nm: float = 715.0) -> np.ndarray:
    """Leaves: dark in the visible with a green peak, red edge, plateau broken by liquid water."""
    edge = 1 / (1 + np.exp(-(NM - edge_nm) / 14))
    visible = 0.035 + 0.05 * np.exp(-pigment) * _dip(552, 32) - 0.012 * pigment * _dip(672, 20)
    ramp = plateau * (1 - 0.00012 * np.clip(NM - 1100, 0, None))
    return visible * (1 - edge) + ramp * edge * np.exp(-water * LEAF_WATER)


def dry_leaves() -> np.ndarray:
    """Straw: no red edge, cellulose and lignin at 1730, 2100 and 2300 nm."""
    rise = 0.08 + 0.36 * (1 - np.exp(-(NM - 400) / 450))
    return rise * (1 - 0.07 * _dip(1730, 30) - 0.16 * _dip(2100, 55) - 0.14 * _dip(2300, 45))


def soil(moisture: float, clay: float) -> np.ndarray:
    """Bare soil: rising, iron at 870 nm, clay at 2205 nm, darker when moist."""
    rise = 0.05 + 0.38 * (1 - np.exp(-(NM - 400) / 650))
    return rise * (1 - 0.08 * _dip(870, 80)) * (1 - clay * _dip(2205, 22)) * np.exp(-moisture * (0.25 + LEAF_WATER))


def built_up(carbonate: float) -> np.ndarray:
    """Concrete and roofs: nearly flat, carbonate at 2340 nm."""
    return (0.16 + 0.05 * (NM - 400) / 1000 * np.exp(-(NM - 400) / 2500)) * (1 - carbonate * _dip(2340, 28))


def open_water(turbidity: float) -> np.ndarray:
    """Dark, falling from blue, black beyond 900 nm."""
    return 0.05 * np.exp(-(NM - 420) / 150) + turbidity * 0.05 * np.exp(-(((NM - 580) / 90) ** 2))


def material_spectra(season: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean spectra and their direction of variation, each (6, 202); ``season`` 0 is early summer, 1 late."""
    dry = dry_leaves()
    crop = (1 - 0.45 * season) * green(1.6, 0.9, 0.42) + 0.45 * season * dry
    grass = (1 - 0.25 * season) * green(1.2, 0.7, 0.38, 712.0) + (0.08 + 0.25 * season) * dry
    forest = green(1.9, 1.0, 0.33, 718.0)
    mean = np.stack([crop, grass, forest, soil(0.1, 0.12), built_up(0.1), open_water(0.4)])
    vary = np.stack(
        [
            0.5 * (green(2.2, 1.2, 0.46) - green(0.9, 0.5, 0.36)) - 0.06 * dry,
            0.5 * (green(1.7, 1.0, 0.42, 712.0) - green(0.7, 0.4, 0.32, 712.0)) - 0.08 * dry,
            0.4 * (green(2.2, 1.3, 0.38, 718.0) - green(1.5, 0.8, 0.27, 718.0)),
            0.5 * (soil(0.0, 0.08) - soil(0.3, 0.16)),
            0.6 * (built_up(0.02) - 0.7 * built_up(0.2)),
            0.5 * (open_water(0.9) - open_water(0.1)),
        ]
    )
    return mean, vary


# ---- places ----


def smooth_field(rng: np.random.Generator, size: int, length: float) -> np.ndarray:
    """Random field (size, size) of unit variance and correlation length in pixels."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * np.exp(-((np.pi * frequency * length) ** 2))
    field = np.fft.irfft2(spectrum, s=(size, size))
    return (field - field.mean()) / max(float(field.std()), 1e-12)


def blur(layers: np.ndarray, sigma: float) -> np.ndarray:
    """The sensor's point spread over layers (K, size, size), Gaussian with ``sigma`` in pixels."""
    size = layers.shape[-1]
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    response = np.exp(-2 * (np.pi * frequency * sigma) ** 2)
    return np.fft.irfft2(np.fft.rfft2(layers) * response, s=layers.shape[-2:])


@dataclass(frozen=True)
class Place:
    """What stays between two dates: class map (size, size), illumination and in-class variation."""

    classes: np.ndarray
    light: np.ndarray
    variation: np.ndarray


def make_place(rng: np.random.Generator, size: int) -> Place:
    """Patches of some of the classes, with terrain and variation inside them."""
    likes = rng.normal(0, 0.7, len(CLASSES)) - np.array([0, 0, 0, 0.2, 0.4, 0.6])
    scores = np.stack([smooth_field(rng, size, 7.0) + like for like in likes])
    light = 1 + 0.13 * smooth_field(rng, size, 10.0)
    return Place(scores.argmax(0), np.clip(light, 0.55, 1.45), smooth_field(rng, size, 3.0))


def render(rng: np.random.Generator, place: Place, season: float) -> tuple[np.ndarray, np.ndarray]:
    """One date of a place: int16 tile (202, size, size) and labels uint8 (size, size)."""
    size = place.classes.shape[0]
    shares = blur((place.classes[None] == np.arange(len(CLASSES))[:, None, None]).astype(np.float64), 0.7)
    mean, vary = material_spectra(season)
    variation = place.variation + 0.3 * smooth_field(rng, size, 2.0)
    mixed = mean.T @ shares.reshape(len(CLASSES), -1) + vary.T @ (shares * variation).reshape(len(CLASSES), -1)
    reflectance = np.clip(mixed, 0.0, None) * place.light.reshape(-1) * _atmosphere(rng)[:, None]
    reflectance = reflectance.reshape(-1, size, size) + _noise(rng, reflectance).reshape(-1, size, size)
    tile = np.clip(np.rint(reflectance * SENSOR.scale), -500, 12000).astype(np.int16)
    labels = np.where(shares.max(0) >= 0.7, shares.argmax(0) + 1, 0).astype(np.uint8)
    if rng.random() < 0.1:  # the rim of a swath, slanted
        row, column = np.mgrid[0:size, 0:size]
        outside = column + 0.2 * row < rng.uniform(0.1, 0.35) * size
        tile[:, outside], labels[outside] = NODATA, 0
    return tile, labels


def _atmosphere(rng: np.random.Generator) -> np.ndarray:
    """What correction leaves: gain, tilt over the spectrum, and water vapour at 940 and 1130 nm; factor (202,)."""
    gain, tilt, vapour = 1 + rng.normal(0, 0.06), rng.normal(0, 0.05), rng.normal(0, 0.05)
    return gain * (1 + tilt * (NM - 1400) / 1000) * np.exp(-vapour * (_dip(940, 14) + 1.3 * _dip(1130, 18)))


def _noise(rng: np.random.Generator, reflectance: np.ndarray) -> np.ndarray:
    """Noise (202, pixels): signal-to-noise about 350 at 495 nm and 170 at 2200 nm, and weak column stripes."""
    ratio = np.interp(NM, [420, 495, 900, 1300, 2200, 2450], [180, 350, 300, 260, 170, 90])[:, None]
    spread = 0.0006 + np.abs(reflectance) / ratio
    size = round(reflectance.shape[1] ** 0.5)
    stripes = rng.normal(0, 0.0008, (len(NM), 1, size)).repeat(size, 1).reshape(len(NM), -1)
    return rng.standard_normal(reflectance.shape, dtype=np.float32) * spread + stripes


# ---- files ----


def _write_location(folder: Path, name: str, number: int, options: SampleOptions) -> list[str]:
    rng = np.random.default_rng([options.seed, number])
    place = make_place(rng, options.size)
    dates = sorted(rng.choice(90000, size=2 if number % 4 == 1 else 1, replace=False) + 1)
    grid = Affine(30.0, 0.0, 300000.0 + 5000.0 * number, 0.0, -30.0, 5800000.0)
    for order, date in enumerate(dates):
        season = float(np.clip(rng.uniform(0, 0.4) + 0.5 * order, 0, 1))
        tile, labels = render(rng, place, season)
        _write(folder / "enmap" / name / f"{date:05d}.tif", tile, grid)
        _write(folder / "labels" / name / f"{date:05d}.tif", labels[None], grid)
    return [f"{date:05d}.tif" for date in dates]


def _write(path: Path, values: np.ndarray, grid: Affine) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = values.shape
    options = {"driver": "GTiff", "interleave": "pixel", "crs": "EPSG:32633", "transform": grid}
    with rasterio.open(path, "w", count=bands, height=height, width=width, dtype=values.dtype, **options) as file:
        file.write(values)
        file.update_tags(TIFFTAG_IMAGEDESCRIPTION="synthetic EnMAP-like tile, made up, not measured")


def _write_splits(folder: Path, scenes: dict[str, list[str]]) -> None:
    """By location; location numbers say nothing about content, so consecutive ones may be dealt out in turn."""
    folder.mkdir()
    deal = ("train", "val", "train", "test", "train")
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number, (location, names) in enumerate(scenes.items()):
        lines[deal[number % len(deal)]] += [f"{location}/{name}\n" for name in names]
    for split, entries in lines.items():
        (folder / f"{split}.txt").write_text("".join(entries))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.sample_data", description=str(__doc__).splitlines()[0])
    parser.add_argument("dest", type=Path)
    parser.add_argument("--locations", type=int, default=SampleOptions.locations, help="default: %(default)s")
    parser.add_argument("--size", type=int, default=SampleOptions.size, help="tile side in pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=SampleOptions.seed, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    if arguments.locations < 5:
        parser.error("--locations must be 5 or more: fewer can't be split")
    try:
        print(make_sample(arguments.dest, SampleOptions(arguments.locations, arguments.size, arguments.seed)))
    except ForgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

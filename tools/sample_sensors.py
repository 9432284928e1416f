"""Tiles as other sensors would see them: the same places through the bands of PRISMA, DESIS, EO-1, EMIT or Sentinel-2.

    python -m tools.sample_sensors TILES OUT [--sensors prisma emit]

Bands are computed by Gaussian spectral responses (finetune/encoders/band_sets.py); bands that the tiles don't cover are
left out. OUT/NAME holds tiles of the same names, and OUT/NAME.csv the band table for ``pack --sensor``.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import rasterio

from finetune.encoders.band_sets import SENSORS, BandSet, band_set
from shards.cli import Parser, run_command
from shards.files.atomic import atomic_path, write_atomic
from shards.progress import progress
from shards.sensors.sensor import NODATA, Sensor, get_sensor
from shards.sources.geotiff import Tile, read_tile
from shards.sources.layouts import find_tiles


def main(argv: list[str] | None = None) -> int:
    """Write the tiles of all sensors."""
    parser = Parser(prog="python -m tools.sample_sensors", description=__doc__)
    parser.add_argument("tiles", type=Path, help="folder of tiles, such as tools.sample_data makes")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--sensor", default="enmap", help="sensor of the tiles (default: %(default)s)")
    parser.add_argument("--sensors", nargs="+", choices=SENSORS, default=list(SENSORS), help="(default: all)")
    parser.set_defaults(run=_write_all)
    return run_command(parser, argv)


def _write_all(arguments: argparse.Namespace) -> None:
    sensor, tiles = get_sensor(arguments.sensor), find_tiles(arguments.tiles, arguments.sensor)
    for name in arguments.sensors:
        bands, folder = band_set(name, sensor), arguments.out / name
        for found in progress(name, len(tiles), tiles, "tile"):
            _write_tile(
                folder / found.path.removeprefix(f"{arguments.sensor}/"),
                bands,
                _read(arguments.tiles / found.path, sensor),
            )
        _write_table(folder.with_suffix(".csv"), bands)
        print(f"{folder}: {len(tiles)} tiles of {len(bands.wavelength_nm)} bands, {folder.with_suffix('.csv')}")


def _read(path: Path, sensor: Sensor) -> Tile:
    with rasterio.open(path) as file:
        size = file.height
    return read_tile(path, sensor, size)


def see(tile: np.ndarray, bands: BandSet) -> np.ndarray:
    """Return a tile, int16 (C, height, width), through a band set, int16 (N, height, width).

    A pixel that lacks one of the bands under a response is missing there.
    """
    pixels = np.where(tile == NODATA, 0, tile).reshape(len(tile), -1).astype(np.float64)
    missing = (bands.response > 0).astype(np.float64) @ (tile == NODATA).reshape(len(tile), -1)
    seen = np.where(missing > 0, NODATA, np.rint(bands.response @ pixels))
    return seen.reshape(-1, *tile.shape[1:]).astype(np.int16)


def _write_tile(path: Path, bands: BandSet, tile: Tile) -> None:
    values = see(tile.values, bands)
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "dtype": "int16", "nodata": NODATA, "count": len(values)}
    profile |= {"height": values.shape[1], "width": values.shape[2], "compress": "deflate"}
    profile |= {"crs": tile.crs, "transform": rasterio.Affine(*tile.transform)}
    with atomic_path(path) as temporary, rasterio.open(temporary, "w", **profile) as file:
        file.write(values)
        for band, (center, width) in enumerate(zip(bands.wavelength_nm, bands.fwhm_nm, strict=True), start=1):
            file.update_tags(band, wavelength=f"{center:.4f}", fwhm=f"{width:.4f}", wavelength_units="nm")


def _write_table(path: Path, bands: BandSet) -> None:
    rows = [f"{center:.4f},{width:.4f}" for center, width in zip(bands.wavelength_nm, bands.fwhm_nm, strict=True)]
    write_atomic(path, "\n".join(["wavelength_nm,fwhm_nm", *rows]) + "\n")


if __name__ == "__main__":
    sys.exit(main())

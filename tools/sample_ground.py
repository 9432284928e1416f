"""The synthetic ground that all sample products show, through the bands of any sensor."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from rasterio.transform import Affine

from shards.errors import ForgeError
from shards.sensors.resampling import response_matrix
from shards.sensors.sensor import SCALE, get_sensor
from tools.sample_tiles import Visit, make_place, render

GROUND = 320
"""Side of the ground in pixels; a product shows a part of it."""
CORNER = Affine(30.0, 0.0, 366015.0, 0.0, -30.0, 5809965.0)
EPSG = 32633
CLOCK = "101530"
"""Time of day of all products."""
ROTATION_DEG = 30.0
"""Angle of the swath of some products against the north, clockwise."""


class SceneError(ForgeError):
    """Options do not describe a valid product."""


@dataclass(frozen=True)
class SceneOptions:
    """Options of a product: side in pixels, seed of the ground, offset (right, down) of the crop, month and day."""

    size: int = 280
    seed: int = 0
    offset: tuple[int, int] = (0, 0)
    day: str = "20220724"

    @property
    def iso(self) -> str:
        """Start of the acquisition."""
        return f"{self.day[:4]}-{self.day[4:6]}-{self.day[6:]}T{CLOCK[:2]}:{CLOCK[2:4]}:{CLOCK[4:]}"

    @property
    def cut(self) -> tuple[slice, slice]:
        """The rows and columns of the ground that the product shows; raises SceneError for a crop beyond it."""
        right, down = self.offset
        if min(self.offset) < 0 or max(self.offset) + self.size > GROUND:
            raise SceneError(f"size {self.size} at offset {self.offset}: the ground has {GROUND}x{GROUND} px")
        return slice(down, down + self.size), slice(right, right + self.size)

    @property
    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows (height, 1) and columns (1, width) of the ground that the product shows."""
        rows, columns = np.ogrid[self.cut]
        return rows, columns

    @property
    def transform(self) -> Affine:
        """The transform of the crop in UTM."""
        return CORNER @ Affine.translation(*self.offset)


@lru_cache(maxsize=4)
def digital_ground(seed: int, month: int) -> np.ndarray:
    """Return the complete ground in EnMAP's kept bands, int16 (202, GROUND, GROUND), reflectance x 10000; read-only."""
    rng = np.random.default_rng(seed)
    tile, _ = render(rng, make_place(rng, GROUND), Visit(1, month / 12 - 0.4, False))
    tile.setflags(write=False)
    return tile


def reflectance(
    options: SceneOptions, wavelength_nm: np.ndarray, fwhm_nm: np.ndarray, row: np.ndarray, column: np.ndarray
) -> np.ndarray:
    """Return pixels of the ground through the bands of a sensor, float32 (bands, height, width), with a cloud.

    Bands in EnMAP's water-vapor gaps are NaN; bands beyond its range equal the outermost ones.

    Args:
        row, column: positions of the pixels on the ground, integers (height, width) or broadcastable to that.
    """
    enmap = get_sensor("enmap")
    low, high = min(enmap.wavelength_nm), max(enmap.wavelength_nm)
    matrix = response_matrix(np.clip(wavelength_nm, low, high), fwhm_nm, enmap.wavelength_nm, enmap.fwhm_nm)
    ground = digital_ground(options.seed, int(options.day[4:6]))[:, row, column]
    ground[:, flags()["cloud"][row, column]] = 7500
    values = np.tensordot(matrix.astype(np.float32), ground.astype(np.float32) / SCALE, 1)
    values[~matrix.any(1)] = np.nan
    return values


def swath_grid(options: SceneOptions) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions (row, column) on the ground of the pixels of a rotated swath of the same size; floats."""
    angle, middle = np.radians(ROTATION_DEG), (options.size - 1) / 2
    row, column = np.mgrid[0 : options.size, 0 : options.size] - middle
    right, down = options.offset
    return (
        np.cos(angle) * row + np.sin(angle) * column + middle + down,
        np.cos(angle) * column - np.sin(angle) * row + middle + right,
    )


def swath_pixels(options: SceneOptions) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns of the ground's pixels nearest to those of the rotated swath."""
    row, column = (np.rint(position).astype(int).clip(0, GROUND - 1) for position in swath_grid(options))
    return row, column


def flags() -> dict[str, np.ndarray]:
    """Return where the ground has a cloud, its shadow, haze in a corner, and cirrus; bool (GROUND, GROUND)."""
    row, column = np.mgrid[0:GROUND, 0:GROUND]
    cloud = (row - 130) ** 2 + (column - 190) ** 2 < 32**2
    shadow = (row - 150) ** 2 + (column - 165) ** 2 < 30**2
    return {
        "cloud": cloud,
        "cloud_shadow": shadow & ~cloud,
        "haze": row + column < 60,
        "cirrus": column + row >= 400,
    }


def swath_edge(size: int) -> np.ndarray:
    """Return where a product has no data, left of a slanted line; bool (size, size)."""
    row, column = np.mgrid[0:size, 0:size]
    return column < size // 4 - row // 4

"""Alignment of a label with its image: whether both cover the same ground, pixel by pixel.

Every check uses one mapping: the corners of the label's grid in the image's pixel coordinates, whatever the names of
the two coordinate reference systems.
"""

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from rasterio._err import CPLE_BaseError  # rasterio.warp raises it for PROJ errors; it has no public name
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.transform import Affine
from rasterio.warp import Resampling, reproject
from rasterio.warp import transform as transform_points

from shards.errors import TileError
from shards.sensors.sensor import NODATA
from shards.sources.grid import Grid

TOLERANCE_PX = 0.05
"""Grids whose pixels differ by less than this are the same: rounded coordinates, WGS 84 instead of ETRS89."""

EARTH_RADIUS_M = 6_371_000.0


class Mismatch(TileError):
    """A label whose pixels are not its image's; with ``covers`` it overlaps the image, so it can be resampled."""

    def __init__(self, text: str, covers: bool) -> None:
        super().__init__(text)
        self.covers = covers


@dataclass(frozen=True)
class Orientation:
    """A change of a raster's orientation: a transposition, followed by flips."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return values (height, width) in the other orientation, as a view."""
        values = values.T if self.transpose else values
        return values[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def move(self, points: np.ndarray, target: Grid) -> np.ndarray:
        """Map pixel coordinates (column, row) (N, 2) to those of the target."""
        points = points[:, ::-1] if self.transpose else points
        size, flips = np.array([target.width, target.height]), np.array([self.flip_columns, self.flip_rows])
        return np.where(flips, size - points, points)


ORIENTATIONS = [Orientation(*flags) for flags in itertools.product((False, True), repeat=3)]


def is_placed(grid: Grid) -> bool:
    """Return whether a raster has a georeference; pixel coordinates without a CRS do not count."""
    if grid.transform is None:
        return False
    a, b, c, d, e, f = grid.transform
    pixels = (abs(a), b, c, d, abs(e)) == (1, 0, 0, 0, 1) and f in (0, grid.height)
    flat = a * e == b * d  # no area on the ground
    return not flat and (grid.crs is not None or not pixels)


def find_orientation(label: Grid, image: Grid) -> Orientation:
    """Return how to turn a label onto its image if both have a georeference; otherwise their sizes must be equal.

    Raises:
        Mismatch: the pixels are not the same; the message says what differs and by how much.
    """
    if label == image:
        return Orientation()
    if not (is_placed(label) and is_placed(image)):
        if label.shape != image.shape:
            raise Mismatch(f"labels of {_size(label)} px, image of {_size(image)} px", covers=False)
        return Orientation()
    corners = _to_pixels(label, image, _corners(label))
    for orientation in ORIENTATIONS:
        same_size = image.shape == (label.shape[::-1] if orientation.transpose else label.shape)
        if same_size and np.abs(orientation.move(_corners(label), image) - corners).max() <= TOLERANCE_PX:
            return orientation
    raise _mismatch(label, image, corners)


def _mismatch(label: Grid, image: Grid, corners: np.ndarray) -> Mismatch:
    """Return an error that names the most serious difference."""
    low, high = corners.min(0), corners.max(0)
    same = _same_crs(label.crs, image.crs)
    if (high <= 0).any() or (low >= (image.width, image.height)).any():
        systems = "" if same else f" (labels in {_name(label.crs)}, image in {_name(image.crs)})"
        problem = f"the labels are elsewhere: their center is {_distance(label, image)} away{systems}"
        return Mismatch(f"{problem}; give the label of this image", covers=False)
    along_row, along_column = (corners[1] - corners[0]) / label.width, (corners[2] - corners[0]) / label.height
    scale = np.hypot(*along_row), np.hypot(*along_column)
    angle = math.degrees(math.atan2(along_row[1], along_row[0]))
    off_axis = abs(angle - 90 * round(angle / 90))
    if not same:
        what = f"labels in {_name(label.crs)}, image in {_name(image.crs)}"
    elif max(abs(scale[0] - 1) * label.width, abs(scale[1] - 1) * label.height) > TOLERANCE_PX:
        what = f"label pixels of {scale[0]:.4g} x {scale[1]:.4g} image pixels"
    elif off_axis > 0.01:
        what = f"labels rotated by {off_axis:.3g} degrees relative to the image"
    elif label.shape not in (image.shape, image.shape[::-1]):
        what = f"labels of {_size(label)} px, image of {_size(image)} px"
    else:
        what = f"labels shifted by {low[0]:+.2f} columns and {low[1]:+.2f} rows relative to the image"
    return Mismatch(f"{what}: resample them with --align nearest (data.align=nearest)", covers=True)


def covering_window(label: Grid, image: Grid) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the rows and columns of a label that cover an image, ((begin, end), (begin, end)), with a 2 px margin."""
    steps = np.linspace(0, 1, 9)
    grid = np.stack(np.meshgrid(steps * image.width, steps * image.height), -1).reshape(-1, 2)
    pixels = _to_pixels(image, label, grid)
    low, high = np.floor(pixels.min(0)).astype(int) - 2, np.ceil(pixels.max(0)).astype(int) + 2
    left, top = np.maximum(low, 0).tolist()
    right, bottom = np.minimum(high, (label.width, label.height)).tolist()
    return (top, bottom), (left, right)


def resample(codes: np.ndarray, label: Grid, image: Grid, origin: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Return the code nearest to the center of each image pixel, int64; ``NODATA`` outside the label.

    Args:
        codes: int64, the part of the label that starts at ``origin`` (row, column).
    """
    values = resample_values(codes.astype(np.float64), label, image, NODATA, origin)  # exact for codes below 2**53
    return values.astype(np.int64)


def resample_values(
    values: np.ndarray, label: Grid, image: Grid, nodata: float, origin: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """Return the value nearest to the center of each image pixel, float64; ``nodata`` outside the label.

    Args:
        values: float64, the part of the label that starts at ``origin`` (row, column).
    """
    assert label.transform is not None and image.transform is not None
    crs = label.crs or image.crs or "EPSG:3857"  # neither has one: any will do
    a, b, _, d, e, _ = label.transform
    ((x, y),) = _apply(label.transform, np.array([[origin[1], origin[0]]]))
    out = np.full(image.shape, nodata, np.float64)
    reproject(
        values,
        out,
        src_transform=Affine(a, b, x, d, e, y),
        src_crs=crs,
        src_nodata=nodata,
        dst_transform=Affine(*image.transform),
        dst_crs=image.crs or crs,
        dst_nodata=nodata,
        resampling=Resampling.nearest,
    )
    return out


def _corners(grid: Grid) -> np.ndarray:
    """Return (column, row) of the corners and the center, float64 (5, 2)."""
    width, height = grid.width, grid.height
    return np.array([(0, 0), (width, 0), (0, height), (width, height), (width / 2, height / 2)], np.float64)


def _to_pixels(source: Grid, target: Grid, points: np.ndarray) -> np.ndarray:
    """Convert pixel coordinates (column, row) (N, 2) of one grid to those of another."""
    assert source.transform is not None and target.transform is not None
    x, y = _apply(source.transform, points).T
    if not _same_crs(source.crs, target.crs):
        try:
            x, y = transform_points(source.crs, target.crs, x, y)
        except (CPLE_BaseError, CRSError):
            x = y = np.full(len(points), np.nan)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        text = f"labels in {_name(source.crs)} can't be brought to {_name(target.crs)}: give both in one CRS"
        raise Mismatch(text, covers=False)
    return _apply(tuple(~Affine(*target.transform))[:6], np.stack([x, y], -1))


def _apply(transform: tuple[float, ...], points: np.ndarray) -> np.ndarray:
    """Apply an affine transform to points (N, 2)."""
    a, b, c, d, e, f = transform
    return points @ np.array([[a, d], [b, e]]) + (c, f)


@lru_cache(maxsize=1024)
def _same_crs(first: str | None, second: str | None) -> bool:
    """Return whether two CRS are equal as objects, not as text; an unknown CRS is equal to any other."""
    if first is None or second is None or first == second:
        return True
    return CRS.from_user_input(first) == CRS.from_user_input(second)


def _distance(label: Grid, image: Grid) -> str:
    """Return the distance between the centers as text."""
    label_center, image_center = label.center(), image.center()
    assert label_center is not None and image_center is not None
    crs = (label.crs or image.crs, image.crs or label.crs)
    try:
        centers = [
            transform_points(name, "EPSG:4326", [x], [y])
            for name, (x, y) in zip(crs, (label_center, image_center), strict=True)
        ]
    except (CPLE_BaseError, CRSError):  # no CRS, or a local one
        return f"{math.dist(label_center, image_center):.4g} units"
    (lon, lat), (lon2, lat2) = (np.radians([center[0][0], center[1][0]]) for center in centers)
    half = math.sin((lat2 - lat) / 2) ** 2 + math.cos(lat) * math.cos(lat2) * math.sin((lon2 - lon) / 2) ** 2
    meters = 2 * EARTH_RADIUS_M * math.asin(math.sqrt(min(half, 1.0)))
    return f"{meters / 1000:.4g} km" if meters >= 1000 else f"{meters:.0f} m"


def _size(grid: Grid) -> str:
    return f"{grid.height}x{grid.width}"


def _name(crs: str | None) -> str:
    """Return a readable name of a CRS: its code or, without one, its name."""
    if crs is None:
        return "no CRS"
    return crs if len(crs) < 20 else crs.split('"')[1] if '"' in crs else crs[:40]

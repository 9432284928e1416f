"""Polygon labels (GeoPackage, GeoJSON, shapefile, ...), burned onto the grid of an image.

pyogrio reads the polygons, shapely transforms them to the image's coordinate reference system, and rasterio burns them.
Requires the extra ``vector``.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from rasterio._err import CPLE_BaseError  # rasterio.warp raises it for PROJ errors; it has no public name
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.features import rasterize
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points
from rasterio.warp import transform_bounds

from shards.errors import ConfigError, SourceError, TileError
from shards.sensors.sensor import NODATA
from shards.sources.alignment import is_placed
from shards.sources.grid import Grid

try:
    import pyogrio
    import shapely
    from pyogrio.errors import DataLayerError, DataSourceError
except ImportError as error:
    raise ConfigError(f"labels of polygons need {error.name}: pip install 'spectralforge[vector]'") from None

FIRST = 1000
"""Number of features whose values are checked before anything is burned."""

LONGEST_EDGE = {True: 0.02, False: 2000.0}
"""Longest edge in degrees (True) or meters (False); longer ones are subdivided, as they bend in another CRS."""


@dataclass(frozen=True)
class Layer:
    """A layer of polygons.

    Attributes:
        crs: coordinate reference system as text.
        bounds: bounds of all polygons (left, bottom, right, top) in that CRS.
        read_at_once: whether the layer is read at once, for formats without a spatial index.
    """

    path: Path
    name: str
    field: str
    crs: str
    bounds: tuple[float, float, float, float]
    read_at_once: bool

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Features:
    """Shapely geometries (N,) and the values (N,) of their field, in file order."""

    geometry: np.ndarray
    values: np.ndarray


@lru_cache(maxsize=16)
def open_layer(path: Path, field: str | None, layer: str | None = None) -> Layer:
    """Open a file of polygons and check its layer and field.

    Raises:
        SourceError: the file is missing or unreadable, or lacks the layer, the field (the message lists those that
            exist) or a CRS.
    """
    if not path.exists():
        raise SourceError(f"{path}: no such file of labels")
    try:
        layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
        if layer is None and len(layers) > 1:
            raise SourceError(
                f"{path}: several layers ({_shorten_list(layers)}): name one with --label-layer (data.label_layer)"
            )
        if not layers or layer not in (None, *layers):
            raise SourceError(
                f"{path}: no layer {layer or 'of geometries'}" + (f": {_shorten_list(layers)}" if layers else "")
            )
        info = pyogrio.read_info(path, layer=layer or layers[0], force_total_bounds=True)
    except (DataSourceError, DataLayerError) as error:
        raise SourceError(f"{path}: neither polygons nor a label raster ({str(error).splitlines()[0]})") from None
    _check_field(path, field, [str(name) for name in info["fields"]])
    if info["crs"] is None:
        raise SourceError(f"{path}: no coordinate reference system: a shapefile needs the .prj file beside it")
    left, bottom, right, top = info["total_bounds"] or (np.nan,) * 4
    if not np.isfinite([left, bottom, right, top]).all():
        raise SourceError(f"{path}: no polygons in it")
    read_at_once = info["driver"] in ("GeoJSON", "GeoJSONSeq", "KML", "GML", "TopoJSON")
    return Layer(path, layer or layers[0], str(field), info["crs"], (left, bottom, right, top), read_at_once)


def _check_field(path: Path, field: str | None, fields: list[str]) -> None:
    if field is None:
        raise SourceError(
            f"{path}: choose the field that holds the class with --label-field (data.label_field): "
            f"{_shorten_list(fields)}"
        )
    if field not in fields:
        nearest = difflib.get_close_matches(field.casefold(), [name.casefold() for name in fields], 3)
        named = [candidate for name in nearest for candidate in fields if candidate.casefold() == name]
        hint = f"did you mean {_shorten_list(named)}?" if named else f"its fields are {_shorten_list(fields)}"
        raise SourceError(f"{path}: no field '{field}': {hint}")


def _shorten_list(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"


def burn(layer: Layer, grid: Grid, names: Mapping[str, int], unnamed: int | None) -> np.ndarray:
    """Burn class codes, int64 (height, width): the code of the last polygon in the file that covers a pixel's center,
    ``NODATA`` without one. Features without a class are left out.

    Args:
        names: code of each class name in lower case, for a text field; texts of digits are codes.
        unnamed: code of other texts; None rejects them.

    Raises:
        TileError: the image has no georeference.
        SourceError: a value is not a class.
    """
    if not is_placed(grid) or grid.crs is None:
        raise TileError("the image has no georeference, so polygons can't be located on it: give label tiles")
    assert grid.transform is not None
    features = _features_on(layer, _bounds_of(layer, grid))
    known = np.array([_is_value(value) for value in features.values], dtype=bool)
    codes = [_code(layer, value, names, unnamed) for value in features.values[known].tolist()]
    shapes = [
        (shape, number)
        for shape, number in zip(_moved(features.geometry[known], layer.crs, grid.crs), range(len(codes)), strict=True)
        if shape is not None and not shape.is_empty
    ]
    if not shapes:
        return np.full(grid.shape, NODATA, np.int64)
    transform = Affine(*grid.transform)
    burned = rasterize(shapes, grid.shape, fill=-1, transform=transform, all_touched=False, dtype=np.int32)
    return np.array([*codes, NODATA], np.int64)[burned]  # index -1, no polygon, selects NODATA


def check_values(layer: Layer, names: Mapping[str, int], unnamed: int | None) -> None:
    """Raise SourceError if none of the first features has a class as its value."""
    refused = None
    for value in _read(layer, None, most=FIRST).values:
        if _is_value(value):
            try:
                _code(layer, value, names, unnamed)
                return
            except SourceError as error:
                refused = refused or error
    if refused:
        raise refused


def check_overlap(layer: Layer, grids: Iterable[Grid]) -> None:
    """Raise SourceError if no image overlaps the polygons; stops at the first that does."""
    left, bottom, right, top = layer.bounds
    placed = seen = 0
    for grid in grids:
        seen += 1
        if not is_placed(grid) or grid.crs is None:
            continue
        placed += 1
        bounds = _bounds_of(layer, grid)
        if bounds[0] <= right and bounds[2] >= left and bounds[1] <= top and bounds[3] >= bottom:
            return
    if not placed:
        raise SourceError(f"{layer}: none of {seen} images has a georeference, which polygons need: give label tiles")
    extent = f"x {left:.6g} to {right:.6g}, y {bottom:.6g} to {top:.6g} in {_crs_name(layer.crs)}"
    raise SourceError(f"{layer}: its polygons ({extent}) touch none of {seen} images")


def _bounds_of(layer: Layer, grid: Grid) -> tuple[float, float, float, float]:
    """Return an image's bounds (left, bottom, right, top) in the layer's CRS; infinite if they can't be projected."""
    assert grid.transform is not None
    a, b, c, d, e, f = grid.transform
    xs = [c + a * column + b * row for column in (0, grid.width) for row in (0, grid.height)]
    ys = [f + d * column + e * row for column in (0, grid.width) for row in (0, grid.height)]
    try:
        left, bottom, right, top = transform_bounds(grid.crs, layer.crs, min(xs), min(ys), max(xs), max(ys))
    except (CPLE_BaseError, CRSError):
        return -np.inf, -np.inf, np.inf, np.inf
    if left > right:  # crosses the antimeridian
        left, right = -180.0, 180.0
    return left, bottom, right, top


def _features_on(layer: Layer, bounds: tuple[float, float, float, float]) -> Features:
    """Return the features whose bounding boxes intersect the bounds."""
    if not layer.read_at_once:
        return _read(layer, bounds)
    features, tree = _read_whole(layer)
    chosen = np.sort(tree.query(shapely.box(*np.clip(bounds, -1e15, 1e15))))
    return Features(features.geometry[chosen], features.values[chosen])


@lru_cache(maxsize=2)
def _read_whole(layer: Layer) -> tuple[Features, Any]:
    features = _read(layer, None)
    return features, shapely.STRtree(features.geometry)


def _read(layer: Layer, bounds: tuple[float, float, float, float] | None, most: int | None = None) -> Features:
    try:
        _, ids, geometry, (values,) = pyogrio.raw.read(
            layer.path,
            layer=layer.name,
            columns=[layer.field],
            bbox=bounds,
            max_features=most,
            force_2d=True,
            return_fids=True,
        )
    except (DataSourceError, DataLayerError) as error:
        raise SourceError(f"{layer}: can't be read ({str(error).splitlines()[0]})") from None
    order = np.argsort(ids, kind="stable")  # a spatial index returns its own order
    return Features(shapely.from_wkb(geometry[order], on_invalid="ignore"), values[order])


def _moved(geometry: np.ndarray, source: str, target: str) -> np.ndarray:
    """Transform geometries to another CRS and repair self-intersections."""
    broken = ~shapely.is_valid(geometry) & ~shapely.is_missing(geometry)
    geometry = np.where(broken, shapely.make_valid(geometry), geometry) if broken.any() else geometry
    source_crs, target_crs = CRS.from_user_input(source), CRS.from_user_input(target)
    if source_crs == target_crs:
        return geometry

    def move(points: np.ndarray) -> np.ndarray:
        return np.stack(transform_points(source_crs, target_crs, points[:, 0], points[:, 1]), -1)

    return shapely.transform(shapely.segmentize(geometry, LONGEST_EDGE[source_crs.is_geographic]), move)


def _is_value(value: Any) -> bool:
    """Return whether a field has a value: neither null (NaN among numbers) nor blank text."""
    return value is not None and value == value and str(value).strip() != ""


def _code(layer: Layer, value: Any, names: Mapping[str, int], unnamed: int | None) -> int:
    """Return the class code of a field's value."""
    if isinstance(value, str):
        code = names.get(value.strip().casefold())
        if code is not None:
            return code
        if not value.strip().lstrip("-").isdecimal():
            if unnamed is not None:
                return unnamed
            known = f"is not one of {_shorten_list(sorted(names))}" if names else "is text: give a field of numbers"
            raise SourceError(f"{layer}: '{value}' in field '{layer.field}' {known}")
    try:
        code = int(value)
    except (TypeError, ValueError, OverflowError):
        code = None
    if code is None or (isinstance(value, float) and code != value):
        raise SourceError(f"{layer}: {value} in field '{layer.field}': class codes are whole numbers")
    return code


def _crs_name(text: str) -> str:
    return text if len(text) < 20 else text.split('"')[1] if '"' in text else text[:40]

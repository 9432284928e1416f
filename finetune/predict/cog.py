"""Cloud-Optimized GeoTIFFs, written row by row: tiled, with overviews, and complete or absent."""

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError  # GDAL error that rasterio.shutil doesn't wrap; it has no public name
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine
from rasterio.windows import Window

from shards.errors import ForgeError
from shards.files.atomic import atomic_path, sweep, temporary_path, write_atomic
from shards.sources.grid import Grid
from shards.sources.sidecars import LONE

Color = tuple[int, int, int, int]


class RasterError(ForgeError):
    """A raster that could not be written."""

    exit_code = 1


@dataclass(frozen=True)
class MapFormat:
    """The format of a map, without its pixels and grid.

    Attributes:
        count: number of bands.
        nodata: the value of "no data".
        names: names of the bands; may be empty.
        units: units of the bands' values; may be empty.
        tags: tags of the file, by name.
        classes: class name of each value, for a class map.
        colors: red, green, blue and opacity of each value, for a class map.
        control_points: ground control points, for a grid without a transform.
    """

    count: int
    dtype: str
    nodata: float
    names: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    classes: dict[int, str] = field(default_factory=dict)
    colors: dict[int, Color] = field(default_factory=dict)
    units: tuple[str, ...] = ()
    control_points: list[GroundControlPoint] = field(default_factory=list)


def write_cog(path: Path, raster: MapFormat, grid: Grid, rows: Iterable[np.ndarray]) -> None:
    """Write a raster; class names are stored as tags, and in ``<path>.aux.xml`` for QGIS's legend.

    Args:
        rows: all rows from the top, in arrays (count, some rows, width).

    Raises:
        RasterError: the file can't be written, for example on a full disk.
    """
    names = Path(f"{path}.aux.xml")
    sweep(path.parent, f"{path.name}.*")
    plain = temporary_path(path.with_name(f"{path.name}.rows"))
    with atomic_path(path) as optimized, rasterio.Env(**LONE), _quiet():
        try:
            _write_rows(plain, raster, grid, rows)
            _optimize(plain, optimized, raster)
            _compare(plain, optimized)
        except (RasterioError, CPLE_BaseError) as error:
            raise RasterError(f"{path}: can't be written ({_cause(error)}): is there room on the disk?") from None
        finally:
            plain.unlink(missing_ok=True)
            Path(f"{optimized}.ovr.tmp").unlink(missing_ok=True)  # left behind by GDAL if interrupted
        names.unlink(missing_ok=True)  # belongs to an older file of this name
    if raster.classes:
        write_atomic(names, _category_names(raster.classes))


def _write_rows(path: Path, raster: MapFormat, grid: Grid, rows: Iterable[np.ndarray]) -> None:
    """Write rows uncompressed, one strip per row, so that nothing is written twice."""
    profile = {"driver": "GTiff", "dtype": raster.dtype, "count": raster.count, "nodata": raster.nodata}
    layout = {"interleave": "pixel", "blockysize": 1, "bigtiff": "if_safer"}
    georeference: dict[str, Any] = {"height": grid.height, "width": grid.width, "crs": grid.crs}
    if grid.transform is not None:
        georeference["transform"] = Affine(*grid.transform)
    elif raster.control_points:
        georeference["gcps"] = raster.control_points
    with rasterio.open(path, "w", **profile, **layout, **georeference) as file:
        file.update_tags(**raster.tags)
        for band, name in enumerate(raster.names, start=1):
            file.set_band_description(band, name)
        for band, unit in enumerate(raster.units, start=1):
            file.set_band_unit(band, unit)
        if raster.classes:
            file.update_tags(1, **{f"class_{value}": name for value, name in raster.classes.items()})
        if raster.colors:
            file.write_colormap(1, raster.colors)
        begin = 0
        for part in rows:
            file.write(part, window=Window(0, begin, grid.width, part.shape[1]))
            begin += part.shape[1]


def _optimize(plain: Path, path: Path, raster: MapFormat) -> None:
    is_map = bool(raster.classes)
    rasterio.shutil.copy(
        plain,
        path,
        driver="COG",
        blocksize=256 if raster.count == 1 else 128,  # a block holds all bands
        compress="deflate",
        predictor="no" if is_map else "yes",
        overview_resampling="mode" if is_map else "average",
        bigtiff="if_safer",
    )


def _compare(plain: Path, path: Path) -> None:
    """Read everything back and compare: GDAL does not report errors on closing a file."""
    with rasterio.open(plain) as source, rasterio.open(path) as written:
        for _, window in written.block_windows(1):
            if not np.array_equal(source.read(window=window), written.read(window=window), equal_nan=True):
                raise RasterioError("reading it back gave different values")
        for factor in written.overviews(1):
            written.read(out_shape=(written.count, *(math.ceil(side / factor) for side in written.shape)))


def _category_names(classes: dict[int, str]) -> bytes:
    """Return GDAL's sidecar file, since TIFF cannot store names of values."""
    root = ElementTree.Element("PAMDataset")
    names = ElementTree.SubElement(ElementTree.SubElement(root, "PAMRasterBand", band="1"), "CategoryNames")
    for value in range(max(classes) + 1):
        ElementTree.SubElement(names, "Category").text = classes.get(value, "")
    return ElementTree.tostring(root, encoding="UTF-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings about scenes without a georeference; their maps have none either."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _cause(error: Exception) -> str:
    return (str(error.__cause__ or error) or type(error).__name__).splitlines()[0]

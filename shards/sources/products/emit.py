"""EMIT L2A reflectance (``EMIT_L2A_RFL_*.nc``) with its mask file, in NetCDF-4.

Names and fill values are those of the EMIT L2A product's user guide (LP DAAC). Reflectance is stored in sensor
geometry; the geometry lookup table (GLT) of the file places it on a north-up grid of longitudes and latitudes, by
nearest neighbors: ``location/glt_x`` and ``glt_y`` are 1-based columns and rows, 0 where there is no pixel. Files
without a lookup table are read in sensor geometry, with control points from their longitudes and latitudes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rasterio.control import GroundControlPoint
from rasterio.windows import Window

from shards.errors import SourceError, TileError
from shards.sensors.sensor import NODATA
from shards.sources.digital_numbers import LARGEST, PER_REFLECTANCE
from shards.sources.grid import Grid
from shards.sources.image import ROUNDED, SpectralImage, note_once
from shards.sources.products.glt import LookupTable
from shards.sources.products.hdf import damage, dataset, is_hdf, numbers, open_hdf, text
from shards.sources.products.product import Product, missing_wavelengths

if TYPE_CHECKING:
    import h5py

REFLECTANCE, MASK = "reflectance", "mask"
BANDS = "sensor_band_parameters"
NAME, MASK_NAME = "_RFL_", "_MASK_"
"""Parts of the file names by which a mask file is found beside its reflectance file."""

FILLS = np.array([-9999, -0.01], np.float32)
"""Values without a measurement: outside of the swath, and in bands of deep absorption by water vapor."""

FLAGS = {
    "cloud": "cloud flag",
    "cirrus": "cirrus flag",
    "water": "water flag",
    "spacecraft": "spacecraft flag",
    "dilated_cloud": "dilated cloud flag",
    "aggregate": "aggregate flag",
}
"""Names in ``mask_bands`` of each quality layer, in lower case; they differ between versions of the mask."""

LONGITUDE_LATITUDE = "EPSG:4326"

POINTS = 5
"""Control points along each side of an image in sensor geometry."""


class EmitProducts(Product):
    """EMIT L2A reflectance files."""

    def claims(self, name: str) -> bool:
        return name.lower().endswith((".nc", ".nc4"))

    def recognizes(self, path: Path) -> bool:
        if not is_hdf(path):
            return False
        with open_hdf(path) as file, damage(path):
            return BANDS in file and any(name in file for name in (REFLECTANCE, "radiance"))

    @contextmanager
    def open_image(self, path: Path) -> Iterator[SpectralImage]:
        with ExitStack() as stack:
            file = stack.enter_context(open_hdf(path))
            with damage(path):
                if REFLECTANCE not in file:
                    raise SourceError(
                        f"{path}: an EMIT L1B file holds radiance, not reflectance: order the L2A product"
                    )
                beside = path.with_name(path.name.replace(NAME, MASK_NAME))
                has_mask = NAME in path.name and beside.is_file()
                image = EmitImage(file, path, (stack.enter_context(open_hdf(beside)), beside) if has_mask else None)
            yield image


class EmitImage(SpectralImage):
    """The reflectance of an open EMIT file, on its map grid.

    Args:
        mask: the mask file and its path, or None.

    Raises:
        SourceError: a dataset is missing or contradicts another, or the mask is that of another scene.
    """

    def __init__(self, file: "h5py.File", path: Path, mask: "tuple[h5py.File, Path] | None" = None) -> None:
        self._file, self._path = file, path
        self._stored = dataset(file, REFLECTANCE, path, 3)
        centers, widths, good = (
            numbers(file.get(f"{BANDS}/{name}"), f"{BANDS}/{name}", path).ravel()
            for name in ("wavelengths", "fwhm", "good_wavelengths")
        )
        count = self._stored.shape[2]
        if not len(centers) == len(widths) == len(good) == count:
            raise SourceError(f"{path}: {count} bands, but {len(centers)} wavelengths: download it again")
        if not (centers > 0).all():
            raise missing_wavelengths(f"{path}: {BANDS}/wavelengths")
        super().__init__(str(path), range(1, 1 + count))
        self._centers, self._widths, self._good = tuple(centers.tolist()), tuple(widths.tolist()), good > 0
        start = text(file.attrs.get("time_coverage_start"))  # 2022-08-14T04:50:17+0000
        self.time = f"{start[:19].replace('-', '').replace(':', '')}Z" if len(start) >= 19 else ""
        self.scene = path.stem
        self._table = LookupTable.read(file, path, self._stored.shape[:2])
        height, width = self._stored.shape[:2]
        self._grid = self._table.grid if self._table else Grid(height, width, LONGITUDE_LATITUDE)
        if mask is not None:
            self._add_quality(*mask)
        note_once(ROUNDED)

    @property
    def wavelength_nm(self) -> tuple[float, ...]:
        return self._centers

    @property
    def fwhm_nm(self) -> tuple[float, ...]:
        return self._widths

    @property
    def good(self) -> tuple[bool, ...]:
        return tuple(self._good.tolist())

    @property
    def grid(self) -> Grid:
        return self._grid

    def control_points(self, cell: int = 1) -> list[GroundControlPoint]:
        if self._table is not None or "location/lon" not in self._file:
            return []
        lon, lat = (dataset(self._file, f"location/{name}", self._path, 2) for name in ("lon", "lat"))
        rows, columns = (np.linspace(0, side - 1, POINTS).astype(int) for side in self._grid.shape)
        return [
            GroundControlPoint(
                (row + 0.5) / cell, (column + 0.5) / cell, *(float(at[row, column]) for at in (lon, lat))
            )
            for row in rows
            for column in columns
        ]

    def read_values(self, bands: Sequence[int], window: Window | None) -> np.ndarray:
        chosen = np.asarray(bands) - 1
        bad = ~self._good[chosen]

        def convert(stored: np.ndarray) -> np.ndarray:
            missing = np.isin(stored, FILLS) | ~np.isfinite(stored)
            missing[bad] = True
            values = np.rint(np.where(missing, 0, stored) * np.float64(PER_REFLECTANCE))
            return np.where(missing | (np.abs(values) > LARGEST), NODATA, values).astype(np.int16)

        return self._gather(self._stored, chosen, window, convert, np.int16(NODATA))

    def _add_quality(self, file: "h5py.File", path: Path) -> None:
        """Add the layers of the mask file."""
        layers = dataset(file, MASK, path, 3)
        same = [text(other.attrs.get("time_coverage_start")) for other in (file, self._file)]
        if layers.shape[:2] != self._stored.shape[:2] or same[0] != same[1]:
            raise SourceError(f"{path}: the mask of another scene than {self._path.name}: download both again")
        labels = [text(name).lower() for name in dataset(file, f"{BANDS}/mask_bands", path, 1)[()]]
        for name, label in FLAGS.items():
            if label in labels:
                self.quality[name] = partial(self._flags, layers, labels.index(label))

    def _flags(self, layers: "h5py.Dataset", position: int, bands: Sequence[int], window: Window | None) -> np.ndarray:
        return self._gather(layers, np.array([position]), window, lambda stored: stored > 0, np.False_)

    def _gather(
        self,
        stored: "h5py.Dataset",
        positions: np.ndarray,
        window: Window | None,
        convert: Callable[[np.ndarray], np.ndarray],
        fill: np.generic,
    ) -> np.ndarray:
        """Read bands on the grid of the image, (len(positions), height, width).

        Args:
            convert: function of the stored values of a block; blocks are small, whole windows may not be.
            fill: value of cells without a pixel.
        """

        def read(rows: slice, columns: slice) -> np.ndarray:
            low = positions.min()
            try:
                block = stored[rows, columns, low : positions.max() + 1]
            except (OSError, RuntimeError) as error:
                raise TileError(f"{self.name}: can't be read ({error}): download it again") from None
            return convert(np.moveaxis(block[..., positions - low], -1, 0))

        window = Window(0, 0, self._grid.width, self._grid.height) if window is None else window
        if self._table is None:
            return read(*window.toslices())
        gathered = np.full((len(positions), int(window.height), int(window.width)), fill)
        self._table.gather(read, window, gathered)
        return gathered

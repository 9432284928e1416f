"""Small products in the native files of other sensors than EnMAP, with the names and structure of the documented ones.

None of their bytes come from a real product. Each function writes the product of some options into a folder and returns
its path: the file or folder to name in commands.
"""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import rasterio

from tools.sample_ground import (
    CLOCK,
    EPSG,
    ROTATION_DEG,
    SceneOptions,
    flags,
    reflectance,
    swath_edge,
    swath_grid,
    swath_pixels,
)
from tools.sample_rasters import make_desis, make_envi, make_hyperion

Bands = tuple[np.ndarray, np.ndarray]
"""Centers and widths in nm."""

LON, LAT, DEGREES = 13.0, 52.4, 0.00054
"""Corner and pixel size of EMIT's map grid; DEGREES is 60 m of latitude."""


def prisma_bands() -> tuple[Bands, Bands]:
    """Return VNIR and SWIR bands in the order of the cubes; bands that don't exist have the center 0."""
    vnir = np.concatenate([np.zeros(3), np.linspace(972.6, 402.5, 63)])
    swir = np.concatenate([np.linspace(2496.9, 943.3, 171), np.zeros(2)])
    return (vnir, np.where(vnir > 0, 12.0, 0)), (swir, np.where(swir > 0, 11.0, 0))


def make_prisma(dest: Path, options: SceneOptions) -> Path:
    """Write a PRISMA L2D product: uint16 (row, band, column) from 0 to 65535 for reflectance 0 to 1."""
    dest.mkdir(parents=True, exist_ok=True)
    start = f"{options.day}{CLOCK}"
    path = dest / f"PRS_L2D_STD_{start}_{start}_{options.seed + 1:04d}.he5"
    transform = options.transform
    last = options.size - 1
    (west, north), (east, south) = transform @ (0.5, 0.5), transform @ (last + 0.5, last + 0.5)
    with _create(path) as file:
        file.attrs["Product_ID"] = np.bytes_("PRS_L2D_STD")
        file.attrs["Product_StartTime"] = np.bytes_(f"{options.iso}.000")
        file.attrs["Epsg_Code"] = np.uint32(EPSG)
        corners = {"ULcorner": (west, north), "LRcorner": (east, south)}
        for corner, (x, y) in corners.items():
            file.attrs[f"Product_{corner}_easting"], file.attrs[f"Product_{corner}_northing"] = x, y
        fields = file.create_group("HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields")
        for name, (centers, widths) in zip(("Vnir", "Swir"), prisma_bands(), strict=True):
            file.attrs[f"List_Cw_{name}"] = centers.astype(np.float32)
            file.attrs[f"List_Cw_{name}_Flags"] = (centers > 0).astype(np.uint8)
            file.attrs[f"List_Fwhm_{name}"] = widths.astype(np.float32)
            file.attrs[f"L2Scale{name}Min"], file.attrs[f"L2Scale{name}Max"] = np.float32(0), np.float32(1)
            cube = np.zeros((len(centers), options.size, options.size), np.float32)
            cube[centers > 0] = reflectance(options, centers[centers > 0], widths[centers > 0], *options.pixels)
            stored = np.rint(65535 * np.nan_to_num(cube.clip(0, 1))).astype(np.uint16)
            errors = np.broadcast_to(3 * flags()["cloud"][options.cut], stored.shape).astype(np.uint8)
            stored[:, swath_edge(options.size)], errors[:, swath_edge(options.size)] = 0, 1
            fields[f"{name.upper()}_Cube"] = stored.transpose(1, 0, 2)
            fields[f"{name.upper()}_PIXEL_L2_ERR_MATRIX"] = errors.transpose(1, 0, 2)
        lines = LAT - DEGREES * np.arange(options.size, dtype=np.float32)[:, None]
        geolocation = file.create_group("HDFEOS/SWATHS/PRS_L2D_HCO/Geolocation Fields")
        geolocation["Latitude"] = np.broadcast_to(lines, (options.size, options.size))
    return path


def lookup_table(options: SceneOptions) -> tuple[np.ndarray, np.ndarray]:
    """Return a GLT of the north-up grid: 1-based columns and rows of the swath, 0 where it has no pixel; int32."""
    angle, middle = np.radians(ROTATION_DEG), (options.size - 1) / 2
    row, column = np.mgrid[0 : options.size, 0 : options.size] - middle
    y = np.rint(np.cos(angle) * row - np.sin(angle) * column + middle)
    x = np.rint(np.cos(angle) * column + np.sin(angle) * row + middle)
    inside = (x >= 0) & (x < options.size) & (y >= 0) & (y < options.size)
    return np.where(inside, x + 1, 0).astype(np.int32), np.where(inside, y + 1, 0).astype(np.int32)


def emit_bands() -> Bands:
    """Return EMIT's 285 bands, evenly spaced."""
    return np.linspace(381.0, 2492.9, 285), np.full(285, 8.6)


MASKS = (
    "Cloud flag",
    "Cirrus flag",
    "Water flag",
    "Spacecraft Flag",
    "Dilated Cloud Flag",
    "AOD550",
    "H2O (g cm-2)",
    "Aggregate Flag",
)


def make_emit(dest: Path, options: SceneOptions) -> Path:
    """Write an EMIT L2A reflectance file with its mask file, in sensor geometry with a lookup table."""
    dest.mkdir(parents=True, exist_ok=True)
    granule = f"001_{options.day}T{CLOCK}_{2222600 + options.seed}_001"
    path = dest / f"EMIT_L2A_RFL_{granule}.nc"
    centers, widths = emit_bands()
    pixels = swath_pixels(options)
    values = reflectance(options, centers, widths, *pixels)
    good = np.isfinite(values[:, 0, 0])
    values[~good] = -0.01
    with _create(path) as file:
        _emit_common(file, options)
        file["reflectance"] = np.moveaxis(values, 0, -1).astype(np.float32)
        file["reflectance"].attrs["_FillValue"] = np.float32(-9999)
        file["reflectance"][0] = -9999
        parameters = file.create_group("sensor_band_parameters")
        parameters["wavelengths"], parameters["fwhm"] = centers.astype(np.float32), widths.astype(np.float32)
        parameters["good_wavelengths"] = good.astype(np.float32)
    layers = np.zeros((len(MASKS), options.size, options.size), np.float32)
    layers[0], layers[1] = (flags()[name][pixels] for name in ("cloud", "cirrus"))
    layers[4], layers[7] = layers[0], layers[0]
    with _create(path.with_name(f"EMIT_L2A_MASK_{granule}.nc")) as file:
        _emit_common(file, options)
        file["mask"] = np.moveaxis(layers, 0, -1)
        file["sensor_band_parameters/mask_bands"] = np.array(MASKS, dtype=object)
    return path


def _create(path: Path) -> h5py.File:
    """Create an HDF5 file; raises FileExistsError that names it."""
    path.touch(exist_ok=False)
    return h5py.File(path, "w")


def _emit_common(file: h5py.File, options: SceneOptions) -> None:
    """Write the attributes and locations that both files of a granule have."""
    file.attrs["time_coverage_start"], file.attrs["instrument"] = f"{options.iso}+0000", "EMIT"
    west, north = LON + DEGREES * options.offset[0], LAT - DEGREES * options.offset[1]
    file.attrs["geotransform"] = np.array([west, DEGREES, 0.0, north, 0.0, -DEGREES])
    file.attrs["spatial_ref"] = rasterio.crs.CRS.from_epsg(4326).to_wkt()
    row, column = swath_grid(options)
    file["location/lon"], file["location/lat"] = LON + DEGREES * (column + 0.5), LAT - DEGREES * (row + 0.5)
    file["location/glt_x"], file["location/glt_y"] = lookup_table(options)


PRODUCTS: dict[str, Callable[[Path, SceneOptions], Path]] = {
    "prisma": make_prisma,
    "emit": make_emit,
    "desis": make_desis,
    "eo1": make_hyperion,
    "envi": make_envi,
}
"""Writer of each product's sample."""

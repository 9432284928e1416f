"""Small products whose images are plain rasters: DESIS L2A, EO-1 Hyperion L1T, and ENVI on a rotated grid.

None of their bytes come from a real product. Each function writes the product of some options into a folder and returns
its path: the file or folder to name in commands.
"""

import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from shards.sensors.sensor import NODATA, SCALE, get_sensor
from tools.sample_ground import CLOCK, EPSG, ROTATION_DEG, SceneOptions, flags, reflectance, swath_edge, swath_pixels

HYPERION_BANDS = 242
ENVI_M = 30.0
"""Pixel size of the ENVI sample."""


def make_desis(dest: Path, options: SceneOptions) -> Path:
    """Write a DESIS L2A product, a zip file of the spectral image, METADATA.xml and the quality layers."""
    dest.mkdir(parents=True, exist_ok=True)
    stem = f"DESIS-HSI-L2A-DT{options.seed + 483531728:010d}_007-{options.day}T{CLOCK}-V0210"
    desis = get_sensor("desis")
    values = reflectance(options, np.array(desis.wavelength_nm), np.array(desis.fwhm_nm), *options.pixels)
    image = np.rint(SCALE * values).astype(np.int16)
    image[:, swath_edge(options.size)] = NODATA
    layers = np.zeros((10, options.size, options.size), np.uint8)  # of shadow, land, snow, haze, cloud, water, ...
    cut = {name: layer[options.cut] for name, layer in flags().items()}
    layers[0], layers[3], layers[5] = cut["cloud_shadow"], cut["haze"], cut["cloud"]
    layers[1] = ~cut["cloud"]
    path = dest / f"{stem}.zip"
    with zipfile.ZipFile(path, "x") as file:
        file.writestr(f"{stem}-SPECTRAL_IMAGE.tif", _geotiff(image, options, NODATA))
        file.writestr(f"{stem}-QL_QUALITY-2.tif", _geotiff(layers, options, None))
        file.writestr(f"{stem}-METADATA.xml", _desis_metadata(options))
    return path


def _desis_metadata(options: SceneOptions) -> bytes:
    """Return the elements of METADATA.xml that describe the pixels, under their documented names."""
    root = ElementTree.Element("hsi_doc")
    coverage = ElementTree.SubElement(ElementTree.SubElement(root, "base"), "temporalCoverage")
    ElementTree.SubElement(coverage, "startTime").text = f"{options.iso}Z"
    bands = ElementTree.SubElement(ElementTree.SubElement(root, "specific"), "bandCharacterisation")
    desis = get_sensor("desis")
    for number, (center, width) in enumerate(zip(desis.wavelength_nm, desis.fwhm_nm, strict=True), start=1):
        band = ElementTree.SubElement(bands, "band")
        texts = {"bandNumber": number, "wavelengthCenterOfBand": center, "wavelengthWidthOfBand": width}
        for name, value in (texts | {"gainOfBand": "0.0001", "offsetOfBand": "0"}).items():
            ElementTree.SubElement(band, name).text = str(value)
    return ElementTree.tostring(root, xml_declaration=True, encoding="UTF-8")


def make_hyperion(dest: Path, options: SceneOptions) -> Path:
    """Write the folder of an EO-1 Hyperion L1T product: radiance x 40 or x 80, one GeoTIFF a band, and the MTL file."""
    stem = f"EO1H{options.seed + 193:03d}024{options.day[:4]}184110K3"
    folder = dest / stem
    folder.mkdir(parents=True)
    eo1 = get_sensor("eo1")
    centers = np.array(eo1.wavelength_nm)
    values = np.nan_to_num(reflectance(options, centers, np.array(eo1.fwhm_nm), *options.pixels))
    # The sun at 45 degrees as a black body of 5778 K: spectral irradiance in W / (m^2 um).
    sunlight = 2.55e16 / centers**5 / np.expm1(1.4388e7 / 5778 / centers)
    numbers = [*range(8, 58), *range(77, 225)]
    factors = np.where(np.array(numbers) <= 70, 40, 80)
    radiance = np.rint((sunlight * factors)[:, None, None] * (values + 0.01) * 0.7 / np.pi).astype(np.int16)
    radiance[:, swath_edge(options.size)] = 0
    stored = dict(zip(numbers, radiance, strict=True))
    nothing = np.zeros((options.size, options.size), np.int16)
    lines = ["GROUP = L1_METADATA_FILE", "  GROUP = PRODUCT_METADATA", '    SPACECRAFT_ID = "EO1"']
    lines += [
        '    SENSOR_ID = "HYPERION"',
        f"    ACQUISITION_DATE = {options.iso[:10]}",
        '    START_TIME = "205 10:15:30"',
    ]
    for band in range(1, HYPERION_BANDS + 1):
        name = f"{stem}_B{band:03d}_L1T.TIF"
        (folder / name).write_bytes(_geotiff(stored.get(band, nothing)[None], options, None))
        lines.append(f'    BAND{band}_FILE_NAME = "{name}"')
    lines += ["  END_GROUP = PRODUCT_METADATA", "  GROUP = RADIANCE_SCALING", "    SCALING_FACTOR_VNIR = 40.000000"]
    lines += [
        "    SCALING_FACTOR_SWIR = 80.000000",
        "  END_GROUP = RADIANCE_SCALING",
        "END_GROUP = L1_METADATA_FILE",
        "END",
    ]
    (folder / f"{stem}_MTL_L1T.TXT").write_text("\n".join(lines) + "\n")
    return folder


def envi_bands() -> tuple[np.ndarray, np.ndarray]:
    """Return centers and widths of AVIRIS-NG's 425 bands in nm, evenly spaced."""
    return np.linspace(376.9, 2500.1, 425), np.full(425, 5.8)


def make_envi(dest: Path, options: SceneOptions) -> Path:
    """Write float32 reflectance in ENVI's format (BIL) on a rotated grid, as AVIRIS-NG's are, with a bad-band list."""
    dest.mkdir(parents=True, exist_ok=True)
    path = dest / f"ang{options.day}t{CLOCK}_corr_v2_img"
    centers, widths = envi_bands()
    values = reflectance(options, centers, widths, *swath_pixels(options))
    good = np.isfinite(values[:, 0, 0])
    values[~good], values[:, swath_edge(options.size)] = 0, -9999
    with open(path, "xb") as file:
        values.transpose(1, 0, 2).astype("<f4").tofile(file)
    x, y = options.transform @ swath_corner(options)
    lists = {
        "map info": f"UTM, 1, 1, {x}, {y}, {ENVI_M}, {ENVI_M}, 33, North, WGS-84, rotation={-ROTATION_DEG}",
        "wavelength": ", ".join(f"{center:.2f}" for center in centers),
        "fwhm": ", ".join(f"{width:.2f}" for width in widths),
        "bbl": ", ".join(str(int(is_good)) for is_good in good),
    }
    entries: dict[str, object] = {
        "samples": options.size,
        "lines": options.size,
        "bands": 425,
        "header offset": 0,
        "data type": 4,
    }
    entries |= {"interleave": "bil", "byte order": 0, "data ignore value": -9999, "wavelength units": "Nanometers"}
    entries |= {"acquisition time": f"{options.iso}Z"} | {name: f"{{ {text} }}" for name, text in lists.items()}
    header = "\n".join(["ENVI", *(f"{name} = {value}" for name, value in entries.items())])
    path.with_name(f"{path.name}.hdr").write_text(f"{header}\n")
    return path


def swath_corner(options: SceneOptions) -> tuple[float, float]:
    """Return the upper left corner of the rotated swath, in (column, row) of the crop."""
    angle, middle = np.radians(ROTATION_DEG), options.size / 2
    return (
        middle - middle * np.cos(angle) + middle * np.sin(angle),
        middle - middle * np.cos(angle) - middle * np.sin(angle),
    )


def _geotiff(values: np.ndarray, options: SceneOptions, nodata: float | None) -> bytes:
    """Return the bytes of a GeoTIFF (bands, height, width)."""
    count, height, width = values.shape
    profile = {"driver": "GTiff", "dtype": values.dtype, "count": count, "height": height, "width": width}
    place: dict[str, Affine | str] = {"transform": options.transform, "crs": f"EPSG:{EPSG}"}
    with MemoryFile() as memory:
        with memory.open(**profile, **place, nodata=nodata) as file:
            file.write(values)
        return memory.read()

"""A small product in the native files of a sensor: EnMAP L2A, PRISMA L2D, EMIT L2A, DESIS L2A, EO-1 Hyperion L1T, ENVI.

Used in tests and the documentation of `python -m shards pack`. The spectra are those of tools/sample_data.py, and the
ground is synthetic. Products with the same seed show the same ground, cropped at an offset.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import rasterio
from rasterio.transform import Affine

from shards.cli import Parser, not_negative, positive, run_command, whole_number
from shards.errors import ForgeError
from shards.sensors.sensor import NODATA, get_sensor
from tools.sample_ground import EPSG, GROUND, SceneOptions, digital_ground, flags, swath_edge

OTHERS = ("prisma", "emit", "desis", "eo1", "envi")
"""Products of tools/sample_products.py, which is imported on demand: most callers make EnMAP's and need no HDF5."""


def make_scene(dest: Path, options: SceneOptions) -> Path:
    """Write an EnMAP product's folder into ``dest`` and return it; raise SceneError for a crop beyond the ground."""
    cut, name = options.cut, _name(options)
    folder = dest / name
    folder.mkdir(parents=True)
    layers = {name: layer[cut] for name, layer in _quality().items()}
    image = _image(options)[:, *cut]
    image[:, layers["CLOUD"] > 0] = 7500
    image[:, swath_edge(options.size)] = NODATA
    _write(folder / f"{name}-SPECTRAL_IMAGE.TIF", image, options.transform, NODATA)
    for layer_name, layer in layers.items():
        _write(folder / f"{name}-QL_QUALITY_{layer_name}.TIF", layer[None], options.transform, None)
    (folder / f"{name}-METADATA.XML").write_bytes(_metadata(options))
    return folder


def _name(options: SceneOptions) -> str:
    """Return the file name stem of the product."""
    return f"ENMAP01-____L2A-DT{options.seed + 1049:010d}_{options.day}T101530Z_001_V010400_20231221T134421Z"


def _image(options: SceneOptions) -> np.ndarray:
    """Return the complete ground as int16 (224, GROUND, GROUND), with noise in the water-vapor gaps."""
    rng, sensor = np.random.default_rng(options.seed), get_sensor("enmap")
    image = rng.integers(-30, 60, (len(sensor.product_wavelength_nm), GROUND, GROUND)).astype(np.int16)
    image[list(sensor.kept)] = digital_ground(options.seed, int(options.day[4:6]))
    return image


def _quality() -> dict[str, np.ndarray]:
    """Return the quality layers of the ground, uint8; cirrus has the levels 1 to 3, and there is no snow."""
    row, column = np.mgrid[0:GROUND, 0:GROUND]
    layers = {name.upper().replace("_", ""): layer for name, layer in flags().items()}
    layers |= {"CIRRUS": np.clip((column + row - 360) // 40, 0, 3), "SNOW": np.zeros((GROUND, GROUND))}
    return {name: layer.astype(np.uint8) for name, layer in layers.items()}


def _write(path: Path, values: np.ndarray, transform: Affine, nodata: float | None) -> None:
    profile = {
        "driver": "GTiff",
        "dtype": values.dtype,
        "count": len(values),
        "crs": f"EPSG:{EPSG}",
        "transform": transform,
    }
    shape = {"height": values.shape[1], "width": values.shape[2]}
    tiling = {"tiled": True, "blockxsize": 128, "blockysize": 128}
    with rasterio.open(path, "w", **profile, **shape, **tiling, nodata=nodata) as file:
        file.write(values)


def _metadata(options: SceneOptions) -> bytes:
    """Return the elements of METADATA.XML that describe the pixels, under their real names."""
    root = ElementTree.Element("level_X")
    base = ElementTree.SubElement(root, "base")
    ElementTree.SubElement(base, "level").text = "L2A"
    coverage = ElementTree.SubElement(base, "temporalCoverage")
    day = f"{options.day[:4]}-{options.day[4:6]}-{options.day[6:]}"
    ElementTree.SubElement(coverage, "startTime").text = f"{day}T10:15:30.160668Z"
    ElementTree.SubElement(coverage, "stopTime").text = f"{day}T10:15:34.695369Z"
    specific = ElementTree.SubElement(root, "specific")
    ElementTree.SubElement(specific, "backgroundValue").text = str(NODATA)
    bands = ElementTree.SubElement(specific, "bandCharacterisation")
    for number, center in enumerate(get_sensor("enmap").product_wavelength_nm, start=1):
        band = ElementTree.SubElement(bands, "bandID", number=str(number))
        texts = {"wavelengthCenterOfBand": f"{center:.3f}", "GainOfBand": "0.0001", "OffsetOfBand": "0"}
        for name, text in texts.items():
            ElementTree.SubElement(band, name).text = text
    return ElementTree.tostring(root, xml_declaration=True, encoding="UTF-8")


def main(argv: list[str] | None = None) -> int:
    """Make one product and return the exit code."""
    return run_command(build_parser(), argv)


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="python -m tools.sample_scene", description=__doc__)
    parser.add_argument("dest", type=Path, help="folder that the product goes into")
    parser.add_argument("--product", choices=("enmap", *OTHERS), default="enmap", help="default: %(default)s")
    parser.add_argument("--size", type=positive, default=280, help="side in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=not_negative, default=0, help="of the ground (default: %(default)s)")
    parser.add_argument(
        "--offset", type=_offset, default="0,0", metavar="X,Y", help="pixels right and down (default: %(default)s)"
    )
    parser.add_argument("--day", default="20220724", help="YYYYMMDD (default: %(default)s)")
    parser.set_defaults(run=_make)
    return parser


def _make(arguments: argparse.Namespace) -> None:
    options = SceneOptions(arguments.size, arguments.seed, arguments.offset, arguments.day)
    try:
        print(_writer(arguments.product)(arguments.dest, options))
    except FileExistsError as error:
        raise ForgeError(f"{error.filename} exists: remove it, or choose another --day or folder") from None


def _writer(product: str) -> Callable[[Path, SceneOptions], Path]:
    if product not in OTHERS:
        return make_scene
    from tools.sample_products import PRODUCTS

    return PRODUCTS[product]


def _offset(text: str) -> tuple[int, int]:
    """Parse ``X,Y``."""
    right, _, down = text.partition(",")
    return whole_number(right, "X,Y in pixels"), whole_number(down, "X,Y in pixels")


if __name__ == "__main__":
    sys.exit(main())

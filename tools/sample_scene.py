"""A small EnMAP L2A product in the real format: METADATA.XML, SPECTRAL_IMAGE and the quality layers.

Used in tests and the documentation of `python -m shards pack`. The spectra are those of tools/sample_data.py, and the
ground is synthetic. Products with the same seed show the same ground, cropped at an offset.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import rasterio
from rasterio.transform import Affine

from shards.cli import Parser, not_negative, positive, run_command, whole_number
from shards.errors import ForgeError
from shards.sensors.sensor import NODATA, get_sensor
from tools.sample_tiles import Visit, make_place, render

GROUND = 320
"""Side of the ground in pixels; a product shows a part of it."""
CORNER = Affine(30.0, 0.0, 366015.0, 0.0, -30.0, 5809965.0)
CRS = "EPSG:32633"


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
    def name(self) -> str:
        """File name stem of the product."""
        return f"ENMAP01-____L2A-DT{self.seed + 1049:010d}_{self.day}T101530Z_001_V010400_20231221T134421Z"


def make_scene(dest: Path, options: SceneOptions) -> Path:
    """Write the product's folder into ``dest`` and return it; raise SceneError for a crop beyond the ground."""
    right, down = options.offset
    if min(options.offset) < 0 or max(options.offset) + options.size > GROUND:
        raise SceneError(f"size {options.size} at offset {options.offset}: the ground has {GROUND}x{GROUND} px")
    folder = dest / options.name
    folder.mkdir(parents=True)
    cut = (slice(down, down + options.size), slice(right, right + options.size))
    layers = {name: layer[cut] for name, layer in _quality(options).items()}
    image = _image(options)[:, *cut]
    image[:, layers["CLOUD"] > 0] = 7500
    _add_swath_edge(image)
    transform = CORNER @ Affine.translation(right, down)
    _write(folder / f"{options.name}-SPECTRAL_IMAGE.TIF", image, transform, NODATA)
    for name, layer in layers.items():
        _write(folder / f"{options.name}-QL_QUALITY_{name}.TIF", layer[None], transform, None)
    (folder / f"{options.name}-METADATA.XML").write_bytes(_metadata(options))
    return folder


def _image(options: SceneOptions) -> np.ndarray:
    """Return the complete ground as int16 (224, GROUND, GROUND), with noise in the water-vapor gaps."""
    rng, sensor = np.random.default_rng(options.seed), get_sensor("enmap")
    tile, _ = render(rng, make_place(rng, GROUND), Visit(1, int(options.day[4:6]) / 12 - 0.4, False))
    image = rng.integers(-30, 60, (len(sensor.product_wavelength_nm), GROUND, GROUND)).astype(np.int16)
    image[list(sensor.kept)] = tile
    return image


def _quality(options: SceneOptions) -> dict[str, np.ndarray]:
    """Return the quality layers of the ground, uint8: a cloud and its shadow, cirrus, haze in a corner, no snow."""
    row, column = np.mgrid[0:GROUND, 0:GROUND]
    cloud = (row - 130) ** 2 + (column - 190) ** 2 < 32**2
    shadow = (row - 150) ** 2 + (column - 165) ** 2 < 30**2
    veil = np.clip((column + row - 360) // 40, 0, 3)
    layers = {
        "CLOUD": cloud,
        "CLOUDSHADOW": shadow & ~cloud,
        "HAZE": row + column < 60,
        "CIRRUS": veil,
        "SNOW": np.zeros_like(cloud),
    }
    return {name: layer.astype(np.uint8) for name, layer in layers.items()}


def _add_swath_edge(image: np.ndarray) -> None:
    """Set pixels left of a slanted line to no data."""
    row, column = np.mgrid[0 : image.shape[1], 0 : image.shape[2]]
    image[:, column < 70 - row // 4] = NODATA


def _write(path: Path, values: np.ndarray, transform: Affine, nodata: float | None) -> None:
    profile = {"driver": "GTiff", "dtype": values.dtype, "count": len(values), "crs": CRS, "transform": transform}
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
    parser.add_argument("dest", type=Path, help="folder that the product's folder goes into")
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
        print(make_scene(arguments.dest, options))
    except FileExistsError as error:
        raise ForgeError(f"{error.filename} exists: remove it, or choose another --day or folder") from None


def _offset(text: str) -> tuple[int, int]:
    """Parse ``X,Y``."""
    right, _, down = text.partition(",")
    return whole_number(right, "X,Y in pixels"), whole_number(down, "X,Y in pixels")


if __name__ == "__main__":
    sys.exit(main())

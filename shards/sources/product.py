"""EnMAP L2A products: recognition by file name, and parsing of METADATA.XML."""

import math
import os
import re
import zipfile
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers.expat import ExpatError, ParserCreate

from shards.errors import SourceError
from shards.sources.walk import is_data, member_name

METADATA = "-METADATA.XML"
OTHERS = re.compile(r"(^|/)DESIS-", re.IGNORECASE)
"""Products of other sensors with a METADATA.XML."""
PATCH = re.compile(r"-Y[0-9]+_X[0-9]+-METADATA", re.IGNORECASE)
GAIN = 0.0001


def is_product(path: Path) -> bool:
    """Return whether a path is a product: a folder or zip file with one METADATA.XML.

    Raises:
        SourceError: a zip file is unreadable or holds several products.
    """
    names = metadata_names(path)
    if len(names) > 1:
        raise SourceError(f"{path}: {len(names)} products in one folder; give each its own folder")
    return bool(names)


def metadata_names(path: Path) -> list[str]:
    """Return the names of the metadata files in a folder or zip file; an empty list for anything else.

    Raises:
        SourceError: a zip file is unreadable; it must not be skipped silently.
    """
    if path.is_dir():
        names = [entry.name for entry in os.scandir(path)]
    elif path.suffix.lower() == ".zip" and path.is_file():
        names = zip_names(path)
    else:
        return []
    return sorted(name for name in names if is_metadata(name))


def is_metadata(name: str) -> bool:
    """Return whether a file is the METADATA.XML of an EnMAP product rather than of a patch cut from one."""
    if not name.upper().endswith(METADATA) or PATCH.search(name) or OTHERS.search(name):
        return False
    return is_data(member_name(name))


def zip_names(path: Path) -> list[str]:
    """Return the member names of a zip file; raises SourceError if it can't be read."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.namelist()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise SourceError(f"{path}: not a readable zip file ({error}); download it again or move it away") from None


def vsizip(path: Path) -> str:
    """Return GDAL's name of a zip file, in braces, which allow any extension."""
    return f"/vsizip/{path}" if path.suffix.lower() == ".zip" else f"/vsizip/{{{path}}}"


@dataclass(frozen=True)
class Metadata:
    """The fields of METADATA.XML that tiles need.

    Attributes:
        time: start of the acquisition, ``YYYYMMDDTHHMMSSZ``.
        wavelength_nm: band centers in nm, in the order of the image.
        background: pixel value that means "no measurement".
        fwhm_nm: full widths at half maximum in nm, in the order of the image; None unless all are given.
    """

    time: str
    wavelength_nm: tuple[float, ...]
    background: float
    fwhm_nm: tuple[float, ...] | None = None

    @classmethod
    def parse(cls, text: bytes, name: str) -> "Metadata":
        """Parse the XML; raises SourceError if a field is missing or reflectance has another scale."""
        try:
            refuse_doctype(text)
            root = ElementTree.fromstring(text)
            start = datetime.fromisoformat(child_text(root, ".//temporalCoverage/startTime"))
            bands = root.findall(".//bandCharacterisation/bandID")
            centers = tuple(float(child_text(band, "wavelengthCenterOfBand")) for band in bands)
            widths = tuple(float(band.findtext("FWHMOfBand", "nan")) for band in bands)
            scales = {tuple(float(child_text(band, f"{name}OfBand")) for name in ("Gain", "Offset")) for band in bands}
            background = float(child_text(root, ".//backgroundValue"))
        except (ElementTree.ParseError, ExpatError, ValueError, LookupError, RecursionError) as error:
            raise SourceError(f"{name}: not the metadata of an EnMAP L2A product ({error})") from None
        if scales != {(GAIN, 0.0)}:
            odd = sorted(scales - {(GAIN, 0.0)})
            raise SourceError(f"{name}: gain and offset {odd[:1]}, expected {GAIN} and 0 (reflectance x 10000)")
        if start.utcoffset() != timedelta(0):
            raise SourceError(f"{name}: start time {start.isoformat()} is not a UTC time")
        fwhm_nm = widths if all(map(math.isfinite, widths)) else None
        return cls(start.strftime("%Y%m%dT%H%M%SZ"), centers, background, fwhm_nm)


def refuse_doctype(text: bytes) -> None:
    """Raise ValueError for XML that declares entities, which can expand to gigabytes; products have none."""

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type, which products don't have")

    parser = ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(text, True)


def child_text(element: ElementTree.Element, path: str) -> str:
    """Return the text of the first element at a path; raises ValueError if there is none."""
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"no element {path.removeprefix('.//')}")
    return text.strip()


def product_stem(metadata: str) -> str:
    """Return the name of a product from the path of its METADATA.XML."""
    return Path(metadata).name[: -len(METADATA)]


def product_name(container: str, metadata: str, shared: bool) -> str:
    """Return a product's name: that of its folder or zip file, unless it shares that with other products."""
    return f"{container}!{product_stem(metadata)}" if shared else container

"""What a raster says of its bands in text: center wavelengths, widths, and which bands are bad.

The same facts stand in different places, by the program that wrote the file: tags of each band (EnMAP-Box, GDAL's
ENVI driver, GDAL's IMAGERY domain), lists or numbered tags of the file (ENVI headers, of which one may also lie beside
a GeoTIFF), band descriptions. All of them are read, in any domain. Places that contradict each other are an error: the
order of bands is never assumed where any text tells another.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import TileError

NM_OF_UNIT = {
    name: factor
    for names, factor in {
        "nanometers nanometers nanometer nanometer nm": 1.0,
        "micrometers micrometers micrometer micrometer microns micron um µm μm": 1000.0,
        "angstroms angstrom å": 0.1,
        "millimeters millimeters mm": 1e6,
        "meters meters meter meter m": 1e9,
    }.items()
    for name in names.split()
}
"""Length of each unit in nm, by its lower-case name."""

NO_UNIT = ("", "unknown", "none", "index", "n/a", "-")
"""What programs write where they know no unit: the size of the numbers tells it."""

SHORTEST_NM = 100.0
"""Of any optical band. Centers below 100 without a unit are micrometers."""

TOLERANCE_NM = 1.0
"""Two places that tell one center may differ by this much, and by what their rounding hides."""

STRUCTURAL = {"IMAGE_STRUCTURE", "DERIVED_SUBDATASETS", "SUBDATASETS", "COLOR_PROFILE", "RPC", "GEOLOCATION"}
"""GDAL's domains that say nothing of wavelengths."""

MOST_HEADER = 4 << 20
"""Characters of an ENVI header that are read: a few thousand bands take a tenth of it."""

_CENTER = re.compile(
    r"(band_|spectral_)?(cent(ral|er|re)_)?wavelengths?(_?(?P<unit>nm|um))?|(band_)?cent(er|re)s?_(nm|um)"
)
_WIDTH = re.compile(r"(band_|spectral_)?(fwhm|bandwidth|band_width)s?(_?(?P<unit>nm|um))?")
_UNIT = re.compile(r"((cent(ral|er|re)_)?wavelengths?|fwhm)_?units?")
_BAD = re.compile(r"bbl|bad_?bands?(_list|_multiplier)?")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_UNITS = "|".join(sorted(map(re.escape, NM_OF_UNIT), key=len, reverse=True))
_VALUE = re.compile(rf"\s*({_NUMBER})\s*({_UNITS})?\.?\s*", re.IGNORECASE)
_WITHIN = re.compile(rf"(?<![\d.a-zA-Z])({_NUMBER})[\s_()\[\]]*({_UNITS})(?![a-zA-Z])", re.IGNORECASE)
_CLOSING = re.compile(rf"(?:.*[^\d.])?({_NUMBER})\s*[)\]]?\s*")

Texts = list[str | None]


@dataclass(frozen=True)
class BandMetadata:
    """What a raster says of its bands, in file order.

    Attributes:
        wavelength_nm: center of each band in nm, NaN for bands without one (a mask beside the spectrum), or None
            where the file names none at all.
        fwhm_nm: full width at half maximum of each band in nm, or None where the file doesn't name all of them.
        good: False for the bands that a bad-band list (``bbl``) marks by 0.
    """

    wavelength_nm: tuple[float, ...] | None
    fwhm_nm: tuple[float, ...] | None
    good: tuple[bool, ...]


@dataclass(frozen=True)
class _Place:
    """Texts of one place, one a band; ``unit`` holds for those that have none of their own."""

    name: str
    centers: Texts
    widths: Texts
    bad: Texts
    unit: str = ""


def read_band_metadata(file: Any, bands: Sequence[int], header: Path | None = None) -> BandMetadata:
    """Read what an open rasterio dataset says of these bands (numbers from 1).

    Args:
        header: an ENVI header that lies beside a file of another format.

    Raises:
        TileError: a wavelength or bad-band list that can't be understood, or two places that contradict each other.
    """
    places = list(_places(file, bands, {} if header is None else _read_header(header)))
    told = [(place.name, _lengths(place.centers, place)) for place in places if any(place.centers)]
    centers = _agreed(told, bands)
    widths = next((_lengths(place.widths, place) for place in places if all(place.widths)), None)
    fwhm = None if widths is None else tuple(one[0] for one in widths if one)
    good = [True] * len(bands)
    for place in (place for place in places if any(place.bad)):
        good = [was and _is_good(text, place.name) for was, text in zip(good, place.bad, strict=True)]
    return BandMetadata(centers, fwhm, tuple(good))


# ---- where texts stand ----


def _places(file: Any, bands: Sequence[int], header: Mapping[str, str]) -> Iterator[_Place]:
    """All places that can tell something, the most exact ones first."""
    names = {name for name in file.tag_namespaces() if name not in STRUCTURAL and not name.startswith("xml:")}
    domains = {name: _lower(file.tags(ns=name) if name else file.tags()) for name in ("", *sorted(names))}
    if header:
        domains["of the header beside it"] = _lower(header)
    unit = next((text for tags in domains.values() if (text := _find(tags, _UNIT))), "")
    inner = sorted({name for band in bands for name in file.tag_namespaces(band)} - STRUCTURAL)
    for name in ("", *inner):  # IMAGERY rounds to whole nanometers: after the band's own tags
        stored = [file.tags(band, ns=name) if name else file.tags(band) for band in bands]
        if any(stored):  # most tiles have none, and there are millions of them
            tags = [_lower(one) for one in stored]
            own = next((text for one in tags if (text := _find(one, _UNIT))), unit)
            centers, widths, bad = ([_find(one, pattern) for one in tags] for pattern in (_CENTER, _WIDTH, _BAD))
            yield _Place(f"the band tags{name and f' of domain {name}'}", centers, widths, bad, own)
    nothing: Texts = [None] * len(bands)
    for name, one in domains.items():
        centers, widths, bad = (_listed(one, pattern, file.count, bands) for pattern in (_CENTER, _WIDTH, _BAD))
        yield _Place(f"the lists among the file's tags{name and f' of domain {name}'}", centers, widths, bad, unit)
        if any(key[-1:].isdigit() for key in one):
            numbered = _described([_find_numbered(one, band) for band in bands])
            yield _Place(f"the numbered tags{name and f' of domain {name}'}", numbered, nothing, nothing, unit)
    if any(file.descriptions):
        described = _described([file.descriptions[band - 1] for band in bands])
        yield _Place("the band descriptions", described, nothing, nothing)


def _lower(tags: Mapping[str, str]) -> dict[str, str]:
    return {key.lower().replace(" ", "_"): value for key, value in tags.items()}


def _find(tags: Mapping[str, str], pattern: re.Pattern[str]) -> str | None:
    """The value of the first tag of this name, with the unit that the name tells: CENTRAL_WAVELENGTH_UM."""
    for key, value in tags.items():
        match = pattern.fullmatch(key)
        if match and value.strip():
            unit = match.groupdict().get("unit") or (key[-2:] if key.endswith(("_nm", "_um")) else "")
            return f"{value.strip()} {unit}".strip()
    return None


def _listed(tags: Mapping[str, str], pattern: re.Pattern[str], count: int, bands: Sequence[int]) -> Texts:
    """A list like ``{0.4, 0.5}`` with an entry for every band of the file."""
    found = _find(tags, pattern)
    entries = re.split(r"[,;\s'\"]+", found.strip("{}[]()'\" \n")) if found else []
    return [entries[band - 1] for band in bands] if len(entries) == count and count > 1 else [None] * len(bands)


def _find_numbered(tags: Mapping[str, str], band: int) -> str | None:
    """The text of ``wavelength_7`` or ``Band_7``."""
    names = (f"wavelength_{band}", f"band_{band}")
    return next((tags[name] for name in names if name in tags), None)


def _read_header(path: Path) -> dict[str, str]:
    """The entries of an ENVI header; empty where the file is none."""
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read(MOST_HEADER)
    if not text.lstrip().startswith("ENVI"):
        return {}
    return {
        match[1].strip(): match[2] for match in re.finditer(r"^([^=\n]+)=\s*(\{[^}]*\}|[^\n]*)", text, re.MULTILINE)
    }


def _described(descriptions: Sequence[str | None]) -> Texts:
    """Centers in band descriptions: with a unit anywhere, ``423 nm``; without one only where all bands have them."""
    found = [(match[1], match[2]) if (match := _WITHIN.search(text or "")) else None for text in descriptions]
    if any(found):
        return [one and " ".join(one) for one in found]
    bare = [match[1] if (match := _CLOSING.fullmatch(text or "")) else None for text in descriptions]
    numbers = [float(text) if text else math.nan for text in bare]
    optical = all(SHORTEST_NM * 3 <= number <= 20000 for number in numbers) or all(
        0.3 <= number <= 20 for number in numbers
    )
    whole = all(number == int(number) for number in numbers if number < SHORTEST_NM)  # band numbers, not micrometers
    return list(bare) if optical and not (whole and max(numbers) < SHORTEST_NM) else [None] * len(bare)


# ---- what they mean ----


def _lengths(texts: Texts, place: _Place) -> list[tuple[float, float] | None]:
    """(nm, half a unit of the last decimal place) of each text.

    Raises:
        TileError: a text that is no length.
    """
    unit = place.unit.lower().strip(" .").partition(" ")[0]  # "micrometers (um)"
    if unit not in NM_OF_UNIT and unit not in NO_UNIT:
        raise TileError(f"wavelength unit '{place.unit}' in {place.name}: give nanometers or micrometers")
    read = [None if text is None else _parse(text, place.name) for text in texts]
    centers = [_parse(text, place.name) for text in place.centers if text is not None] or [one for one in read if one]
    largest = max((number for number, _, own in centers if not own and math.isfinite(number)), default=math.inf)
    default = NM_OF_UNIT.get(unit) or (1000.0 if largest < SHORTEST_NM else 1.0)
    factors = [one and (NM_OF_UNIT[one[2]] if one[2] else default) for one in read]
    return [one and (one[0] * factor, one[1] * factor) for one, factor in zip(read, factors, strict=True)]  # type: ignore[operator]


def _parse(text: str, where: str) -> tuple[float, float, str]:
    """Number, half a unit of its last decimal place, and unit in lower case or empty."""
    match = _VALUE.fullmatch(text)
    if not match:
        if text.lower() in ("nan", *NO_UNIT):
            return math.nan, 0.0, ""
        raise TileError(f"wavelength '{text}' in {where} is no number: correct it or remove it")
    number, unit = match[1], (match[2] or "").lower()
    mantissa, _, exponent = number.lower().partition("e")
    decimals = len(mantissa.partition(".")[2]) - int(exponent or 0)
    return float(number), 0.5 * 10.0**-decimals, unit


def _agreed(told: list[tuple[str, list[tuple[float, float] | None]]], bands: Sequence[int]) -> tuple[float, ...] | None:
    """Centers from the place that names the most of them, once no other place contradicts it; NaN where none does."""
    if not told:
        return None
    chosen, centers = max(told, key=lambda one: sum(center is not None for center in one[1]))  # the first of equals
    for name, found in told:
        for band, one, other in zip(bands, centers, found, strict=True):
            if one and other and abs(one[0] - other[0]) > TOLERANCE_NM + one[1] + other[1]:
                raise TileError(
                    f"band {band} lies at {one[0]:g} nm by {chosen}, and at {other[0]:g} nm by {name}: correct one"
                )
    return tuple(math.nan if one is None else one[0] for one in centers)


def _is_good(text: str | None, where: str) -> bool:
    try:
        return text is None or float(text) != 0
    except ValueError:
        raise TileError(f"bad-band list in {where}: '{text}' is neither 0 nor 1") from None

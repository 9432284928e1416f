"""Band metadata of rasters: center wavelengths, widths, and bad bands.

Programs write them to different sources: tags of each band (EnMAP-Box, GDAL's ENVI driver, GDAL's IMAGERY domain),
lists or numbered tags of the file (ENVI headers, including one beside a GeoTIFF), and band descriptions. All sources
are read, in any domain. Contradictions between them are an error: a band order is never assumed against the metadata.
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
"""Placeholders for an unknown unit, which is then inferred from the magnitude of the numbers."""

SHORTEST_NM = 100.0
"""Shortest center of an optical band. Centers below 100 without a unit are in micrometers."""

TOLERANCE_NM = 1.0
"""Largest difference between two sources that give the same center, in addition to their rounding."""

STRUCTURAL = {"IMAGE_STRUCTURE", "DERIVED_SUBDATASETS", "SUBDATASETS", "COLOR_PROFILE", "RPC", "GEOLOCATION"}
"""GDAL's metadata domains that never hold wavelengths."""

MOST_HEADER = 4 << 20
"""Maximum number of characters read from an ENVI header; a few thousand bands take a tenth of this."""

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
    """A raster's band metadata, in file order.

    Attributes:
        wavelength_nm: center of each band in nm, NaN for bands without one (a mask beside the spectrum), or None if the
            file gives no centers.
        fwhm_nm: full width at half maximum of each band in nm, or None unless the file gives all of them.
        good: False for bands that a bad-band list (``bbl``) marks with 0.
    """

    wavelength_nm: tuple[float, ...] | None
    fwhm_nm: tuple[float, ...] | None
    good: tuple[bool, ...]


@dataclass(frozen=True)
class _Source:
    """The texts of one source, one for each band; ``unit`` applies to texts without a unit of their own."""

    name: str
    centers: Texts
    widths: Texts
    bad: Texts
    unit: str = ""


def read_band_metadata(file: Any, bands: Sequence[int], header: Path | None = None) -> BandMetadata:
    """Read an open rasterio dataset's metadata on some bands (1-based numbers).

    Args:
        header: ENVI header beside a file of another format.

    Raises:
        TileError: a wavelength or bad-band list is invalid, or two sources contradict each other.
    """
    sources = list(_sources(file, bands, {} if header is None else _read_header(header)))
    located = [(source.name, _lengths(source.centers, source)) for source in sources if any(source.centers)]
    centers = _agreed(located, bands)
    widths = next((_lengths(source.widths, source) for source in sources if all(source.widths)), None)
    fwhm = None if widths is None else tuple(width[0] for width in widths if width)
    good = [True] * len(bands)
    for source in (source for source in sources if any(source.bad)):
        good = [was and _is_good(text, source.name) for was, text in zip(good, source.bad, strict=True)]
    return BandMetadata(centers, fwhm, tuple(good))


# ---- where the texts are ----


def _sources(file: Any, bands: Sequence[int], header: Mapping[str, str]) -> Iterator[_Source]:
    """Yield all sources that may hold metadata, the most precise ones first."""
    names = {name for name in file.tag_namespaces() if name not in STRUCTURAL and not name.startswith("xml:")}
    domains = {name: _lower(file.tags(ns=name) if name else file.tags()) for name in ("", *sorted(names))}
    if header:
        domains["of the header beside it"] = _lower(header)
    unit = next((text for tags in domains.values() if (text := _find(tags, _UNIT))), "")
    inner = sorted({name for band in bands for name in file.tag_namespaces(band)} - STRUCTURAL)
    for name in ("", *inner):  # after the band's own tags: IMAGERY rounds to nanometers
        stored = [file.tags(band, ns=name) if name else file.tags(band) for band in bands]
        if any(stored):  # skips most tiles, of which there are millions
            tags = [_lower(band_tags) for band_tags in stored]
            own_unit = next((text for band_tags in tags if (text := _find(band_tags, _UNIT))), unit)
            centers, widths, bad = (
                [_find(band_tags, pattern) for band_tags in tags] for pattern in (_CENTER, _WIDTH, _BAD)
            )
            yield _Source(f"the band tags{name and f' of domain {name}'}", centers, widths, bad, own_unit)
    nothing: Texts = [None] * len(bands)
    for name, domain_tags in domains.items():
        centers, widths, bad = (_listed(domain_tags, pattern, file.count, bands) for pattern in (_CENTER, _WIDTH, _BAD))
        yield _Source(f"the lists among the file's tags{name and f' of domain {name}'}", centers, widths, bad, unit)
        if any(key[-1:].isdigit() for key in domain_tags):
            numbered = _described([_find_numbered(domain_tags, band) for band in bands])
            yield _Source(f"the numbered tags{name and f' of domain {name}'}", numbered, nothing, nothing, unit)
    if any(file.descriptions):
        described = _described([file.descriptions[band - 1] for band in bands])
        yield _Source("the band descriptions", described, nothing, nothing)


def _lower(tags: Mapping[str, str]) -> dict[str, str]:
    return {key.lower().replace(" ", "_"): value for key, value in tags.items()}


def _find(tags: Mapping[str, str], pattern: re.Pattern[str]) -> str | None:
    """Return the first tag that matches, with the unit in its name appended (CENTRAL_WAVELENGTH_UM)."""
    for key, value in tags.items():
        match = pattern.fullmatch(key)
        if match and value.strip():
            unit = match.groupdict().get("unit") or (key[-2:] if key.endswith(("_nm", "_um")) else "")
            return f"{value.strip()} {unit}".strip()
    return None


def _listed(tags: Mapping[str, str], pattern: re.Pattern[str], count: int, bands: Sequence[int]) -> Texts:
    """Read a list like ``{0.4, 0.5}`` with one entry for each band of the file."""
    entry = _find(tags, pattern)
    entries = re.split(r"[,;\s'\"]+", entry.strip("{}[]()'\" \n")) if entry else []
    return [entries[band - 1] for band in bands] if len(entries) == count and count > 1 else [None] * len(bands)


def _find_numbered(tags: Mapping[str, str], band: int) -> str | None:
    """Return the text of a tag like ``wavelength_7`` or ``Band_7``."""
    names = (f"wavelength_{band}", f"band_{band}")
    return next((tags[name] for name in names if name in tags), None)


def _read_header(path: Path) -> dict[str, str]:
    """Return the entries of an ENVI header; empty if the file is not one."""
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read(MOST_HEADER)
    if not text.lstrip().startswith("ENVI"):
        return {}
    return {
        match[1].strip(): match[2] for match in re.finditer(r"^([^=\n]+)=\s*(\{[^}]*\}|[^\n]*)", text, re.MULTILINE)
    }


def _described(descriptions: Sequence[str | None]) -> Texts:
    """Find centers in band descriptions: ``423 nm`` anywhere; without a unit only if all bands have plausible ones."""
    matched = [(match[1], match[2]) if (match := _WITHIN.search(text or "")) else None for text in descriptions]
    if any(matched):
        return [groups and " ".join(groups) for groups in matched]
    bare = [match[1] if (match := _CLOSING.fullmatch(text or "")) else None for text in descriptions]
    numbers = [float(text) if text else math.nan for text in bare]
    optical = all(SHORTEST_NM * 3 <= number <= 20000 for number in numbers) or all(
        0.3 <= number <= 20 for number in numbers
    )
    are_integers = all(
        number == int(number) for number in numbers if number < SHORTEST_NM
    )  # band numbers, not micrometers
    return list(bare) if optical and not (are_integers and max(numbers) < SHORTEST_NM) else [None] * len(bare)


# ---- what the texts mean ----


def _lengths(texts: Texts, source: _Source) -> list[tuple[float, float] | None]:
    """Return (nm, half a unit of the last decimal place) of each text.

    Raises:
        TileError: a text is not a length.
    """
    unit = source.unit.lower().strip(" .").partition(" ")[0]  # "micrometers (um)"
    if unit not in NM_OF_UNIT and unit not in NO_UNIT:
        raise TileError(f"wavelength unit '{source.unit}' in {source.name}: give nanometers or micrometers")
    read = [None if text is None else _parse(text, source.name) for text in texts]
    centers = [_parse(text, source.name) for text in source.centers if text is not None] or [
        parsed for parsed in read if parsed
    ]
    largest = max(
        (number for number, _, own_unit in centers if not own_unit and math.isfinite(number)), default=math.inf
    )
    default = NM_OF_UNIT.get(unit) or (1000.0 if largest < SHORTEST_NM else 1.0)
    factors = [parsed and (NM_OF_UNIT[parsed[2]] if parsed[2] else default) for parsed in read]
    return [parsed and (parsed[0] * factor, parsed[1] * factor) for parsed, factor in zip(read, factors, strict=True)]  # type: ignore[operator]


def _parse(text: str, where: str) -> tuple[float, float, str]:
    """Return the number, half a unit of its last decimal place, and the unit in lower case or empty."""
    match = _VALUE.fullmatch(text)
    if not match:
        if text.lower() in ("nan", *NO_UNIT):
            return math.nan, 0.0, ""
        raise TileError(f"wavelength '{text}' in {where} is not a number: correct it or remove it")
    number, unit = match[1], (match[2] or "").lower()
    mantissa, _, exponent = number.lower().partition("e")
    decimals = len(mantissa.partition(".")[2]) - int(exponent or 0)
    return float(number), 0.5 * 10.0**-decimals, unit


def _agreed(
    located: list[tuple[str, list[tuple[float, float] | None]]], bands: Sequence[int]
) -> tuple[float, ...] | None:
    """Return the centers from the source that gives the most, NaN where missing; checks them against other sources."""
    if not located:
        return None
    chosen, centers = max(
        located, key=lambda entry: sum(center is not None for center in entry[1])
    )  # the first if equal
    for name, lengths in located:
        for band, center, second in zip(bands, centers, lengths, strict=True):
            if center and second and abs(center[0] - second[0]) > TOLERANCE_NM + center[1] + second[1]:
                raise TileError(
                    f"band {band} is at {center[0]:g} nm according to {chosen}, but at {second[0]:g} nm according to "
                    f"{name}: correct one"
                )
    return tuple(math.nan if center is None else center[0] for center in centers)


def _is_good(text: str | None, where: str) -> bool:
    try:
        return text is None or float(text) != 0
    except ValueError:
        raise TileError(f"bad-band list in {where}: '{text}' is neither 0 nor 1") from None

"""Band tables: CSV files with one row for each band, in the dialects that spreadsheets write."""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path

from shards.errors import ConfigError
from shards.files.text import read_text_file
from shards.sensors.spectrum import MICROMETERS_BELOW

NM_OF_UNIT = {"nm": 1.0, "um": 1000.0}
COLUMNS = ("wavelength_nm", "wavelength_um", "fwhm_nm", "fwhm_um", "kept")
NARROWEST = 1e-4
"""Smallest width as a fraction of the center: a smaller one is in another unit."""
YES, NO = {"1", "true", "yes", "y"}, {"0", "false", "no", "n"}


@dataclass(frozen=True)
class BandTable:
    """The bands of a product in order: centers and widths in nm, and positions of the bands that tiles keep."""

    wavelength_nm: tuple[float, ...]
    fwhm_nm: tuple[float, ...]
    kept: tuple[int, ...]


def read_band_table(path: Path) -> BandTable:
    """Read a band table from a file; raises ConfigError if it is missing or invalid."""
    where = f"sensor {path}"
    return parse_band_table(read_text_file(path, where), where)


def parse_band_table(text: str, where: str) -> BandTable:
    """Parse a table with the columns ``wavelength_nm`` and ``fwhm_nm`` (or ``wavelength_um`` and ``fwhm_um``) and
    optionally ``kept`` (1, or 0 for a band that tiles leave out); other columns are ignored.

    Commas, semicolons or tabs separate the columns; with the latter two, numbers may have decimal commas. Lines without
    values and lines that start with ``#`` are ignored.

    Args:
        where: name of the table in messages.

    Raises:
        ConfigError: a column is missing, a value is not a wavelength, width or flag, or a center occurs twice.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("#", "sep="))]
    names, delimiter = _header(lines[0] if lines else "", where)
    centers: list[float] = []
    widths: list[float] = []
    kept: list[int] = []
    for cells in _rows(lines[1:], delimiter, names, where):
        row = f"{where}, band {len(centers) + 1}"
        if _flag(cells.get("kept", "1"), row):
            kept.append(len(centers))
        centers.append(_nanometers(cells, "wavelength", delimiter, row))
        widths.append(_nanometers(cells, "fwhm", delimiter, row))
    _check(centers, widths, kept, where)
    return BandTable(tuple(centers), tuple(widths), tuple(kept))


def _header(line: str, where: str) -> tuple[list[str], str]:
    """Return the column names in lower case and the delimiter."""
    choices = [([name.strip(" \"'").lower() for name in line.split(mark)], mark) for mark in (",", ";", "\t")]
    names, delimiter = max(choices, key=lambda choice: sum(name in COLUMNS for name in choice[0]))
    if twice := [name for name in COLUMNS if names.count(name) > 1]:
        raise ConfigError(f"{where}: column {twice[0]} occurs twice: remove one of them")
    columns = [[name for name in names if name in _columns(quantity)] for quantity in ("wavelength", "fwhm")]
    near = {name: get_close_matches(name, COLUMNS, n=2, cutoff=0.7) for name in names if name not in COLUMNS}
    hints = [f"; did you mean {' or '.join(matches)} by '{name}'?" for name, matches in near.items() if matches]
    if any(len(matches) != 1 for matches in columns):
        raise ConfigError(
            f"{where}: needs one column wavelength_nm and one fwhm_nm (or wavelength_um, fwhm_um) in its first line, "
            f"which is {line[:80]!r}{''.join(hints)[:160]}"
        )
    if "kept" not in names and (misspelled := [name for name, matches in near.items() if matches == ["kept"]]):
        raise ConfigError(f"{where}: unknown column '{misspelled[0]}': did you mean kept?")
    return names, delimiter


def _columns(quantity: str) -> list[str]:
    return [f"{quantity}_{unit}" for unit in NM_OF_UNIT]


def _rows(lines: list[str], delimiter: str, names: list[str], where: str) -> Iterator[dict[str, str]]:
    """Yield the cells of each band by column name."""
    number = 0
    try:
        for cells in csv.reader(lines, delimiter=delimiter, skipinitialspace=True):
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            number += 1
            if any(cells[len(names) :]):
                raise ConfigError(
                    f"{where}, band {number}: {len(cells)} cells under {len(names)} columns: separate columns by "
                    "semicolons if numbers have decimal commas"
                )
            yield dict(zip_longest(names, cells[: len(names)], fillvalue=""))
    except csv.Error as error:
        raise ConfigError(f"{where}, band {number + 1}: not CSV: {error}") from None


def _nanometers(cells: dict[str, str], quantity: str, delimiter: str, row: str) -> float:
    """Return a center or width in nm."""
    column = next(name for name in _columns(quantity) if name in cells)
    text = cells[column]
    try:
        value = float(text if delimiter == "," else text.replace(",", "."))
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{row}: {column} is {text[:40]!r}: give a number above 0")
    return round(value * NM_OF_UNIT[column[-2:]], 9)  # 0.4182 um is 418.2 nm, not 418.19999999999999


def _flag(text: str, row: str) -> bool:
    flag = text.lower().removesuffix(".0").removesuffix(",0")
    if flag not in YES | NO:
        raise ConfigError(f"{row}: kept is {text[:40]!r}: give 1 for bands that tiles have, 0 for others")
    return flag in YES


def _check(centers: list[float], widths: list[float], kept: list[int], where: str) -> None:
    if not kept:
        raise ConfigError(f"{where}: has no bands{' that are kept' if centers else ''}: give one row per band")
    first: dict[float, int] = {}
    for band, (center, width) in enumerate(zip(centers, widths, strict=True)):
        row = f"{where}, band {band + 1}"
        if not MICROMETERS_BELOW <= center < MICROMETERS_BELOW * NM_OF_UNIT["um"]:
            raise ConfigError(
                f"{row}: is at {center:g} nm: give nm in a column wavelength_nm, or micrometers in wavelength_um"
            )
        if not NARROWEST * center < width < center:
            raise ConfigError(
                f"{row} at {center:g} nm: is {width:g} nm wide: give full widths at half maximum, in nm in a column "
                "fwhm_nm, or in micrometers in fwhm_um"
            )
        if first.setdefault(center, band) != band:
            raise ConfigError(
                f"{row}: is at {center:g} nm like band {first[center] + 1}: remove one of them, or give their "
                "wavelengths with more decimals"
            )

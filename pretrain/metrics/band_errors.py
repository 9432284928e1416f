"""Errors of bands, summarized by ranges of the spectrum."""

import math
from collections.abc import Sequence

import numpy as np

RANGES_NM = {"visible": 700.0, "near_infrared": 1000.0, "shortwave_1": 1800.0, "shortwave_2": math.inf}
"""Ranges of the spectrum by the wavelength at which each ends."""


def mean_by_range(wavelength_nm: Sequence[float], errors: np.ndarray) -> dict[str, float]:
    """Return the mean of the errors of bands (C,) in each of `RANGES_NM`, leaving out those that are NaN."""
    numbers = np.searchsorted([*RANGES_NM.values()], wavelength_nm, side="right")
    parts = {name: errors[(numbers == number) & ~np.isnan(errors)] for number, name in enumerate(RANGES_NM)}
    return {name: float(part.mean()) for name, part in parts.items() if len(part)}

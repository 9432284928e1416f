"""RGB pictures of reflectance: three bands stretched to red, green and blue."""

import numpy as np

PERCENTILES = (2.0, 98.0)
"""Percentiles of the values that are shown as black and as full brightness."""

MISSING = 1.0
"""Brightness of missing pixels: white."""


def stretch_limits(values: np.ndarray) -> tuple[float, float]:
    """Return the values to show as black and as full brightness, ignoring NaN; (0, 1) if nothing is measured."""
    if np.isnan(values).all():
        return 0.0, 1.0
    low, high = np.nanpercentile(values, PERCENTILES)
    return float(low), float(high)


def stretch(image: np.ndarray, limits: tuple[float, float] | None = None, missing: float = MISSING) -> np.ndarray:
    """Stretch one or more images to brightness in [0, 1].

    Args:
        image: float (..., 3) in any unit; a pixel that is NaN in any color is missing.
        limits: see `stretch_limits`; by default the image's own. Pass the same limits for images to be compared.
        missing: brightness of missing pixels.

    Returns:
        Float array of the image's shape.
    """
    low, high = stretch_limits(image) if limits is None else limits
    bright = np.clip((image - low) / max(high - low, 1e-30), 0, 1)
    return np.where(np.isnan(image).any(-1, keepdims=True), missing, bright)

"""Reflectance as people look at it: three bands stretched to red, green and blue."""

import numpy as np

PERCENTILES = (2.0, 98.0)
"""Shares of the values between which the picture's brightness rises, in percent."""

MISSING = 1.0
"""Brightness of pixels without a measurement: white."""


def stretch_limits(values: np.ndarray) -> tuple[float, float]:
    """The values to show as black and as full brightness; NaN doesn't count, and nothing measured gives (0, 1)."""
    if np.isnan(values).all():
        return 0.0, 1.0
    low, high = np.nanpercentile(values, PERCENTILES)
    return float(low), float(high)


def stretch(image: np.ndarray, limits: tuple[float, float] | None = None, missing: float = MISSING) -> np.ndarray:
    """Brightness in [0, 1] of an image or of several.

    Args:
        image: float (..., 3), any unit; a pixel that is NaN in one of its colors is missing.
        limits: see `stretch_limits`, by default the image's own; for images to be compared.
        missing: brightness of missing pixels.

    Returns:
        float of the image's shape.
    """
    low, high = stretch_limits(image) if limits is None else limits
    bright = np.clip((image - low) / max(high - low, 1e-30), 0, 1)
    return np.where(np.isnan(image).any(-1, keepdims=True), missing, bright)

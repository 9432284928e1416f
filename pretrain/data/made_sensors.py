"""Spectral augmentation: groups of samples are seen through made-up sensors, so that unseen ones are no surprise.

A sensor is drawn for each group of consecutive samples, on the host, keyed by the seed and the group's first sample.
On the device it becomes a `Spectrum`, whose response makes its bands from those of the tiles: a wave stem takes it into
its weights, without work per pixel.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.config.data import SensorsConfig
from pretrain.models.spectrum import Spectrum
from shards.order.random_bits import uniform
from shards.sensors.resampling import SIGMA_OF_FWHM

FEWEST_BANDS = 8
"""Fewest bands of a subset, a range or a sensor with Gaussian responses."""

MOST_RESPONSES, NARROWEST_NM, WIDEST_NM = 79, 10.0, 100.0
"""Most Gaussian responses of a sensor, and the range of their FWHM."""

NARROWEST_RANGE, MOST_DROPPED = 0.2, 0.5
"""Smallest share of the sensor's range that a range has; largest share of bands that are dropped, on average."""

RUNS = 16
"""Runs of neighboring bands that are hidden or not: single bands could be read off their neighbors."""


def draw_sensors(
    config: SensorsConfig, firsts: np.ndarray, key: int, center_nm: np.ndarray, fwhm_nm: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a sensor for each of G groups.

    Args:
        firsts: first sample number of each group, (G,).
        center_nm, fwhm_nm: bands of each group's tiles, (G, C); a width of 0 is no band.

    Returns:
        Centers and widths, float32 (G, max(C, MOST_RESPONSES)), 0 for no band; and whether they are Gaussian responses,
        bool (G,), or else the tiles' own bands, some of which are left out.
    """
    groups, bands = center_nm.shape
    width = max(bands, MOST_RESPONSES)
    draws = uniform(key, firsts, 3 + width)
    shares = np.cumsum(config.weights) / sum(config.weights)
    kinds = np.minimum(np.searchsorted(shares, draws[:, 0], side="right"), len(shares) - 1)
    centers, widths = (np.zeros((groups, width), np.float32) for _ in range(2))
    centers[:, :bands], widths[:, :bands] = center_nm, fwhm_nm
    for group, kind in enumerate(kinds):
        present = np.flatnonzero(fwhm_nm[group] > 0)
        own, (first, second), noise = center_nm[group, present], draws[group, 1:3], draws[group, 3:]
        if SensorsConfig.KINDS[kind] == "responses":
            count = FEWEST_BANDS + int(first * (MOST_RESPONSES - FEWEST_BANDS + 1))
            centers[group], widths[group] = 0, 0
            centers[group, :count] = own.min() + noise[:count] * np.ptp(own)
            widths[group, :count] = NARROWEST_NM + second * (WIDEST_NM - NARROWEST_NM)
        else:
            kept = _keep(SensorsConfig.KINDS[kind], own, first, second, noise[present])
            if kept.sum() >= min(FEWEST_BANDS, len(own)):
                widths[group, present[~kept]] = 0
    return centers, widths, kinds == SensorsConfig.KINDS.index("responses")


def _keep(kind: str, centers: np.ndarray, first: float, second: float, noise: np.ndarray) -> np.ndarray:
    """Return which of a sensor's bands are kept, bool, from numbers in [0, 1)."""
    if kind == "subset":
        count = min(FEWEST_BANDS, len(centers)) + int(first * (len(centers) - FEWEST_BANDS))
        return noise.argsort().argsort() < count
    if kind == "range":
        length = np.ptp(centers) * (NARROWEST_RANGE + second * (1 - NARROWEST_RANGE))
        begin = centers.min() + first * (np.ptp(centers) - length)
        return (centers >= begin) & (centers <= begin + length)
    if kind == "dropped":
        return noise >= MOST_DROPPED * first
    return np.ones(len(centers), dtype=bool)


def draw_hidden(ratio: float, firsts: np.ndarray, key: int, center_nm: np.ndarray, fwhm_nm: np.ndarray) -> np.ndarray:
    """Draw which bands of each group are hidden, bool (G, C): some of `RUNS` runs of neighbors, at least one.

    Args:
        ratio: share of the runs.
        firsts, center_nm, fwhm_nm: see `draw_sensors`.
    """
    hidden = np.zeros(center_nm.shape, dtype=bool)
    noise = uniform(key, firsts, RUNS)
    for group in range(len(hidden)):
        present = np.flatnonzero(fwhm_nm[group] > 0)
        runs = min(RUNS, len(present))
        count = min(max(1, round(ratio * runs)), runs - 1)
        chosen = noise[group, :runs].argsort()[:count]
        rank = center_nm[group, present].argsort(kind="stable").argsort()
        hidden[group, present] = np.isin(rank * runs // len(present), chosen)
    return hidden


def made_spectrum(bands: Spectrum, center_nm: Tensor, fwhm_nm: Tensor, is_made: Tensor) -> Spectrum:
    """Return the spectrum of drawn sensors, which see tiles with the given bands.

    A Gaussian response is the mean of the tiles' bands with its values as weights; it is no band where none of them is
    within half its width.

    Args:
        bands: of the tiles, for each of G groups or for all; those without width are not seen.
        center_nm, fwhm_nm, is_made: of `draw_sensors`, on the device.
    """
    channels, size = bands.center_nm.shape[-1], center_nm.shape[-1]
    sigma = (fwhm_nm * SIGMA_OF_FWHM).clamp(min=1e-3)[:, :, None]
    distance = (bands.center_nm[:, None, :] - center_nm[:, :, None]) / sigma
    weights = (-0.5 * distance.square()).exp() * bands.present[:, None, :]
    covered = weights.amax(-1) > 0.5
    gaussian = weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)
    same = torch.eye(size, channels, device=center_nm.device)
    seen = F.pad(bands.present, (0, size - channels)).expand(len(center_nm), -1)
    widths = fwhm_nm * torch.where(is_made[:, None], covered, seen)
    return Spectrum(center_nm, widths, torch.where(is_made[:, None, None], gaussian, same))

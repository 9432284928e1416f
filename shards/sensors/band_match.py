"""Matching of a file's bands to a sensor's bands by wavelength."""

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=64)  # the tiles of an archive have the same wavelengths
def match_bands(wanted_nm: tuple[float, ...], found_nm: tuple[float, ...]) -> np.ndarray | None:
    """Pair each wanted band with a different found band, keeping both in order of wavelength.

    Dynamic programming finds the pairing with the smallest sum of distances. Taking the nearest band is not enough: two
    detectors overlap, and centers 0.16 nm apart shift by 0.2 nm between product versions.

    Args:
        wanted_nm: band centers in nm, in any order.
        found_nm: band centers in nm, in any order; non-finite ones are ignored.

    Returns:
        int64 (len(wanted_nm),): position in ``found_nm`` of each wanted band, or None if fewer bands were found.
    """
    wanted, found = np.asarray(wanted_nm, dtype=np.float64), np.asarray(found_nm, dtype=np.float64)
    usable = np.flatnonzero(np.isfinite(found))
    usable = usable[np.argsort(found[usable], kind="stable")]
    order = np.argsort(wanted, kind="stable")
    if len(usable) < len(wanted):
        return None
    distance = np.abs(wanted[order][:, None] - found[usable])
    best = np.zeros(len(usable) + 1)  # smallest sum for the bands so far among the first j found ones
    taken = np.zeros(distance.shape, dtype=bool)
    for row, costs in enumerate(distance):
        ending = best[:-1] + costs  # this band is paired with found band j
        ending[:row] = np.inf  # fewer found bands than wanted ones
        least = np.minimum.accumulate(ending)
        taken[row] = ending <= least
        best = np.concatenate([[np.inf], least])
    positions = np.empty(len(wanted), dtype=np.int64)
    column = len(usable) - 1
    for row in range(len(wanted) - 1, -1, -1):
        while not taken[row, column]:
            column -= 1
        positions[order[row]] = usable[column]
        column -= 1
    positions.setflags(write=False)
    return positions

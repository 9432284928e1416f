"""Which band of a file is which band of a sensor, by their wavelengths."""

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=64)  # the tiles of an archive name the same wavelengths
def match_bands(wanted_nm: tuple[float, ...], found_nm: tuple[float, ...]) -> np.ndarray | None:
    """Pair each wanted band with a band of its own among those found, keeping both in the order of wavelength.

    Of all such pairings the one with the smallest sum of distances, by dynamic programming. The nearest band alone
    would not do: two detectors overlap, and centers 0.16 nm apart move by 0.2 nm between versions of a product.

    Args:
        wanted_nm: centers, in any order.
        found_nm: centers, in any order; those that are not finite are left out.

    Returns:
        int64 (len(wanted_nm),): position in ``found_nm`` for each wanted band, or None where fewer were found.
    """
    wanted, found = np.asarray(wanted_nm, dtype=np.float64), np.asarray(found_nm, dtype=np.float64)
    usable = np.flatnonzero(np.isfinite(found))
    usable = usable[np.argsort(found[usable], kind="stable")]
    order = np.argsort(wanted, kind="stable")
    if len(usable) < len(wanted):
        return None
    distance = np.abs(wanted[order][:, None] - found[usable])
    best = np.zeros(len(usable) + 1)  # least sum for the bands so far among the first j found ones
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

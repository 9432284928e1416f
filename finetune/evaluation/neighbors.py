"""The protocols of nearest neighbors: ``knn``, and ``shift`` across bands.

Spectral shift is the protocol of LESSViT (arXiv 2605.18541), here without training: the bank holds training tiles seen
through one band set, queries are test tiles seen through others. A score close to the one without a shift says that the
features depend on the place and not on the sensor. In an evaluation, each band set of the test tiles is a protocol of
its own, ``shift to NAME``.
"""

SHIFT = "shift to "

SAME_PLACE = ("tile_cosine", "tile_elsewhere", "tile_top1", "patch_cosine", "patch_elsewhere", "patch_top1")
"""Measures of a place that is seen through two band sets, for tiles and for patches: the cosine similarity of its two
feature vectors, the mean similarity to other places, and whether the nearest vector is that of the same place."""


def tested_bands(protocol: str) -> str | None:
    """Return the band set of the test tiles in ``shift to NAME``; None for other protocols."""
    return protocol.removeprefix(SHIFT) if protocol.startswith(SHIFT) else None


def is_by_neighbors(protocol: str) -> bool:
    """Return whether a protocol, after `finetune.evaluation.runs.expand`, trains nothing."""
    return protocol == "knn" or tested_bands(protocol) is not None

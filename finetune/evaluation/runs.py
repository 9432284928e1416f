"""The runs of an evaluation: encoders, protocols and portions of the training tiles, in order."""

from collections.abc import Sequence

from finetune.baselines.registry import SPECTRA
from finetune.evaluation.layers import LAYER
from finetune.evaluation.neighbors import SHIFT, is_by_neighbors
from finetune.evaluation.portion import Portion

BASELINE = "baseline"
"""The protocol of models on spectra."""

Run = tuple[str, str, Portion]
"""Encoder, protocol and portion."""


def encoder_names(protocols: Sequence[str], compare_random: bool, compare_raw: bool) -> list[str]:
    """Return what is evaluated: the pretrained encoder, and what it is compared with."""
    compared = {"random": compare_random, "raw": compare_raw, SPECTRA: BASELINE in protocols}
    return ["pretrained", *(name for name, is_compared in compared.items() if is_compared)]


def expand(protocols: Sequence[str], train: str, test: Sequence[str], layers: Sequence[int]) -> list[str]:
    """Replace protocols that consist of several.

    Args:
        train, test: band sets of ``shift``: a protocol for each of the test tiles, first that of the training tiles.
        layers: numbers of the layers of ``layers``, a protocol for each.
    """
    several = {
        "shift": [f"{SHIFT}{bands}" for bands in (train, *(bands for bands in test if bands != train))],
        "layers": [f"{LAYER}{number}" for number in layers],
    }
    return [name for protocol in protocols for name in several.get(protocol, [protocol])]


def list_runs(names: Sequence[str], protocols: Sequence[str], portions: Sequence[Portion]) -> list[Run]:
    """Return all combinations that exist.

    Args:
        names: see `encoder_names`.
        protocols: after `expand`.
    """
    return [
        (name, protocol, portion)
        for name in names
        for portion in portions
        for protocol in protocols
        if (name == SPECTRA) == (protocol == BASELINE) and (name != "raw" or is_by_neighbors(protocol))
    ]

"""Retrieval of the same place through two sensors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune.evaluation.neighbors import SAME_PLACE
from finetune.protocols.same_place import match_places

ALL = 10_000


class Told:
    """Features that are given, as those of a split are read."""

    views = 1

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def batch(self, rows: np.ndarray, views: np.ndarray) -> Tensor:
        return self.values[torch.from_numpy(rows)]


class Split:
    """As much of a split as is searched: two windows a tile."""

    def __init__(self, windows: int) -> None:
        self.tile_of = np.arange(windows) // 2
        self.items = [None] * (self.tile_of[-1] + 1)

    def __len__(self) -> int:
        return len(self.tile_of)


def _match(seen: Tensor, *known: Tensor, most: int = ALL) -> tuple[np.ndarray, dict[str, float]]:
    splits = [Split(len(values)) for values in known]
    return match_places(
        (Told(seen), splits[0]), [(Told(values), split) for values, split in zip(known, splits, strict=True)], most
    )


@settings(max_examples=20, deadline=None)
@given(windows=st.integers(1, 40), others=st.integers(1, 40), scale=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_features_that_do_not_depend_on_the_sensor_are_found(windows, others, scale, seed):
    random = torch.Generator().manual_seed(seed)
    own, other = (torch.randn(count, 16, 2, 2, generator=random) for count in (windows, others))
    measures, scores = _match(scale * own, own, other)
    assert measures.shape == ((windows + 1) // 2, len(SAME_PLACE))
    assert scores["tile_top1"] == scores["patch_top1"] == 1
    assert scores["tile_cosine"] == pytest.approx(1, abs=1e-5)
    assert scores["tile_elsewhere"] < 0.99
    assert scores["tile_chance"] == pytest.approx(1 / (windows + others))
    assert scores["patch_chance"] == pytest.approx(1 / (4 * (windows + others)))


def test_a_search_by_hand():
    known = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    measures, scores = _match(torch.tensor([[2.0, 0.1], [3.0, 3.0], [1.0, 0.0]]), known)
    assert measures[:, SAME_PLACE.index("tile_top1")].tolist() == [0.5, 0.0]  # windows 0 and 1, window 2
    assert measures[1, 0] == pytest.approx(np.sqrt(0.5))
    assert measures[1, 1] == pytest.approx(0.5)
    assert np.isnan(measures[:, 3:]).all()  # pooled features have no patches
    assert scores["tile_top1"] == 0.25
    assert not any(name.startswith("patch") for name in scores)


def test_equal_features_of_all_places_find_none():
    _, scores = _match(torch.ones(6, 4, 2, 2), torch.ones(6, 4, 2, 2))
    assert scores["tile_top1"] == scores["patch_top1"] == 0
    assert scores["tile_cosine"] == pytest.approx(scores["tile_elsewhere"])


def test_patches_are_bounded_and_tiles_without_any_are_left_out():
    values, others = torch.randn(49, 8, 2, 2, generator=torch.Generator().manual_seed(0)).split([40, 9])
    measures, scores = _match(values, values, others, most=10)
    assert scores["patch_chance"] == 0.1
    assert scores["patch_top1"] == scores["tile_top1"] == 1
    assert np.isnan(measures[:, 5]).tolist() == [False, False, *[True] * 18]

"""Maps of splits never touch, and searched ones share the classes."""

import numpy as np
import pytest

from finetune.tasks.scene import LETTERS, UNUSED, find_touching
from tools import scene_splits
from tools.scene_splits import coverage, draw_regions, search

NAMES = np.array([UNUSED, *LETTERS.values()])


@pytest.mark.parametrize("grid", [(5, 5), (9, 9), (10, 59), (46, 8), (13, 32)])
@pytest.mark.parametrize("seed", range(3))
def test_drawn_regions_do_not_touch_and_every_split_has_some(grid, seed):
    splits = draw_regions(grid, np.random.default_rng(seed))
    assert splits.shape == grid
    assert find_touching(NAMES[splits + 1]) is None
    assert set(np.unique(splits)) == {-1, 0, 1, 2}


def test_a_searched_map_does_not_touch_and_covers_more_than_a_drawn_one(monkeypatch):
    monkeypatch.setattr(scene_splits, "MOVES", 1500)
    counts = np.random.default_rng(0).integers(0, 2, (8, 8, 5)) * 100.0
    splits = search(counts, np.random.default_rng(0))
    assert find_touching(NAMES[splits + 1]) is None
    assert coverage(splits, counts) > coverage(draw_regions((8, 8), np.random.default_rng(0)), counts)


def test_a_class_that_train_lacks_is_worse_than_one_that_all_lack():
    splits = np.array([[0, -1, 1, -1, 2]])
    counts = np.array([[[1.0, 0], [0, 0], [1, 0], [0, 1], [1, 0]]])
    taught = coverage(splits, counts)
    counts[0, 4, 1], counts[0, 3, 1] = 1, 0
    assert coverage(splits, counts) < taught

"""Intervals and paired tests: right on cases that are known, and modest where there is little to go by."""

import numpy as np
import pytest

from finetune.metrics.scores import tile_confusion
from finetune.metrics.statistics import (
    bootstrap_interval,
    bootstrap_scores,
    draws_for,
    holm,
    interval,
    paired_test,
    smallest_p,
)
from finetune.tasks import Task
from finetune.tasks.kinds.kind import kind_of

CLASSES = [{"code": number, "name": f"c{number}", "color": "#000000"} for number in range(3)]
KINDS = {
    kind: kind_of(Task.model_validate({"name": "t", "description": "d", "kind": kind, "classes": CLASSES}))
    for kind in ("segmentation", "multilabel")
}
MIOU = KINDS["segmentation"].resampled


def _confusions(accuracy: float, tiles: int, seed: int, classes: int = 3) -> np.ndarray:
    """Tiles of 50 pixels of which a share is right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (tiles, 50))
    right = rng.random((tiles, 50)) < accuracy
    predicted = np.where(right, labels, (labels + 1) % classes)
    return np.stack([tile_confusion(one, label, classes) for one, label in zip(predicted, labels, strict=True)])


def _places(tiles: int) -> list[str]:
    return [f"{number:04d}" for number in range(tiles)]


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    true = MIOU(_confusions(0.7, 4000, 99), np.ones((1, 4000)))[0]
    covered = 0
    for seed in range(60):
        low, high = bootstrap_interval(MIOU, [_confusions(0.7, 40, seed)], _places(40), draws=300)
        covered += low <= true <= high
    assert 50 <= covered <= 60  # 57 expected


def test_tiles_of_one_place_are_drawn_together():
    units = np.repeat(_confusions(0.7, 10, 3), 20, axis=0)  # every place twenty times the same
    apart = bootstrap_interval(MIOU, [units], _places(200))
    together = bootstrap_interval(MIOU, [units], [f"{number // 20:04d}" for number in range(200)])
    assert together[1] - together[0] > 3 * (apart[1] - apart[0])


def test_equal_models_are_seldom_told_apart_and_different_ones_are():
    same = [
        paired_test(MIOU, [_confusions(0.6, 20, seed)], [_confusions(0.6, 20, seed + 1000)], _places(20), draws=200)
        for seed in range(60)
    ]
    assert sum(p < 0.05 for p in same) <= 8  # 3 expected
    assert 0.3 < np.mean(same) < 0.7
    better = paired_test(MIOU, [_confusions(0.8, 20, 1)], [_confusions(0.6, 20, 2)], _places(20))
    assert better == pytest.approx(1 / 1001)


def test_one_place_can_show_nothing():
    units = [_confusions(0.9, 4, 1)], [_confusions(0.3, 4, 2)]
    assert paired_test(MIOU, *units, ["here"] * 4) == 1.0
    assert smallest_p(["here"] * 4) == 1.0
    assert smallest_p(_places(5)) == pytest.approx(1 / 16)
    assert smallest_p(_places(500)) == pytest.approx(1 / 1001)


def test_holm_is_the_published_procedure():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("kind", ["segmentation", "multilabel"])
def test_what_is_undefined_shows_nothing(kind):
    """Tiles without a label that counts: no score of 0, no interval, and no p-value that says anything."""
    empty = np.zeros((6, 3, 3), np.int32) if kind == "segmentation" else np.zeros((6, 2, 3), np.float32)
    assert np.isnan(KINDS[kind].resampled(empty, np.ones((2, 6)))).all()
    assert np.isnan(bootstrap_interval(KINDS[kind].resampled, [empty], _places(6))).all()
    assert paired_test(KINDS[kind].resampled, [empty], [empty], _places(6), draws=20) == 1.0


def test_draws_without_a_label_do_not_pull_an_interval_to_zero():
    units = np.concatenate([_confusions(0.9, 2, 1), np.zeros((6, 3, 3), np.int64)])
    low, _ = bootstrap_interval(MIOU, [units], _places(8))
    assert low > 0.5


def test_many_comparisons_leave_room_for_a_small_p():
    assert draws_for(3) == 1000
    for number in (60, 150):
        assert holm([1 / (1 + draws_for(number))] * number)[0] < 0.05


def test_the_interval_of_a_difference_is_that_of_the_same_draws():
    """It is narrower than one from separate draws where models succeed and fail on the same tiles."""
    hard = np.linspace(0.3, 0.9, 40)

    def draws(more: float) -> np.ndarray:
        units = np.concatenate([_confusions(share + more, 1, tile) for tile, share in enumerate(hard)])
        return bootstrap_scores(MIOU, [units], _places(40))

    first, second = draws(0.05), draws(0.0)
    low, high = interval(first - second)
    assert low < first.mean() - second.mean() < high
    assert high - low < 0.5 * (interval(first)[1] - interval(first)[0])

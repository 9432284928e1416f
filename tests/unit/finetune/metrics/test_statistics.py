"""Intervals and paired tests: right on cases that are known, and modest where there is little to go by."""

import numpy as np
import pytest

from finetune.metrics.scores import compute_scores, tile_confusion
from finetune.metrics.statistics import bootstrap_interval, draws_for, holm, paired_test, smallest_p, weighted_scores


def _confusions(accuracy: float, tiles: int, seed: int, classes: int = 3) -> np.ndarray:
    """Tiles of 50 pixels of which a share is right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (tiles, 50))
    right = rng.random((tiles, 50)) < accuracy
    predicted = np.where(right, labels, (labels + 1) % classes)
    return np.stack([tile_confusion(one, label, classes) for one, label in zip(predicted, labels, strict=True)])


def _places(tiles: int) -> list[str]:
    return [f"{number:04d}" for number in range(tiles)]


@pytest.mark.parametrize("kind", ["segmentation", "multilabel", "regression"])
def test_weighted_scores_are_those_of_the_drawn_tiles(kind):
    rng = np.random.default_rng(0)
    baseline = np.array([0.1, 0.2, 0.3])
    if kind == "segmentation":
        units = _confusions(0.6, 12, 1)
    else:
        units = rng.random((12, 2, 3))
        units[:, 1] = units[:, 1] > 0.5 if kind == "multilabel" else units[:, 1]
    weights = rng.integers(0, 3, (5, 12))
    expected = []
    for row in weights:
        drawn = np.repeat(units, row, axis=0)
        scores = compute_scores(kind, drawn, baseline)
        expected.append(
            scores.values[{"segmentation": "mIoU", "multilabel": "mAP", "regression": "hyperview_score"}[kind]]
        )
    np.testing.assert_allclose(weighted_scores(kind, units, weights, baseline), expected, rtol=1e-10)


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    true = weighted_scores("segmentation", _confusions(0.7, 4000, 99), np.ones((1, 4000)), None)[0]
    covered = 0
    for seed in range(60):
        low, high = bootstrap_interval("segmentation", [_confusions(0.7, 40, seed)], _places(40), draws=300)
        covered += low <= true <= high
    assert 50 <= covered <= 60  # 57 expected


def test_tiles_of_one_place_are_drawn_together():
    units = np.repeat(_confusions(0.7, 10, 3), 20, axis=0)  # every place twenty times the same
    apart = bootstrap_interval("segmentation", [units], _places(200))
    together = bootstrap_interval("segmentation", [units], [f"{number // 20:04d}" for number in range(200)])
    assert together[1] - together[0] > 3 * (apart[1] - apart[0])


def test_equal_models_are_seldom_told_apart_and_different_ones_are():
    same = [
        paired_test(
            "segmentation", [_confusions(0.6, 20, seed)], [_confusions(0.6, 20, seed + 1000)], _places(20), draws=200
        )
        for seed in range(60)
    ]
    assert sum(p < 0.05 for p in same) <= 8  # 3 expected
    assert 0.3 < np.mean(same) < 0.7
    better = paired_test("segmentation", [_confusions(0.8, 20, 1)], [_confusions(0.6, 20, 2)], _places(20))
    assert better == pytest.approx(1 / 1001)


def test_one_place_can_show_nothing():
    units = [_confusions(0.9, 4, 1)], [_confusions(0.3, 4, 2)]
    assert paired_test("segmentation", *units, ["here"] * 4) == 1.0
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
    assert np.isnan(weighted_scores(kind, empty, np.ones((2, 6)), None)).all()
    assert np.isnan(bootstrap_interval(kind, [empty], _places(6))).all()
    assert paired_test(kind, [empty], [empty], _places(6), draws=20) == 1.0


def test_draws_without_a_label_do_not_pull_an_interval_to_zero():
    units = np.concatenate([_confusions(0.9, 2, 1), np.zeros((6, 3, 3), np.int64)])
    low, _ = bootstrap_interval("segmentation", [units], _places(8))
    assert low > 0.5


def test_many_comparisons_leave_room_for_a_small_p():
    assert draws_for(3) == 1000
    for number in (60, 150):
        assert holm([1 / (1 + draws_for(number))] * number)[0] < 0.05

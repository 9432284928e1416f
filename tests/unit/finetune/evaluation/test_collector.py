"""Predictions of a split collected into scores and calibration, in any order and on any rank."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from finetune.evaluation.collector import Collector, Evaluation
from finetune.tasks import Task
from finetune.tasks.kinds.kind import kind_of

WINDOWS, SIZE = 6, 4
KIND = kind_of(
    Task.model_validate(
        {
            "name": "t",
            "description": "d",
            "kind": "segmentation",
            "classes": [{"code": code, "name": f"c{code}", "color": "#0a0b0c"} for code in (1, 2, 3)],
        }
    )
)
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, (WINDOWS, SIZE, SIZE)).astype(np.int16)  # 3 does not count
SCORES = torch.from_numpy(RNG.normal(size=(WINDOWS, 3, SIZE, SIZE))).float()


class Split(SimpleNamespace):
    """Two windows of each of three tiles."""

    items, tile_of, labels = range(3), np.arange(WINDOWS) // 2, LABELS

    def __len__(self) -> int:
        return WINDOWS


def _collect(*rows: int, calibrate: bool = True) -> Collector:
    collector = Collector(Split(), KIND, None, calibrate=calibrate)
    collector.add_scores(np.array(rows), SCORES[list(rows)])
    return collector


def _assert_same(one: Evaluation, other: Evaluation) -> None:
    assert one.scores.values == pytest.approx(other.scores.values)
    for name in ("statistics", "maps", "calibration"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-6)


def test_the_sums_of_ranks_give_what_one_gives():
    whole, first, second = _collect(*range(WINDOWS)), _collect(4, 1), _collect(0, 2, 3, 5)
    found = first.finish(first.sums + second.sums)
    _assert_same(found, whole.finish())
    assert found.calibration.shape == (3, 3, 15)
    assert found.calibration[:, 0].sum() == found.statistics.sum() == (LABELS < 3).sum()


def test_probabilities_are_compared_if_asked_for_and_change_no_score():
    plain, calibrated = _collect(0, 1, calibrate=False).finish(), _collect(0, 1).finish()
    assert not plain.calibration.size
    assert calibrated.scores.values == plain.scores.values | {"ECE": calibrated.scores.values["ECE"]}


def test_votes_are_probabilities_unless_said_otherwise():
    by_votes, without = (Collector(Split(), KIND, None, calibrate=True) for _ in range(2))
    by_votes.add_votes(np.arange(WINDOWS), SCORES.softmax(1))
    without.add_votes(np.arange(WINDOWS), SCORES.softmax(1), are_probabilities=False)
    found = by_votes.finish().scores.values
    assert found["ECE"] == pytest.approx(_collect(*range(WINDOWS)).finish().scores.values["ECE"])
    assert without.finish().scores.values == {name: value for name, value in found.items() if name != "ECE"}


def test_scores_in_half_precision_are_calibrated_in_single():
    collector = Collector(Split(), KIND, None, calibrate=True)
    collector.add_scores(np.arange(WINDOWS), SCORES.bfloat16())
    expected = _collect(*range(WINDOWS)).finish().scores.values["ECE"]
    assert collector.finish().scores.values["ECE"] == pytest.approx(expected, abs=0.02)

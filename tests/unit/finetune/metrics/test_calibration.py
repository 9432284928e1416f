"""Calibration: the error is torchmetrics', from sums that add up over tiles and are resampled with them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from finetune.metrics.calibration import BINS, calibration_error, calibration_sums, resampled_error
from finetune.tasks import Task
from finetune.tasks.kinds.kind import TaskKind, kind_of

CLASSES = [{"code": 10 * number, "name": f"class {number}", "color": "#0a0b0c"} for number in range(1, 4)]


def _kind(name: str) -> TaskKind:
    task = {"name": "t", "description": "d", "kind": name, "classes": CLASSES, "ignore": [0]}
    return kind_of(Task.model_validate(task))


def test_pixels_are_calibrated_as_torchmetrics_does_where_a_label_counts():
    rng, kind = np.random.default_rng(0), _kind("segmentation")
    probabilities = rng.dirichlet(np.ones(3), (20, 20)).transpose(2, 0, 1).astype(np.float32)
    labels = rng.integers(0, 4, (20, 20)).astype(np.int16)  # 3 does not count
    sums = calibration_sums(*kind.confidences(probabilities, probabilities.argmax(0), labels))
    expected = multiclass_calibration_error(
        torch.from_numpy(probabilities)[None], torch.from_numpy(labels).long()[None], 3, BINS, ignore_index=3
    )
    assert sums[0].sum() == (labels < 3).sum()
    assert calibration_error(sums) == pytest.approx(float(expected), abs=1e-6)


def test_the_classes_of_a_multilabel_task_are_calibrated_together():
    rng, kind = np.random.default_rng(0), _kind("multilabel")
    probabilities, labels = rng.random((50, 3)).astype(np.float32), rng.integers(0, 2, (50, 3)).astype(np.uint8)
    windows = zip(probabilities, labels, strict=True)
    sums = sum(calibration_sums(*kind.confidences(one, one, label)) for one, label in windows)
    expected = binary_calibration_error(torch.from_numpy(probabilities).ravel(), torch.from_numpy(labels).ravel(), BINS)
    assert calibration_error(sums) == pytest.approx(float(expected), abs=1e-6)


def test_the_confidence_is_that_of_the_predicted_class_even_if_another_is_more_probable():
    probabilities = np.array([0.2, 0.7, 0.1], np.float32)
    confidence, hit = _kind("classification").confidences(probabilities, np.array(0), np.array(0, np.int16))
    assert (confidence.tolist(), hit.tolist()) == ([pytest.approx(0.2)], [True])


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1), st.integers(0, 2**32 - 1))
def test_sums_of_parts_are_those_of_the_whole_and_the_error_is_a_share(predictions, seed):
    confidences, hits = (np.array(column) for column in zip(*predictions, strict=True))
    first = np.random.default_rng(seed).random(len(hits)) < 0.5
    whole = calibration_sums(confidences, hits)
    parts = calibration_sums(confidences[first], hits[first]) + calibration_sums(confidences[~first], hits[~first])
    np.testing.assert_allclose(parts, whole)
    assert 0 <= calibration_error(whole) <= 1
    assert whole[0].sum() == len(hits)


def test_an_edge_belongs_to_the_bin_below_and_certainty_to_the_last():
    sums = calibration_sums(np.array([0.0, 1 / BINS, 1.0, 1.0000001]), np.ones(4, bool))
    assert sums[0].tolist() == [2.0, *(BINS - 2) * [0.0], 2.0]


def test_resampled_errors_are_those_of_the_drawn_tiles():
    rng = np.random.default_rng(0)
    tiles = np.stack([calibration_sums(rng.random(30), rng.random(30) < 0.5) for _ in range(6)])
    weights = rng.integers(0, 3, (4, 6))
    expected = [calibration_error(np.repeat(tiles, row, axis=0).sum(0)) for row in weights]
    np.testing.assert_allclose(resampled_error(tiles, weights), expected)
    assert np.isnan(resampled_error(tiles, np.zeros((1, 6)))).all()

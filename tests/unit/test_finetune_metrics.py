"""Segmentation scores against confusion matrices counted by hand."""

import numpy as np
import pytest
import torch

from finetune.metrics import SegmentationMetrics, SegmentationScores

CPU = torch.device("cpu")
NO_LOSS = torch.tensor(0.0)


def _scores(predicted, labels, classes: int, loss: float = 0.0) -> SegmentationScores:
    metrics = SegmentationMetrics(classes, classes, CPU)
    metrics.update(torch.tensor(predicted)[None], torch.tensor(labels)[None], torch.tensor(loss))
    return SegmentationMetrics.compute(metrics.sums, classes)


def _random(seed: int, count: int = 4, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randint(0, classes, (count, 9, 9), generator=generator)
    return predicted, torch.randint(0, classes + 1, (count, 9, 9), generator=generator)  # the last is ignored


def test_three_classes_by_hand():
    """Class 0: 2 hits of 3 labels, 1 false. Class 1: 1 of 2, 2 false. Class 2: 0 of 1, none false."""
    scores = _scores([[0, 0, 1], [1, 0, 1]], [[0, 0, 0], [1, 1, 2]], 3)
    assert scores.overall_accuracy == pytest.approx(3 / 6)
    assert scores.class_iou == pytest.approx([2 / 4, 1 / 4, 0.0])
    assert scores.macro_iou == pytest.approx((2 / 4 + 1 / 4 + 0) / 3)
    assert scores.micro_iou == pytest.approx(3 / 9)


def test_ignored_pixels_count_neither_as_labels_nor_as_predictions():
    counted = _scores([[0, 0, 1, 1]], [[0, 1, 1, 0]], 2)
    padded = _scores([[0, 0, 1, 1, 0, 1]], [[0, 1, 1, 0, 2, 2]], 2)
    assert counted == padded


def test_a_class_in_neither_labels_nor_predictions_has_no_iou_and_no_say_in_the_mean():
    scores = _scores([[0, 0, 2]], [[0, 2, 2]], 4)
    assert scores.class_iou == [pytest.approx(1 / 2), None, pytest.approx(1 / 2), None]
    assert scores.macro_iou == pytest.approx(1 / 2)


def test_a_class_that_is_only_predicted_has_an_iou_of_zero():
    scores = _scores([[0, 1]], [[0, 0]], 3)
    assert scores.class_iou == [pytest.approx(1 / 2), 0.0, None]
    assert scores.macro_iou == pytest.approx(1 / 4)


def test_all_right_is_one():
    scores = _scores([[0, 1, 1]], [[0, 1, 1]], 2)
    assert (scores.overall_accuracy, scores.micro_iou, scores.macro_iou) == (1.0, 1.0, 1.0)


def test_nothing_counted_is_zero_and_no_error():
    scores = _scores([[0, 1]], [[2, 2]], 2)
    assert scores == SegmentationScores(0.0, 0.0, 0.0, [None, None], 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_micro_iou_is_a_function_of_the_accuracy(seed):
    metrics = SegmentationMetrics(5, 5, CPU)
    metrics.update(*_random(seed), NO_LOSS)
    scores = SegmentationMetrics.compute(metrics.sums, 5)
    assert scores.micro_iou == pytest.approx(scores.overall_accuracy / (2 - scores.overall_accuracy))


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_sets_of_pixels(seed):
    predicted, labels = _random(seed)
    metrics = SegmentationMetrics(5, 5, CPU)
    metrics.update(predicted, labels, NO_LOSS)
    scores = SegmentationMetrics.compute(metrics.sums, 5)
    p, t = predicted.numpy()[labels.numpy() != 5], labels.numpy()[labels.numpy() != 5]
    assert scores.overall_accuracy == pytest.approx(np.mean(p == t))
    for one in range(5):
        assert scores.class_iou[one] == pytest.approx(np.sum((p == one) & (t == one)) / np.sum((p == one) | (t == one)))


def test_sums_of_two_halves_add_up_to_the_whole():
    predicted, labels = _random(0)
    whole, halves = SegmentationMetrics(5, 5, CPU), [SegmentationMetrics(5, 5, CPU) for _ in range(2)]
    whole.update(predicted, labels, torch.tensor(6.0))
    for half, part in zip(halves, (slice(0, 1), slice(1, 4)), strict=True):
        half.update(predicted[part], labels[part], torch.tensor(3.0))
    added = halves[0].sums + halves[1].sums
    assert torch.equal(added, whole.sums)
    assert SegmentationMetrics.compute(added, 5) == SegmentationMetrics.compute(whole.sums, 5)


def test_loss_is_the_mean_over_counted_pixels():
    metrics = SegmentationMetrics(2, 2, CPU)
    metrics.update(torch.zeros(1, 1, 3, dtype=torch.long), torch.tensor([[[0, 1, 2]]]), torch.tensor(3.0))
    metrics.update(torch.zeros(1, 1, 3, dtype=torch.long), torch.tensor([[[2, 2, 0]]]), torch.tensor(0.0))
    assert SegmentationMetrics.compute(metrics.sums, 2).loss == pytest.approx(3.0 / 3)

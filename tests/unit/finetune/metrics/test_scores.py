"""Scores against torchmetrics and against numbers counted by hand."""

import numpy as np
import pytest
import torch
from torchmetrics import functional as reference

from finetune.metrics.scores import (
    average_precision,
    multilabel_scores,
    regression_scores,
    segmentation_scores,
    tile_confusion,
)


def _maps(seed: int, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes, (4, 9, 9)), rng.integers(0, classes + 1, (4, 9, 9))  # the last is ignored


def _confusions(predicted: np.ndarray, labels: np.ndarray, classes: int = 5) -> np.ndarray:
    return np.stack([tile_confusion(one, label, classes) for one, label in zip(predicted, labels, strict=True)])


@pytest.mark.parametrize("seed", range(3))
def test_segmentation_scores_are_torchmetrics(seed):
    predicted, labels = _maps(seed)
    found = segmentation_scores(_confusions(predicted, labels).sum(0))
    told = {"num_classes": 5, "ignore_index": 5}
    p, t = torch.from_numpy(predicted), torch.from_numpy(labels)
    assert found.values["OA"] == pytest.approx(
        float(reference.classification.multiclass_accuracy(p, t, average="micro", **told))
    )
    for name, average in (("mIoU", "macro"), ("micro_iou", "micro")):
        expected = reference.classification.multiclass_jaccard_index(p, t, average=average, **told)
        assert found.values[name] == pytest.approx(float(expected), rel=1e-6)
    expected = reference.classification.multiclass_f1_score(p, t, average="macro", **told)
    assert found.values["macro_f1"] == pytest.approx(float(expected), rel=1e-6)
    each = reference.classification.multiclass_jaccard_index(p, t, average="none", **told)
    assert found.by_output["iou"] == pytest.approx(each.tolist(), rel=1e-6)


def test_micro_iou_is_a_function_of_the_accuracy():
    found = segmentation_scores(_confusions(*_maps(7)).sum(0)).values
    assert found["micro_iou"] == pytest.approx(found["OA"] / (2 - found["OA"]))


def test_three_classes_by_hand():
    """Class 0: 2 hits of 3 labels, 1 false. Class 1: 1 of 2, 2 false. Class 2: 0 of 1, none false. Class 3: nowhere."""
    confusion = tile_confusion(np.array([[0, 0, 1, 1, 0, 1, 2]]), np.array([[0, 0, 0, 1, 1, 2, 4]]), 4)
    found = segmentation_scores(confusion)
    assert found.values["OA"] == pytest.approx(3 / 6)
    assert found.by_output["iou"] == [pytest.approx(2 / 4), pytest.approx(1 / 4), 0.0, None]
    assert found.values["mIoU"] == pytest.approx((2 / 4 + 1 / 4 + 0) / 3)
    assert found.by_output["accuracy"] == [pytest.approx(2 / 3), pytest.approx(1 / 2), 0.0, None]


def test_nothing_counted_is_undefined_and_no_error():
    found = segmentation_scores(np.zeros((2, 2), np.int64))
    assert (found.values, found.by_output["iou"]) == ({}, [None, None])


@pytest.mark.parametrize("seed", range(3))
def test_multilabel_scores_are_torchmetrics(seed):
    rng = np.random.default_rng(seed)
    labels = rng.random((40, 6)) < 0.3
    labels[0] = True
    probabilities = np.round(rng.random((40, 6)) * 0.5 + 0.4 * labels, 1)  # with ties
    found = multilabel_scores(probabilities, labels)
    p, t = torch.from_numpy(probabilities), torch.from_numpy(labels.astype(int))
    precision = reference.classification.multilabel_average_precision
    assert found.values["mAP"] == pytest.approx(float(precision(p, t, 6, average="macro")), rel=1e-6)
    assert found.values["micro_mAP"] == pytest.approx(float(precision(p, t, 6, average="micro")), rel=1e-6)
    f1 = reference.classification.multilabel_f1_score
    above = (p >= 0.5).int()  # torchmetrics counts > 0.5
    assert found.values["macro_f1"] == pytest.approx(float(f1(above, t, 6, average="macro")), rel=1e-6)
    assert found.values["micro_f1"] == pytest.approx(float(f1(above, t, 6, average="micro")), rel=1e-6)
    accuracy = reference.classification.multilabel_accuracy(above, t, 6, average="micro")
    assert found.values["OA"] == pytest.approx(float(accuracy), rel=1e-6)


def test_a_class_without_a_label_has_no_average_precision_and_no_say_in_the_mean():
    assert average_precision(np.array([0.1, 0.9]), np.array([False, False])) is None
    labels = np.array([[True, False], [False, False]])
    found = multilabel_scores(np.array([[0.9, 0.1], [0.2, 0.8]]), labels)
    assert found.by_output["average_precision"] == [1.0, None]
    assert found.values["mAP"] == 1.0


def test_regression_scores_are_torchmetrics_and_the_baseline_is_fixed():
    rng = np.random.default_rng(0)
    true, predicted = rng.normal(size=(30, 4)), rng.normal(size=(30, 4))
    found = regression_scores(predicted, true, (true**2).mean(0))
    p, t = torch.from_numpy(predicted), torch.from_numpy(true)
    rmse = reference.mean_squared_error(p, t, squared=False, num_outputs=4)
    assert found.by_output["rmse"] == pytest.approx(rmse.tolist(), rel=1e-6)
    r2 = reference.r2_score(p, t, multioutput="raw_values")
    assert found.by_output["r2"] == pytest.approx(r2.tolist(), rel=1e-6)
    assert found.values["hyperview_score"] == pytest.approx(
        np.mean(((predicted - true) ** 2).mean(0) / (true**2).mean(0))
    )


def test_to_predict_the_baseline_scores_one():
    true = np.random.default_rng(1).normal(size=(20, 2))
    mean = np.array([0.3, -0.2])
    error = ((true - mean) ** 2).mean(0)
    assert regression_scores(np.tile(mean, (20, 1)), true, error).values["hyperview_score"] == pytest.approx(1.0)

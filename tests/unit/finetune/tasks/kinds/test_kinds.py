"""Every kind of task: what labels become, what is kept of a tile, and scores that resampling reproduces."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from support.registries import registered
from torchmetrics import functional as reference

from finetune.evaluation.provenance import task_hash
from finetune.tasks import Task, dump_task, parse_task
from finetune.tasks.kinds.kind import TaskKind, kind_of
from finetune.tasks.kinds.pixel_regression import PixelRegression
from finetune.tasks.registry import TASK_KINDS, KindConfig
from shards.errors import ConfigError
from shards.sensors.sensor import NODATA

CLASSES = [{"code": 10 * number, "name": f"class {number}", "color": "#0a0b0c"} for number in range(1, 4)]
TARGETS = [{"name": "height", "unit": "m"}, {"name": "biomass", "unit": "t/ha"}]
KINDS = ("segmentation", "multilabel", "classification", "regression", "pixel_regression")
BASELINE = np.array([0.1, 0.2])


def _kind(name: str, **changes: object) -> TaskKind:
    outputs = {"targets": TARGETS} if "regression" in name else {"classes": CLASSES, "ignore": [0]}
    return kind_of(Task.model_validate({"name": "t", "description": "d", "kind": name} | outputs | changes))


def _windows(kind: TaskKind, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions of windows, some of which do not count."""
    rng = np.random.default_rng(seed)
    match kind.task.kind.name:
        case "segmentation":
            return rng.integers(0, 4, (count, 6, 6)).astype(np.int16), rng.integers(0, 3, (count, 6, 6))
        case "multilabel":
            return (rng.random((count, 3)) < 0.4).astype(np.uint8), rng.random((count, 3)).astype(np.float32)
        case "classification":
            return rng.integers(0, 3, count).astype(np.int16), rng.integers(0, 3, count)
        case "regression":
            return rng.random((count, 2)).astype(np.float32), rng.random((count, 2)).astype(np.float32)
        case _:
            labels = rng.normal(size=(count, 2, 6, 6)).astype(np.float32)
            labels[rng.random(labels.shape) < 0.2] = np.nan
            return labels, rng.normal(size=labels.shape).astype(np.float32)


def _statistics(kind: TaskKind, count: int) -> np.ndarray:
    found = np.zeros((count, *kind.statistics_shape))
    for tile, label, predicted in zip(found, *_windows(kind, count), strict=True):
        kind.accumulate(tile, predicted, label, BASELINE)
    return found.astype(kind.tile_type)


def test_these_are_all_kinds():
    assert TASK_KINDS.names()[: len(KINDS)] == KINDS


@pytest.mark.parametrize("name", KINDS)
def test_resampled_scores_are_those_of_the_drawn_tiles(name):
    kind = _kind(name)
    statistics = _statistics(kind, 12)
    weights = np.random.default_rng(1).integers(0, 3, (5, 12))
    expected = [kind.scores(np.repeat(statistics, row, axis=0), BASELINE).values[kind.primary] for row in weights]
    np.testing.assert_allclose(kind.resampled(statistics, weights, BASELINE), expected, rtol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_scores_are_those_that_the_kind_names(name):
    kind = _kind(name)
    scores = kind.scores(_statistics(kind, 12), BASELINE)
    assert set(kind.metrics) == set(scores.values)
    assert kind.by_output[0] in scores.by_output
    assert all(len(values) == kind.outputs for values in scores.by_output.values())


@pytest.mark.parametrize("name", KINDS)
def test_predictions_have_the_shape_of_labels(name):
    kind = _kind(name)
    labels, _ = _windows(kind, 4)
    scores = torch.randn(4, kind.outputs, *((6, 6) if kind.is_dense else ()))
    assert kind.predict(scores).shape == labels.shape
    assert kind.blendable(scores).shape == scores.shape
    votes, counts = kind.votes(labels, grid=3 if kind.is_dense else 1)
    assert votes.shape == (*counts.shape, kind.outputs)
    assert votes.dtype == np.float32


@pytest.mark.parametrize("name", KINDS)
def test_tallies_of_tiles_add_up_and_say_what_is_there(name):
    kind = _kind(name)
    labels, _ = _windows(kind, 5)
    whole = kind.tally(labels)
    np.testing.assert_allclose(sum(kind.tally(one[None]) for one in labels), whole)
    assert kind.known(whole).tolist() == [True] * kind.outputs
    assert not kind.known(kind.tally(None)).any()
    assert all(len(row) == 3 for row in kind.describe_tallies([whole, kind.tally(None)]))


def test_single_labels_are_scored_as_torchmetrics_does():
    kind = _kind("classification")
    labels, predicted = _windows(kind, 40)
    scores = kind.scores(np.stack([predicted, labels], 1).astype(np.int32))
    p, t = torch.from_numpy(predicted), torch.from_numpy(labels)
    told = {"num_classes": 3}
    accuracy = reference.classification.multiclass_accuracy(p, t, average="micro", **told)
    assert scores.values["OA"] == pytest.approx(float(accuracy))
    f1 = reference.classification.multiclass_f1_score(p, t, average="none", **told)
    assert scores.by_output["f1"] == pytest.approx(f1.tolist())
    assert scores.values["macro_f1"] == pytest.approx(float(f1.mean()))
    recall = reference.classification.multiclass_recall(p, t, average="none", **told)
    assert scores.by_output["accuracy"] == pytest.approx(recall.tolist())
    precision = reference.classification.multiclass_precision(p, t, average="none", **told)
    assert scores.by_output["precision"] == pytest.approx(precision.tolist())


def test_pixel_values_are_scored_as_torchmetrics_does_over_the_pixels_with_a_value():
    kind = _kind("pixel_regression")
    labels, predicted = _windows(kind, 12)
    scores = kind.scores(_statistics(kind, 12), BASELINE)
    for target in range(2):
        there = np.isfinite(labels[:, target])
        p, t = (torch.from_numpy(one[:, target][there].astype(np.float64)) for one in (predicted, labels))
        assert scores.by_output["rmse"][target] == pytest.approx(float(((p - t) ** 2).mean().sqrt()))
        assert scores.by_output["mae"][target] == pytest.approx(float(reference.mean_absolute_error(p, t)))
        assert scores.by_output["r2"][target] == pytest.approx(float(reference.r2_score(p, t)), rel=1e-6)


def test_tiles_without_a_value_are_undefined_and_no_error():
    kind = _kind("pixel_regression")
    empty = np.zeros((3, *kind.statistics_shape))
    assert kind.scores(empty).values == {}
    assert np.isnan(kind.resampled(empty, np.ones((2, 3)))).all()


def test_positions_vote_for_the_class_of_most_of_their_pixels():
    kind = _kind("segmentation")
    labels = np.full((1, 4, 4), kind.task.ignore_index, np.int16)
    labels[0, :2, :2] = [[2, 2], [2, 0]]
    labels[0, :2, 2:] = [[1, 3], [3, 3]]
    votes, counts = kind.votes(labels, grid=2)
    assert votes[0, 0].argmax(-1).tolist() == [2, 1]
    assert counts.tolist() == [[[True, True], [False, False]]]


def test_positions_vote_for_the_mean_of_their_values():
    kind = _kind("pixel_regression")
    labels = np.full((1, 2, 4, 4), np.nan, np.float32)
    labels[0, :, :2, :2] = [[[1, 3], [np.nan, 5]], [[10, 10], [10, 10]]]
    votes, counts = kind.votes(labels, grid=2)
    assert votes[0, 0, 0].tolist() == [3, 10]
    assert counts.tolist() == [[[True, False], [False, False]]]


def test_codes_of_whole_tiles_become_indices_and_those_to_ignore_are_left_out():
    kind = _kind("classification")
    assert [kind.encode(np.array(code)) for code in (10, 30)] == [0, 2]
    assert kind.encode(np.array(0)) is None
    assert kind.encode(np.array(NODATA)) is None
    problem = kind.find_problem(np.array(40))
    assert problem == "label code 40 is not a class of task t: add it to its classes, or to 'ignore'"


def test_a_raster_of_other_bands_than_targets_is_a_problem():
    kind = _kind("pixel_regression")
    assert kind.find_problem(np.zeros((2, 4, 4))) is None
    assert kind.find_problem(np.zeros((3, 4, 4))) == "the target raster has 3 bands, but task t has 2 targets"


def test_what_is_drawn_of_a_window():
    label = np.full((1, 4, 4), np.nan, np.float32)
    label[0, 0] = 1, 2, 3, 4
    drawn = _kind("pixel_regression").picture(label, label)
    assert drawn is not None
    assert len({tuple(pixel) for pixel in drawn[0].tolist()}) == 4
    assert (drawn[1:] == 190).all()
    painted = _kind("segmentation").picture(np.array([[0, 3]], np.int16), np.array([[0, 3]]))
    assert painted is not None
    assert painted.tolist() == [[[10, 11, 12], [190, 190, 190]]]
    assert _kind("multilabel").picture(np.zeros(3), np.zeros(3)) is None


@pytest.mark.parametrize(
    ("kind", "outputs", "says"),
    [
        ("classification", {"targets": TARGETS}, "needs 'classes' and no 'targets'"),
        ("pixel_regression", {"classes": CLASSES}, "needs 'targets' and no 'classes'"),
        ("classification", {"classes": CLASSES[:1]}, "a single class, 'class 1', leaves nothing to distinguish"),
        ("segmentatoin", {"classes": CLASSES}, "'segmentatoin'.*does not match any.*'segmentation', 'multilabel'"),
    ],
)
def test_a_task_file_without_what_its_kind_needs_is_one_line(kind, outputs, says):
    with pytest.raises(ValueError, match=says.replace("'classes'", r"\.classes").replace("'targets'", r"\.targets")):
        Task.model_validate({"name": "t", "description": "d", "kind": kind} | outputs)


class ScaledConfig(KindConfig):
    scale: int = 1


@pytest.fixture
def scaled() -> Iterator[None]:
    with registered(TASK_KINDS, "scaled", PixelRegression, ScaledConfig):
        yield


def test_a_kind_has_the_options_that_the_task_file_gives(scaled):
    text = "name: t\ndescription: d\nkind: {kind}\ntargets: [{{name: a}}]\n"
    task = parse_task(text.format(kind="{name: scaled, scale: 3}"), "x")
    assert kind_of(task).config == ScaledConfig(name="scaled", scale=3)
    assert parse_task(dump_task(task), "x") == task
    plain = parse_task(text.format(kind="scaled"), "x")
    assert "kind: scaled" in dump_task(plain)
    assert task_hash(task) != task_hash(plain)
    with pytest.raises(ConfigError, match=r"unknown key 'kind\.scal'; did you mean 'kind\.scale'"):
        parse_task(text.format(kind="{name: scaled, scal: 3}"), "x")

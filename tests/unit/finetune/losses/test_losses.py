"""Losses: torch's and published values, class weights, and sums that don't depend on how a batch is cut."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.segmentation import dice_score

from finetune.losses.loss import Loss, build_loss
from finetune.losses.registry import LOSSES, LossChoice, losses_for
from finetune.tasks import Task
from finetune.tasks.kinds.kind import LabelSummary, TaskKind, kind_of
from shards.config import ConfigModel, check_config
from shards.errors import ConfigError

CLASSES = [{"code": number, "name": f"c{number}", "color": "#000000"} for number in range(5)]


class Lossy(ConfigModel):
    loss: LossChoice


COUNTS = LabelSummary(counts=np.array([10, 20, 40, 30, 0]))


def _kind(name: str) -> TaskKind:
    outputs = {"classes": CLASSES} if "regression" not in name else {"targets": [{"name": "a"}, {"name": "b"}]}
    return kind_of(Task.model_validate({"name": "t", "description": "d", "kind": name} | outputs))


def _loss(kind: str, config: object = None, labels: LabelSummary = COUNTS) -> Loss:
    bound = _kind(kind)
    return build_loss(LOSSES.validate(config or bound.loss), bound, labels)


def _draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _maps(count: int = 4) -> tuple[Tensor, Tensor]:
    scores = torch.randn(count, 5, 3, 3, generator=_draw())
    return scores, torch.randint(0, 6, (count, 3, 3), generator=_draw(1)).short()


def test_cross_entropy_is_summed_over_the_pixels_that_count():
    scores, labels = _maps()
    expected = 0.0
    for sample, row, column in (labels != 5).nonzero().tolist():
        expected -= float(scores[sample, :, row, column].log_softmax(0)[labels[sample, row, column]])
    loss = _loss("segmentation")
    assert float(loss.sum(scores, labels)) == pytest.approx(expected, rel=1e-5)
    assert loss.count(labels) == int((labels != 5).sum())


def test_default_losses_of_tiles_are_torchs():
    scores = torch.randn(3, 5, generator=_draw())
    hot = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.uint8)
    expected = nn.functional.binary_cross_entropy_with_logits(scores, hot.float())
    torch.testing.assert_close(_loss("multilabel").mean(scores, hot), expected)
    indices = torch.tensor([0, 4, 2], dtype=torch.int16)
    torch.testing.assert_close(
        _loss("classification").mean(scores, indices), nn.functional.cross_entropy(scores, indices.long())
    )
    values = torch.randn(3, 2, generator=_draw())
    torch.testing.assert_close(_loss("regression").sum(values, values + 2), torch.tensor(24.0))
    assert _loss("regression").count(values) == 6


@pytest.mark.parametrize(("weights", "used"), [("balanced", [2, 1, 0.5, 2 / 3, 1]), ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])])
def test_class_weights_are_those_of_torch(weights, used):
    scores, labels = _maps()
    loss = _loss("segmentation", {"name": "cross_entropy", "class_weights": weights})
    expected = nn.functional.cross_entropy(
        scores, labels.long(), torch.tensor(used, dtype=torch.float32), ignore_index=5
    )
    torch.testing.assert_close(loss.mean(scores, labels), expected)
    hot = (torch.rand(4, 5, generator=_draw()) > 0.5).byte()
    loss = _loss("multilabel", {"name": "binary_cross_entropy", "class_weights": weights})
    expected = nn.functional.binary_cross_entropy_with_logits(
        scores[:, :, 0, 0], hot.float(), pos_weight=torch.tensor(used, dtype=torch.float32)
    )
    torch.testing.assert_close(loss.mean(scores[:, :, 0, 0], hot), expected)


def test_focal_loss_is_cross_entropy_that_forgets_what_is_easy():
    scores, labels = _maps()
    plain = _loss("segmentation")
    torch.testing.assert_close(
        _loss("segmentation", {"name": "focal", "gamma": 0.0}).mean(scores, labels), plain.mean(scores, labels)
    )
    one, label = torch.tensor([[2.0, 0.0, 0.0, 0.0, 0.0]]), torch.tensor([0], dtype=torch.int16)
    p = float(one.softmax(1)[0, 0])
    found = float(_loss("classification", "focal").mean(one, label))
    assert found == pytest.approx(-((1 - p) ** 2) * np.log(p), rel=1e-5)
    hot = torch.tensor([[1, 0, 0, 0, 0]], dtype=torch.uint8)
    p = one.sigmoid().numpy()[0]
    right = np.where(hot[0].numpy() == 1, p, 1 - p)
    found = float(_loss("multilabel", "focal").mean(one, hot))
    assert found == pytest.approx(float((-((1 - right) ** 2) * np.log(right)).mean()), rel=1e-5)


def test_dice_of_hard_predictions_is_one_minus_the_dice_score():
    labels = torch.randint(0, 5, (3, 8, 8), generator=_draw(2))
    wrong = torch.where(torch.rand(labels.shape, generator=_draw(3)) < 0.3, (labels + 1) % 5, labels)
    scores = 100.0 * nn.functional.one_hot(wrong, 5).movedim(-1, 1).float()
    loss = _loss("segmentation", {"name": "dice", "cross_entropy": 0.0})
    expected = dice_score(wrong, labels, num_classes=5, average="macro", input_format="index").mean()
    assert float(loss.mean(scores, labels.short())) == pytest.approx(1 - float(expected), abs=1e-4)


def test_dice_adds_the_cross_entropy_and_counts_no_ignored_pixel():
    scores, labels = _maps()
    alone = _loss("segmentation", {"name": "dice", "cross_entropy": 0.0})
    both = _loss("segmentation", {"name": "dice", "cross_entropy": 0.5})
    expected = alone.mean(scores, labels) + 0.5 * _loss("segmentation").mean(scores, labels)
    torch.testing.assert_close(both.mean(scores, labels), expected)
    changed = torch.where((labels == 5)[:, None], torch.full_like(scores, 7.0), scores)
    torch.testing.assert_close(both.mean(changed, labels), both.mean(scores, labels))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("segmentation", {"name": "cross_entropy", "class_weights": "balanced"}),
        ("segmentation", {"name": "focal", "class_weights": "balanced"}),
        ("segmentation", {"name": "dice", "class_weights": "balanced"}),
    ],
)
def test_parts_of_a_batch_add_up_to_the_whole(kind, config):
    """So that one process, two processes and micro batches have the same loss."""
    scores, labels = _maps()
    loss = _loss(kind, config)
    parts = sum(loss.sum(*one) for one in zip(scores.split(1), labels.split(1), strict=True))
    torch.testing.assert_close(parts / loss.count(labels), loss.mean(scores, labels))
    assert sum(loss.count(one) for one in labels.split(1)) == pytest.approx(loss.count(labels))


@pytest.mark.parametrize("name", ["mse", "l1", "huber"])
def test_pixels_without_a_value_do_not_count_and_targets_are_standardized(name):
    summary = LabelSummary(mean=np.array([100.0, 0.0]), std=np.array([50.0, 2.0]))
    loss = _loss("pixel_regression", name, summary)
    scores = torch.randn(2, 2, 4, 4, generator=_draw()).requires_grad_()
    labels = torch.randn(2, 2, 4, 4, generator=_draw(1))
    labels[0, :, 0] = torch.nan
    there = ~labels.isnan()
    compare = {"mse": nn.MSELoss(), "l1": nn.L1Loss(), "huber": nn.HuberLoss()}[name]
    scale = torch.tensor([50.0, 2.0]).view(1, 2, 1, 1)
    expected = compare((scores / scale)[there], (labels / scale)[there])
    found = loss.mean(scores, labels)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert scores.grad is not None
    assert not scores.grad[~there].any()
    assert scores.grad.isfinite().all()


def test_losses_of_half_precision_scores_are_float32():
    scores = torch.zeros(1, 5, 64, 64, dtype=torch.bfloat16)
    loss = _loss("segmentation").sum(scores, torch.zeros(1, 64, 64, dtype=torch.long))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(4096 * 1.609438, rel=1e-5)


@pytest.mark.parametrize("name", losses_for("class", is_dense=True))
def test_nothing_to_count_is_a_loss_of_zero(name):
    labels = torch.full((1, 3, 3), 5, dtype=torch.int16)
    assert float(_loss("segmentation", name).mean(torch.randn(1, 5, 3, 3), labels)) == 0.0


def test_losses_of_each_kind():
    assert losses_for("class", is_dense=True) == ["cross_entropy", "focal", "dice"]
    assert losses_for("class", is_dense=False) == ["cross_entropy", "focal"]
    assert losses_for("classes", is_dense=False) == ["binary_cross_entropy", "focal"]
    assert losses_for("value", is_dense=True) == ["mse", "l1", "huber"]


def test_a_misspelled_name_of_a_loss_is_an_unknown_key():
    with pytest.raises(ConfigError, match=r"unknown key 'loss\.nmae'; did you mean 'name'\?"):
        check_config({"loss": {"nmae": "focal"}}, Lossy, "x")

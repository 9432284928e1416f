"""The frozen protocol's batches and its choice of rate and step."""

import numpy as np
import pytest
import torch

from finetune.config import FrozenConfig
from finetune.probe import FeatureSplit, batch_rows, probe
from finetune.tasks import get_task

TASK = get_task("sample_materials")


@pytest.mark.parametrize(("length", "batch"), [(10, 4), (7, 7), (3, 8), (100, 1)])
def test_every_row_is_visited_once_per_epoch_also_across_batches(length, batch):
    rows = np.concatenate([batch_rows(step, batch, length, seed=1) for step in range(4 * length)])
    for epoch in range(len(rows) // length):
        assert sorted(rows[epoch * length : (epoch + 1) * length]) == list(range(length))


def test_epochs_and_seeds_have_orders_of_their_own():
    epochs = [tuple(batch_rows(epoch, 20, 20, seed)) for seed in (0, 1) for epoch in range(3)]
    assert len(set(epochs)) == 6


def test_a_step_depends_on_nothing_but_its_number():
    assert np.array_equal(batch_rows(17, 8, 30, 5), batch_rows(17, 8, 30, 5))
    assert batch_rows(17, 8, 30, 5).dtype == np.int64


def _split(count: int, seed: int) -> FeatureSplit:
    """Features that tell the class of each patch."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 6, (count, 2, 2), generator=generator)
    features = torch.nn.functional.one_hot(classes, 8).permute(0, 3, 1, 2).float()
    labels = classes.repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[:, 0, 0] = TASK.ignore_index
    return FeatureSplit(features + 0.1 * torch.randn(features.shape, generator=generator), labels)


def _probe(**changes):
    splits = {"train": _split(24, 1), "val": _split(6, 2), "test": _split(5, 3)}
    config = FrozenConfig(**({"lrs": (1e-2,), "steps": 40, "batch": 8, "validate_every": 10} | changes))
    return probe(splits, TASK, 4, config, seed=0)


def test_a_head_learns_what_the_features_tell():
    outcome = _probe()
    assert outcome.test.overall_accuracy > 0.8
    assert outcome.maps.shape == (4, 8, 8)
    assert outcome.step in (10, 20, 30, 40)


def test_the_best_of_several_rates_by_validation_loss_is_tested():
    alone = [_probe(lrs=(lr,)) for lr in (1e-6, 1e-2)]
    best = _probe(lrs=(1e-6, 1e-2))
    assert best.lr == 1e-2
    assert best.validation.loss == min(outcome.validation.loss for outcome in alone)
    assert best.test == alone[1].test


def test_the_same_seed_gives_the_same_scores():
    assert _probe().test == _probe().test


def test_the_last_step_is_validated_where_the_interval_does_not_meet_it():
    assert _probe(steps=5, validate_every=100).step == 5

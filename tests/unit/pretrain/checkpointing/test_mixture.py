"""Which sources a run may go on with, and what is said of others."""

import json

import numpy as np
import pytest
from support.objectives import small_config
from support.tables import archive_table

from pretrain.checkpointing.checkpoint import CheckpointError
from pretrain.checkpointing.mixture import (
    Mixture,
    MixtureSource,
    current_mixture,
    mixture_identity,
    order_begin,
    saved_mixture,
    sources_change,
)
from pretrain.checkpointing.resume import _check_same_run
from pretrain.data.inputs import Inputs, Source
from shards.format.manifest import Manifest
from shards.order.mixture import MixturePlan, SourceOrder
from shards.order.plan import SamplePlan

BANDS = "enmap", (500.0, 600.0)
LARGE, SMALL = MixtureSource("large", 2, "a", "h", *BANDS), MixtureSource("small", 1, "b", "h", *BANDS)
BOTH = Mixture((LARGE, SMALL), 8)


def _inputs(weights=(2, 1), begin=0) -> Inputs:
    """Inputs of two sources without shards."""
    table = archive_table(10)
    manifest = Manifest.model_construct(sensor="enmap", wavelength_nm=[500.0], fwhm_nm=[10.0], mean=[1.0], std=[2.0])
    plans = [SamplePlan(table, np.arange(len(table)), letter * 64, 0) for letter in "ab"[: len(weights)]]
    order = SourceOrder(weights, 0, 4)
    sources = tuple(
        Source(name, weight, manifest, plan, np.arange(0), "h")
        for name, weight, plan in zip(("large", "small"), weights, plans, strict=False)
    )
    return Inputs(None, MixturePlan(plans, [0, 20], [0, 1], order, begin), sources, None)  # type: ignore[arg-type]


def _state(inputs: Inputs, samples_seen: int = 96) -> dict:
    data = {"content_hash": inputs.plan.dataset, "held_out": inputs.held_out_hash, **mixture_identity(inputs)}
    return json.loads(json.dumps({"samples_seen": samples_seen, "data": data}))


def test_the_sources_of_a_checkpoint_are_those_that_it_was_saved_with():
    assert saved_mixture(_state(_inputs())) == current_mixture(_inputs())
    assert saved_mixture(_state(_inputs())) != current_mixture(_inputs((3, 1)))


def test_the_order_of_the_same_sources_goes_on_and_that_of_others_begins_at_the_checkpoint():
    assert order_begin(_state(_inputs(begin=32)), _inputs()) == 32
    assert order_begin(_state(_inputs(begin=32)), _inputs((3, 1))) == 96


def test_a_run_of_one_dataset_goes_on_as_one_source():
    inputs = _inputs((1,))
    dataset = inputs.sources[0].plan.dataset
    config = {"data": {"shards": "/data/large"}}
    state = {"samples_seen": 96, "config": config, "data": {"content_hash": dataset, "held_out": "h"}}
    assert saved_mixture(state) == current_mixture(inputs)
    assert order_begin(state, inputs) == 0
    np.testing.assert_array_equal(inputs.plan.tiles(np.arange(60)), inputs.sources[0].plan.tiles(np.arange(60)))


def test_another_name_is_the_same_source():
    renamed = Mixture((MixtureSource("big", 2, "a", "h", *BANDS), SMALL), 8)
    assert renamed == BOTH
    assert sources_change(renamed, Mixture((LARGE,), 8)) == "'small' was removed"


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (Mixture((LARGE,), 8), "'small' was removed"),
        (Mixture((LARGE, SMALL, MixtureSource("new", 1, "c", "h", *BANDS)), 8), "'new' was added"),
        (Mixture((MixtureSource("large", 3, "a", "h", *BANDS), SMALL), 8), "'large' has weight 3, it had 2"),
        (Mixture((LARGE, MixtureSource("small", 1, "c", "h", *BANDS)), 8), "'small' has other tiles"),
        (Mixture((LARGE, MixtureSource("small", 1, "b", "i", *BANDS)), 8), "'small' holds out other locations"),
        (
            Mixture((LARGE, MixtureSource("small", 1, "c", "h", "prisma", (500.0, 602.0))), 8),
            "'small' has other bands (2 of prisma, it had 2 of enmap)",
        ),
        (Mixture((SMALL, LARGE), 8), "their order changed"),
        (Mixture((LARGE, SMALL), 4), "model.bn_group is 4, it was 8"),
    ],
)
def test_what_changed_is_said(now, says):
    assert sources_change(BOTH, now) == says


def test_other_sources_are_refused_until_they_are_accepted(tmp_path, capsys):
    config = small_config({"mask_ratio": 0.5})
    state = {"config": config.model_dump(mode="json"), "step": 10, "data": {"content_hash": "a", "held_out": "h"}}
    says = r"data\.sources differs \('large' was added, .*'x' was removed\); .*checkpoint\.accept=\[data\.sources\]"
    with pytest.raises(CheckpointError, match=says):
        _check_same_run(
            state, config, "m", "h", tmp_path, Mixture((MixtureSource("large", 2, "c", "h", *BANDS), SMALL), 8)
        )
    accepting = config.model_copy(
        update={"checkpoint": config.checkpoint.model_copy(update={"accept": ("data.sources",)})}
    )
    _check_same_run(state, accepting, "m", "h", tmp_path, BOTH)
    assert (
        "WARNING: data.sources differs ('large' has weight 2, it had 1, 'small' was added)" in capsys.readouterr().out
    )

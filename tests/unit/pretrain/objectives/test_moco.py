"""MoCo: the loss by hand, keys put back in order, a queue in sample order, places that are no negatives."""

import math

import numpy as np
import pytest
import torch
from support.objectives import manifest, normalizer, small_config, tile_batch
from support.plain_engine import PlainEngine
from torch.nn import functional as F

from pretrain.objectives.moco import MocoObjective

MOCO = {"name": "moco", "queue": 12, "hidden": 16, "dim": 8, "momentum": 0.5}


@pytest.fixture
def moco():
    objective = MocoObjective(small_config(MOCO), normalizer(), [manifest()])
    return objective, PlainEngine(objective.module)


def test_the_loss_is_info_nce_without_keys_of_the_own_place(moco):
    objective, _ = moco
    module = objective.module.eval()
    images = torch.randn(4, 80, 8, 8, generator=torch.Generator().manual_seed(0))
    keys = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    places = torch.tensor([1, 2, 3, 4])
    module.queue_places[:4] = torch.tensor([2, 2, 9, 4])
    with torch.no_grad():
        losses, hits, queries = module(images, keys, places)
    for sample in range(4):
        own = math.exp(float(queries[sample] @ keys[sample]) / 0.2)
        others = [
            math.exp(float(queries[sample] @ key) / 0.2)
            for key, place in zip(module.queue, module.queue_places, strict=True)
            if place != places[sample]
        ]
        assert len(others) == 12 - {1: 0, 2: 2, 3: 0, 4: 1}[int(places[sample])]
        assert float(losses[sample]) == pytest.approx(-math.log(own / (own + sum(others))), rel=1e-4)
        assert bool(hits[sample]) == (own > max(others))
    torch.testing.assert_close(queries.norm(dim=-1), torch.ones(4))


@torch.no_grad()
def test_the_key_network_begins_as_the_query_network_and_follows_it(moco):
    objective, engine = moco
    images = torch.randn(4, 80, 8, 8, generator=torch.Generator().manual_seed(0))
    with objective.momentum.evaluating():
        assert torch.equal(objective.momentum(engine, images), engine.module.eval().project(images))
    name = "projection_head.layers.0.weight"
    weight = dict(engine.module.named_parameters())[name]
    before = weight.clone()
    objective.loss(engine, tile_batch(objective), 0)
    weight.add_(1.0)
    objective.after_step(engine, 0)
    torch.testing.assert_close(objective.momentum.pieces()[name].values.view_as(before), before + 0.5)


def test_keys_are_shuffled_and_put_back(moco):
    objective, engine = moco
    images = torch.randn(4, 80, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = []
    objective.momentum.module.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with objective.momentum.evaluating():
        orders = [objective.draws(np.arange(first, first + 4), np.zeros(4, np.int64))["shuffle"] for first in range(6)]
        keys = [objective._shuffled_keys(engine, images, torch.from_numpy(order)) for (order,) in orders]
        expected = objective.momentum(engine, images)
    for one in keys:
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)
    seen_orders = {tuple(int((image == images).flatten(1).all(1).nonzero()) for image in batch) for batch in seen[:6]}
    assert seen_orders == {tuple(order) for (order,) in orders}
    assert len(seen_orders) > 1


def test_all_keys_of_a_step_enter_the_queue_in_order_and_wrap(moco):
    objective, engine = moco
    keys = []
    for step in range(4):
        objective.loss(engine, tile_batch(objective, 4 * step), step).backward()
        assert len(objective._keys) == 1
        keys.append(objective._keys[0].clone())
        objective.after_step(engine, step)
        assert objective._keys == []
    assert torch.equal(engine.module.queue, torch.cat([keys[3], keys[1], keys[2]]))
    places = [tile_batch(objective, 4 * step).location_ids for step in (3, 1, 2)]
    assert torch.equal(engine.module.queue_places, torch.cat(places))


def test_two_dates_are_two_views_of_a_location(moco, monkeypatch):
    objective, engine = moco
    seen = []
    forward = type(objective.module).forward
    monkeypatch.setattr(type(objective.module), "forward", lambda self, *x: seen.append(x[0]) or forward(self, *x))
    monkeypatch.setattr(objective, "_shuffled_keys", lambda engine, images, *_: seen.append(images) or torch.ones(4, 8))
    batch = tile_batch(objective)
    batch.tiles[[1, 3]] = 1000  # the second dates: their normalized values are 0
    objective.loss(engine, batch, 0)
    keys, queries = seen
    assert not keys[:2].any()
    assert keys[2:].any()
    assert all(query.any() for query in queries)


def test_a_run_watches_the_spread_of_its_queries(moco):
    objective, engine = moco
    objective.loss(engine, tile_batch(objective), 0)
    scalars = objective.scalars.flush()
    assert 0 < scalars["feature_std"] <= 1.01
    assert 0 <= scalars["contrast_accuracy"] <= 1
    assert objective.scalars.flush() == {}


def test_validation_is_the_same_each_time_and_moves_nothing(moco):
    objective, engine = moco
    tiles = tile_batch(objective).tiles
    before = {name: value.clone() for name, value in objective.module.state_dict().items()}
    sources = torch.zeros(6, dtype=torch.int64)
    first, second = (objective.evaluate(engine, tiles, np.arange(6), sources).losses for _ in range(2))
    assert first.shape == (6,)
    assert torch.equal(first, second)
    assert all(torch.equal(value, before[name]) for name, value in objective.module.state_dict().items())


def test_the_feature_map_comes_without_keys(moco):
    objective, engine = moco
    images = torch.randn(2, 80, 8, 8)
    assert objective.features(engine, images, torch.zeros(2, dtype=torch.int64)).shape == (2, 192, 2, 2)

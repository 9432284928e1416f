"""DINO: the loss by hand, schedules over the whole training, a center that follows, prototypes that can freeze."""

import itertools
import math

import pytest
import torch
from support.objectives import manifest, normalizer, small_config, tile_batch
from support.plain_engine import PlainEngine

from pretrain.objectives.dino import DinoObjective, Prototypes

DINO = {
    "name": "dino",
    "hidden": 16,
    "bottleneck": 8,
    "prototypes": 10,
    "teacher_temperature": 0.04,
    "final_teacher_temperature": 0.07,
    "warmup_temperature_steps": 10,
    "freeze_last_layer_steps": 2,
    "local_crops": {"count": 3, "size": 4, "scale": [0.1, 0.3]},
}


@pytest.fixture
def dino():
    objective = DinoObjective(small_config(DINO), normalizer(), [manifest()])
    return objective, PlainEngine(objective.module)


def test_the_loss_is_over_all_pairs_of_different_views(dino):
    module = dino[0].module.eval()
    generator = torch.Generator().manual_seed(0)
    large, small = (torch.randn(count * 4, 80, size, size, generator=generator) for count, size in ((2, 8), (3, 4)))
    targets = torch.rand(2, 4, 10, generator=generator).softmax(-1)
    with torch.no_grad():
        losses, features = module([large, small], targets)
        logits = torch.cat([module.head(module.encoder(large)), module.head(module.encoder(small))])
    log_student = (logits / 0.1).log_softmax(-1).view(5, 4, 10)
    for sample in range(4):
        terms = [
            -float((targets[teacher, sample] * log_student[student, sample]).sum())
            for teacher in range(2)
            for student in range(5)
            if teacher != student
        ]
        assert len(terms) == 8
        assert float(losses[sample]) == pytest.approx(sum(terms) / 8, rel=1e-4)
    torch.testing.assert_close(features, module.encoder(large), rtol=1e-4, atol=1e-5)


def test_the_teachers_momentum_rises_over_the_whole_training(dino):
    values = [dino[0].teacher_momentum(step) for step in range(51)]
    assert values[0] == pytest.approx(0.996)
    assert values[25] == pytest.approx(0.998)
    assert values[50] == pytest.approx(1.0)
    assert all(one < other for one, other in itertools.pairwise(values))


@torch.no_grad()
def test_the_teacher_begins_as_the_student_and_follows_it(dino):
    objective, engine = dino
    images = torch.randn(2, 80, 8, 8, generator=torch.Generator().manual_seed(0))
    module = engine.module.eval()
    with objective.momentum.evaluating():
        assert torch.equal(objective.momentum(engine, images), module.head(module.encoder(images)))
    before = module.head.last_layer.weight.clone()
    for step, momentum in ((0, 0.996), (25, 0.998)):
        objective.loss(engine, tile_batch(objective), step)
        module.head.last_layer.weight.copy_(before + 100)
        objective.after_step(engine, step)
        teachers = objective.momentum.pieces()["head.last_layer.weight"].values.view_as(before)
        torch.testing.assert_close(teachers, before + 100 * (1 - momentum), rtol=1e-4, atol=1e-4)
        teachers.copy_(before)


def test_the_teachers_temperature_warms_up(dino):
    values = [dino[0].teacher_temperature(step) for step in (0, 5, 10, 49)]
    assert values == pytest.approx([0.04, 0.055, 0.07, 0.07])


def test_the_center_is_the_first_mean_and_then_an_average(dino):
    objective, engine = dino
    means = []
    for step in range(3):
        for half in (0, 1):  # two micro batches a step
            objective.loss(engine, tile_batch(objective, 8 * step + 4 * half), step)
        means.append((objective._logits[0] + objective._logits[1]) / 2)
        objective.after_step(engine, step)
    expected = 0.9 * (0.9 * means[0] + 0.1 * means[1]) + 0.1 * means[2]
    torch.testing.assert_close(engine.module.center, expected)
    assert means[0].shape == (10,)


def test_targets_are_centered_and_sharpened(dino):
    objective, engine = dino
    engine.module.center.copy_(torch.arange(10) / 10)
    logits = torch.rand(8, 10, generator=torch.Generator().manual_seed(0))
    targets = objective._targets(engine, logits, 0)
    expected = [
        [math.exp((float(value) - index / 10) / 0.04) for index, value in enumerate(row)] for row in logits.tolist()
    ]
    expected = torch.tensor([[value / sum(row) for value in row] for row in expected]).view(2, 4, 10)
    torch.testing.assert_close(targets, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("step", "moves"), [(0, False), (1, False), (2, True)])
def test_prototypes_are_frozen_at_first(dino, step, moves):
    objective, engine = dino
    objective.loss(engine, tile_batch(objective), step).backward()
    gradient = engine.module.head.last_layer.weight.grad
    assert bool(gradient.any()) == moves
    assert engine.module.head.layers[0].weight.grad.any()


def test_scores_of_unit_vectors_are_cosines():
    layer = Prototypes(6, 20)
    torch.nn.init.normal_(layer.weight, std=5.0)
    vectors = torch.nn.functional.normalize(torch.randn(30, 6), dim=-1)
    assert float(layer(vectors).detach().abs().max()) <= 1 + 1e-6
    assert torch.allclose(layer(torch.nn.functional.normalize(layer.weight, dim=-1)).diagonal(), torch.ones(20))


def test_local_crops_alternate_between_dates(dino, monkeypatch):
    objective, engine = dino
    batch = tile_batch(objective)
    batch.tiles[[1, 3]] = 1000  # the second dates: their normalized values are 0
    seen = []
    forward = type(objective.module).forward
    monkeypatch.setattr(type(objective.module), "forward", lambda self, *x: seen.append(x[0]) or forward(self, *x))
    objective.loss(engine, batch, 0)
    large, small = seen[0]
    blank = [not crop.any() for crop in large] + [not crop.any() for crop in small]
    assert blank == [False] * 4 + [True, True, False, False] + [False] * 4 + [True, True, False, False] + [False] * 4


def test_features_are_the_teachers(dino):
    objective, engine = dino
    images = torch.randn(2, 80, 8, 8)
    before = objective.features(engine, images, torch.zeros(len(images), dtype=torch.int64))
    with torch.no_grad():
        for parameter in engine.module.parameters():
            parameter.add_(1.0)
    assert torch.equal(objective.features(engine, images, torch.zeros(len(images), dtype=torch.int64)), before)
    assert before.shape == (2, 192, 2, 2)


def test_collapse_would_be_seen(dino):
    objective, engine = dino
    objective.loss(engine, tile_batch(objective), 0)
    scalars = objective.scalars.flush()
    assert 0 < scalars["teacher_entropy"] < 1
    assert scalars["feature_std"] > 0

"""The parts of a step: marks in the order of work, forward and back; shares that add up; garbage at agreed steps."""

import gc
import itertools

import pytest
import torch
from torch import nn

from pretrain.loop import gc_control
from pretrain.loop.gc_control import collected_by_step
from pretrain.metrics import step_parts
from pretrain.metrics.step_parts import StepParts


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spectral_adapter, self.blocks = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.blocks(self.spectral_adapter(x))


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), nn.Linear(4, 4)

    def forward(self, x):
        return self.decoder(self.encoder(x)).square().mean()


@pytest.fixture
def ticking(monkeypatch):
    """A clock that goes on by one at each look."""
    ticks = itertools.count()
    monkeypatch.setattr(step_parts.time, "perf_counter", lambda: float(next(ticks)))


def _step(model: nn.Module, parts: StepParts) -> None:
    with parts.step():
        model(torch.randn(2, 4)).backward()
        parts.mark("optimizer")


def test_marks_follow_the_work_forward_and_back(ticking):
    model = Autoencoder()
    parts = StepParts(model, None, torch.device("cpu"))
    _step(model, parts)
    order = [part for part, _ in parts._marks]
    forward = ["other", "encoder", "stem", "encoder", "other", "decoder", "other"]
    assert order == [*forward, "decoder", "encoder", "stem", "optimizer", None]
    shares = parts.shares()
    assert shares == {
        "other": pytest.approx(3 / 11),
        "encoder": pytest.approx(3 / 11),
        "stem": pytest.approx(2 / 11),
        "decoder": pytest.approx(2 / 11),
        "optimizer": pytest.approx(1 / 11),
    }
    assert sum(shares.values()) == pytest.approx(1)
    assert parts.shares() == {}


def test_what_happens_between_steps_counts_for_nothing(ticking):
    model = Autoencoder()
    parts = StepParts(model, None, torch.device("cpu"))
    _step(model, parts)
    alone = parts.shares()
    _step(model, parts)
    with torch.no_grad():
        model(torch.randn(2, 4))  # an evaluation
    for _ in range(50):
        step_parts.time.perf_counter()
    _step(model, parts)
    assert parts.shares() == pytest.approx(alone)


def test_a_momentum_network_is_a_part(ticking):
    model, average = Autoencoder(), nn.Linear(4, 4)
    parts = StepParts(model, average, torch.device("cpu"))
    with parts.step():
        with torch.no_grad():
            average(torch.randn(2, 4))
        model(torch.randn(2, 4)).backward()
    assert parts.shares()["momentum"] > 0


def test_marks_are_bounded(ticking, monkeypatch):
    monkeypatch.setattr(step_parts, "MARKS", 30)
    model = Autoencoder()
    parts = StepParts(model, None, torch.device("cpu"))
    for _ in range(10):
        _step(model, parts)
    assert len(parts._marks) == 30
    assert sum(parts.shares().values()) == pytest.approx(1)


def test_garbage_is_collected_when_due_and_automatically_afterwards(monkeypatch):
    monkeypatch.setattr(gc_control, "EVERY", 3)
    collected = []
    monkeypatch.setattr(gc_control.gc, "collect", lambda: collected.append(True))
    with pytest.raises(RuntimeError, match="lost"), collected_by_step() as after_step:
        collected.clear()
        assert not gc.isenabled()
        for step in range(1, 8):
            after_step(step)
        raise RuntimeError("lost")
    assert len(collected) == 2
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0

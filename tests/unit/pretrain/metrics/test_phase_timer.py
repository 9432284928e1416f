"""The phases of a step: marks in the order of work, forward and back; shares that add up."""

import itertools

import pytest
import torch
from torch import nn

from pretrain.metrics import phase_timer
from pretrain.metrics.phase_timer import PhaseTimer


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
    monkeypatch.setattr(phase_timer.time, "perf_counter", lambda: float(next(ticks)))


def _step(model: nn.Module, parts: PhaseTimer) -> None:
    with parts.step():
        model(torch.randn(2, 4)).backward()
        parts.mark("optimizer")


def test_marks_follow_the_work_forward_and_back(ticking):
    model = Autoencoder()
    parts = PhaseTimer(model, None, torch.device("cpu"))
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
    parts = PhaseTimer(model, None, torch.device("cpu"))
    _step(model, parts)
    alone = parts.shares()
    _step(model, parts)
    with torch.no_grad():
        model(torch.randn(2, 4))  # an evaluation
    for _ in range(50):
        phase_timer.time.perf_counter()
    _step(model, parts)
    assert parts.shares() == pytest.approx(alone)


def test_a_momentum_network_is_a_part(ticking):
    model, average = Autoencoder(), nn.Linear(4, 4)
    parts = PhaseTimer(model, average, torch.device("cpu"))
    with parts.step():
        with torch.no_grad():
            average(torch.randn(2, 4))
        model(torch.randn(2, 4)).backward()
    assert parts.shares()["momentum"] > 0


def test_marks_are_bounded(ticking, monkeypatch):
    monkeypatch.setattr(phase_timer, "MAX_MARKS", 30)
    model = Autoencoder()
    parts = PhaseTimer(model, None, torch.device("cpu"))
    for _ in range(10):
        _step(model, parts)
    assert len(parts._marks) == 30
    assert sum(parts.shares().values()) == pytest.approx(1)

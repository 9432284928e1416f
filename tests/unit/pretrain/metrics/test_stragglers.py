"""Waits for collectives are measured while the clock is installed, and only then."""

import time

import pytest
import torch
import torch.distributed as dist

from pretrain.config.run import WatchdogConfig
from pretrain.metrics.stragglers import CommunicationClock, Shares, gather_shares
from pretrain.resilience.signals import StopRequest
from pretrain.resilience.watchdog import Watchdog


@pytest.fixture
def alone():
    """A process group of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_waits_are_measured_inside_and_the_method_is_restored(alone, tmp_path, monkeypatch):
    wait = dist.Work.wait

    def slow(work, *arguments, **options):
        time.sleep(0.02)
        return wait(work, *arguments, **options)

    monkeypatch.setattr(dist.Work, "wait", slow)
    clock = CommunicationClock(Watchdog(WatchdogConfig(), tmp_path, StopRequest()))
    dist.all_reduce(torch.ones(2), async_op=True).wait()
    assert clock.seconds() == 0.0
    with pytest.raises(ZeroDivisionError), clock.installed():
        dist.all_reduce(torch.ones(2), async_op=True).wait()
        measured = clock.seconds()
        raise ZeroDivisionError
    assert 0.02 <= measured < 1
    assert dist.Work.wait is slow
    dist.all_reduce(torch.ones(2), async_op=True).wait()
    assert clock.seconds() == measured


def test_shares_add_up_and_the_slowest_waits_least():
    shares = gather_shares(10.0, 2.0, 3.0)
    assert shares.values.tolist() == [[0.2, 0.5, 0.3]]
    several = Shares(torch.tensor([[0.1, 0.5, 0.4], [0.1, 0.8, 0.1], [0.2, 0.5, 0.3]]))
    assert several.slowest == 1
    assert "1*: 10%/80%/10%" in str(several)

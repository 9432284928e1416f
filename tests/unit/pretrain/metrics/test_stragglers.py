"""Waits for collectives are measured while the clock is installed, and only then."""

import time

import pytest
import torch
import torch.distributed as dist

from pretrain.config.run import GuardConfig, WatchdogConfig
from pretrain.engine.zero import read_norm
from pretrain.metrics.stragglers import COLLECTIVES, CommunicationClock, Shares, gather_shares
from pretrain.resilience.guard import Guard
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


@pytest.fixture
def watchdog(tmp_path):
    return Watchdog(WatchdogConfig(), tmp_path, StopRequest())


class Event:
    """A CUDA event whose time is the number of events recorded before it."""

    count = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.time, Event.count = Event.count, Event.count + 1

    def elapsed_time(self, end: "Event") -> float:
        return 1000.0 * (end.time - self.time)


def test_a_collective_that_returns_nothing_is_measured_itself(alone, watchdog, monkeypatch):
    """As NCCL's do since torch 2.8, unless they are asynchronous."""
    seen: list[str] = []

    def like_nccl(group, tensors, options):
        time.sleep(0.02)
        seen.append(watchdog.activity)

    monkeypatch.setattr(dist.ProcessGroup, "allreduce", like_nccl)
    clock = CommunicationClock(watchdog)
    with clock.installed():
        dist.all_reduce(torch.ones(2))
        dist.all_gather_into_tensor(torch.empty(2), torch.ones(2))  # gloo's own returns a Work
    assert seen == ["waiting for other ranks"]
    assert watchdog.activity == "starting"
    assert 0.02 <= clock.seconds() < 1
    assert dist.ProcessGroup.allreduce is like_nccl


def test_on_a_gpu_events_are_put_around_what_blocks_its_stream(alone, watchdog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    real = dist.ProcessGroup.allreduce
    clock = CommunicationClock(watchdog)
    with clock.installed():
        pending = dist.all_reduce(torch.ones(2), async_op=True)
        assert clock.seconds() == 0  # it has only been queued
        pending.wait()
        assert clock.seconds() == 1
        monkeypatch.setattr(dist.ProcessGroup, "allreduce", clock._timed(lambda *_: None, always=False))
        dist.all_reduce(torch.ones(2))
        assert clock.seconds() == 2
    assert dist.ProcessGroup.allreduce is real


def test_all_methods_are_restored_whole(alone, watchdog):
    with CommunicationClock(watchdog).installed():
        pass
    values = torch.ones(2)
    assert dist.all_reduce(values, async_op=True).wait()
    dist.barrier()
    assert {*COLLECTIVES} <= {*vars(dist.ProcessGroup)}


def test_reads_of_device_values_are_waits_to_the_watchdog(watchdog, monkeypatch):
    """A host that waits in a read is not the late rank, but its time is not all spent on others."""
    reads: list[str] = []
    for name in ("tolist", "item"):
        read = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, read=read: reads.append(watchdog.activity) or read(self))
    clock, guard = CommunicationClock(watchdog), Guard(GuardConfig())
    watchdog.begin("step", 3)
    with clock.installed():
        assert guard.judge(torch.tensor(1.0), torch.tensor(2.0), stop=False).loss == 1.0
        assert read_norm(torch.tensor(2.0)) == 2.0
    guard.judge(torch.tensor(1.0), torch.tensor(2.0), stop=False)
    assert reads == ["waiting for other ranks", "waiting for other ranks", "step"]
    assert clock.seconds() == 0


def test_shares_add_up_and_the_slowest_waits_least():
    shares = gather_shares(10.0, 2.0, 3.0)
    assert shares.values.tolist() == [[0.2, 0.5, 0.3]]
    several = Shares(torch.tensor([[0.1, 0.5, 0.4], [0.1, 0.8, 0.1], [0.2, 0.5, 0.3]]), ["a"] * 3)
    assert several.slowest == 1
    assert "1*: 10%/80%/10%" in str(several)

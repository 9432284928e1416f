"""What a watchdog says of ranks that hang, and how a request to stop is heard."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.config.run import WatchdogConfig
from pretrain.resilience.signals import STOPPED, StopRequest
from pretrain.resilience.watchdog import Watchdog


@pytest.fixture
def stop():
    """A request whose handlers are taken away again."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGCONT)
    before = {number: signal.getsignal(number) for number in numbers}
    request = StopRequest()
    request.watched = True
    yield request
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def watchdog(stop, tmp_path):
    dog = Watchdog(WatchdogConfig(step=60), tmp_path, stop)
    dog._world = 3
    dog.begin("step", 7)
    return dog


def place(step: int, activity: str) -> dict:
    return {"phase": "step", "step": step, "activity": activity, "seconds": 61, "host": "node1"}


def test_the_rank_that_does_not_wait_is_the_late_one(watchdog):
    waiting = place(7, "waiting for other ranks")
    text = watchdog._diagnosis({0: waiting, 1: place(7, "reading tiles"), 2: waiting})
    first, *ranks = text.splitlines()
    assert first.startswith("error: hung: no progress within watchdog.step = 60 s: rank 1 on node1 is late; stacks in ")
    assert "  rank 1 on node1: step after step 7, reading tiles, for 61 s" in ranks


def test_a_rank_a_step_behind_is_late(watchdog):
    everyone = {0: place(7, "forward and backward"), 1: place(6, "forward and backward"), 2: place(7, "saving")}
    assert "rank 1 on node1 is late" in watchdog._diagnosis(everyone)


def test_a_rank_that_says_nothing_is_named_before_all_others(watchdog):
    everyone = {0: place(7, "waiting for other ranks"), 2: place(7, "reading tiles")}
    assert "rank 1 does not answer" in watchdog._diagnosis(everyone)


def test_where_all_wait_nobody_is_blamed(watchdog):
    everyone = {rank: place(7, "waiting for other ranks") for rank in range(3)}
    assert "every rank waits for the others" in watchdog._diagnosis(everyone)


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        ({}, 3900),  # evaluation is the longest
        ({"step": 7200}, 7500),
        ({"step": 0}, 86700),
        ({"evaluation": 0, "saving": 100_000}, 100_300),
    ],
)
def test_a_collective_waits_longer_than_every_limit(limits, seconds):
    config = WatchdogConfig(**limits)
    assert config.collective_timeout.total_seconds() == seconds
    assert max(config.setup, config.step, config.evaluation, config.saving) < seconds


class Store:
    """A store of one process, in which other ranks have left some arrivals."""

    def __init__(self, arrived: int) -> None:
        self.arrived, self.asked = arrived, 0

    def add(self, key: str, number: int) -> int:
        assert key == "hung"
        self.arrived, self.asked = self.arrived + number, self.asked + 1
        if self.asked == 3:  # the last one comes
            self.arrived += 1
        return self.arrived


def test_ranks_of_a_hung_run_end_together(watchdog, monkeypatch):
    watchdog._store = Store(1)
    watchdog._meet(3)
    assert (watchdog._store.arrived, watchdog._store.asked) == (3, 3)
    monkeypatch.setattr("pretrain.resilience.watchdog.ANSWER", 0.2)
    watchdog._store = Store(0)
    begun = time.monotonic()
    watchdog._meet(8)  # the others never come
    assert time.monotonic() - begun < 1


def test_a_rank_that_is_cut_off_waits_for_nobody(watchdog):
    watchdog._store = Store(0)
    watchdog._meet(1)
    assert watchdog._store.asked == 0


def test_a_start_at_which_the_ranks_do_not_meet_names_the_place(watchdog, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "n01")
    monkeypatch.setenv("MASTER_PORT", "29400")
    watchdog._expected = 2
    line = watchdog._diagnosis(watchdog._collect()).splitlines()[0]
    assert "has not met all 2 ranks at n01:29400: " in line and "NCCL_SOCKET_IFNAME" in line


def test_activities_nest(watchdog):
    with watchdog.doing("reading tiles"):
        with watchdog.doing("waiting for other ranks"):
            assert watchdog.activity == "waiting for other ranks"
        assert watchdog.activity == "reading tiles"
    assert watchdog.activity == "step"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_are_noted_and_read_from_the_pipe(stop, number):
    os.kill(os.getpid(), number)
    assert stop.reason == number.name
    stop.reason = None
    stop.read_signals()
    assert stop.reason == number.name


def test_sigcont_asks_for_nothing(stop):
    os.kill(os.getpid(), signal.SIGCONT)
    assert not stop.is_set


def test_who_asked_first_is_kept(stop):
    stop.set("SIGTERM")
    since = stop.since
    stop.set("rank 3: SIGUSR1")
    assert (stop.reason, stop.since) == ("SIGTERM", since)


SLEEPER = """
import time
from pretrain.resilience.signals import StopRequest
request = StopRequest()
{watched}
print("ready", flush=True)
while not request.is_set:
    request.look_for_launcher()
    time.sleep(0.05)
print(request.reason, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_before_anything_is_watched_a_signal_ends_the_process_with_the_code_to_start_again(number):
    process = subprocess.Popen([sys.executable, "-c", SLEEPER.format(watched="")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(timeout=60) == STOPPED


def test_workers_of_deepspeed_notice_that_its_command_is_gone(tmp_path: Path):
    """A command, its child (DeepSpeed's launcher) and a worker; the command dies, the child lives on as an orphan."""
    worker = tmp_path / "worker.py"
    worker.write_text(SLEEPER.format(watched="request.watched = True"))
    out = tmp_path / "out.txt"
    start = "import subprocess, sys; subprocess.call(sys.argv[1:])"
    chain = [sys.executable, "-c", start, sys.executable, "-c", start]
    chain += ["sh", "-c", f"exec {sys.executable} {worker} --local_rank=0 > {out}"]
    command = subprocess.Popen(chain)
    deadline = time.monotonic() + 20
    while not (out.exists() and "ready" in out.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    command.kill()
    command.wait()
    while "the deepspeed command has ended" not in out.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)

"""A thread beside the training of each rank that reacts to signals, tells the other ranks, and ends hung runs.

Watchdogs communicate through the process group's key-value store over connections of their own, so that they work
while the main threads wait in a collective. They exchange that the run was asked to stop, and, when a phase has taken
longer than its limit, where each rank is.

A run that was asked to stop saves once all ranks have agreed (guard.py). Before the first step there is nothing to
save, and the watchdogs end their processes at once.
"""

import faulthandler
import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from pretrain.config.run import WatchdogConfig
from pretrain.resilience import flight_recorder
from pretrain.resilience.memory_limit import count_oom_kills, oom_clause
from pretrain.resilience.signals import STOPPED, StopRequest
from shards.files.processes import host_name, rank_name

if TYPE_CHECKING:
    import torch.distributed as dist

    from pretrain.resilience.run_folder import RunFolder
    from pretrain.resilience.status import Status

HUNG = 77
"""Exit code of a run whose phase took longer than its limit."""

Phase = Literal["setup", "step", "evaluation", "saving"]
TICK, ANSWER = 0.5, 4.0
"""Seconds between two checks, and seconds that ranks have to report where they are."""
NAMED = 8
"""Ranks that a message names."""
INTERFACES = (
    "some did not start, are not reached, or listen on another network "
    "(NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME: the interface between the hosts)"
)


class Watchdog:
    """Watches one process, from ``start`` on.

    Args:
        limits: seconds for each phase, 0 for no limit, and of grace.
        folder: run folder; stacks are written to ``stacks-RANK.txt`` there, and the last collectives next to them.
        stop: this process's request to stop, set by signals or by other ranks.

    Attributes:
        run: this rank's RunFolder, once it is open: the end of the run is recorded there.
    """

    def __init__(self, limits: WatchdogConfig, folder: Path, stop: StopRequest) -> None:
        self.limits, self.folder, self.stop = limits, folder, stop
        self.rank, self._expected = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.run: RunFolder | None = None
        self.activity = "starting"
        self._phase: Phase = "setup"
        self._step = 0
        self._since = time.monotonic()
        self._store: dist.Store | None = None
        self._world = 1
        self._hosts = {self.rank: host_name()}
        self._stop_announced = False
        self._other_failed = self._asked = False
        self._oom_kills = count_oom_kills()

    def start(self) -> None:
        """Start watching; from now on a signal requests a stop instead of ending the process at once."""
        self.stop.watched = True
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def connect(self) -> None:
        """Connect to the other ranks' watchdogs; call it when the process group exists."""
        import torch.distributed as dist

        if dist.get_world_size() > 1:
            store = dist.PrefixStore("watchdog", dist.distributed_c10d._get_default_store().clone())  # type: ignore[attr-defined]
            store.set_timeout(timedelta(seconds=ANSWER))
            self._world, self._store = dist.get_world_size(), store
            threading.Thread(target=self._exchange, name="watchdog-exchange", daemon=True).start()

    def report_failure(self, reason: str) -> None:
        """Report that this rank ends with an error.

        Launchers then stop the other ranks by signals, which must not look like a request to start again.
        """
        self.leave_run("failed", reason)
        store = self._store
        if store is not None:
            _bounded(lambda: store.set("failed", str(self.rank)))

    def leave_run(self, status: "Status", reason: str) -> None:
        """Record how the run ended, unless that is recorded already, and release its folder: this process ends."""
        if self.run is not None:
            self.run.end(status, reason)
            self.run.release()

    def oom_clause(self) -> str:
        """Return a clause for a message if the kernel has killed a process of this host for memory, else ""."""
        return oom_clause(self._oom_kills)

    @property
    def ends_as_asked(self) -> bool:
        """Whether ending now without a save is what the run was asked for, rather than another rank's failure."""
        return self.stop.is_set and self._phase == "setup" and not self._other_failed

    def begin(self, phase: Phase, step: int) -> None:
        """Record that the main thread enters a phase after ``step`` steps, and restart the phase's time."""
        self._phase, self._step, self._since, self.activity = phase, step, time.monotonic(), phase

    def stop_requested(self) -> bool:
        """Return whether this rank, or another one as reported through the store, was asked to stop."""
        return self.stop.is_set

    @contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """Name what the main thread does within a phase, for the diagnosis of a hang."""
        before, self.activity = self.activity, activity
        yield
        self.activity = before

    # ---- the thread ----

    def _watch(self) -> None:
        while True:
            if select.select([self.stop.pipe], [], [], TICK)[0]:
                self.stop.read_signals()
            self.stop.look_for_launcher()
            if self.run is not None and self.run.is_lost:
                self.stop.set("the run folder is gone, or another run has taken it over")
            if self.stop.is_set and self._phase == "setup":
                self._leave_setup()
            if self.stop.is_set and self.limits.grace and time.monotonic() - self.stop.since > self.limits.grace:
                self._give_up_saving()
            limit = getattr(self.limits, self._phase)
            if self._asked or (limit and time.monotonic() - self._since > limit):
                self._end_hung()

    def _exchange(self) -> None:
        """Exchange who was asked to stop, who has failed, and whether another rank asks where this one is.

        This has a thread of its own, since a call blocks while rank 0, which holds the store, is suspended.
        """
        assert self._store is not None
        with suppress(RuntimeError):
            self._store.set(f"host {self.rank}", host_name())
            self._hosts[0] = self._store.get("host 0").decode()  # now: later, rank 0 may not answer
        while True:
            try:
                if self.stop.is_set and not self._stop_announced:
                    self._announce_stop()
                elif self._store.check(["stop"]):
                    self._stop_announced = True
                    self.stop.set(self._store.get("stop").decode())
                self._other_failed = self._store.check(["failed"])
                self._asked = self._store.check(["hang"])
            except RuntimeError:  # rank 0 has ended, or its node has failed
                self._other_failed = True
            time.sleep(TICK)

    def _announce_stop(self) -> None:
        assert self._store is not None
        self._stop_announced = True
        self._store.set("stop", f"{rank_name(self.rank)}: {self.stop.reason}")

    def _leave_setup(self) -> NoReturn:
        """End the process before the first step: the newest checkpoint, if there is one, is the state of the run."""
        if self._other_failed:
            self.leave_run("failed", "another rank failed before the first step; see its output")
            os._exit(1)
        if self._store is not None:
            _bounded(self._leave_together)
        message = f"stopped before the first step ({self.stop.reason}): nothing to save; run the same command again"
        self.leave_run("interrupted", message)
        self._print(message)
        os._exit(STOPPED)

    def _leave_together(self) -> None:
        """Wait until all ranks have come here: the rest of a group whose rank 0 is gone would fail with errors."""
        assert self._store is not None
        if not self._stop_announced:
            self._announce_stop()
        arrived, until = self._store.add("left", 1), time.monotonic() + ANSWER
        while arrived < self._world and time.monotonic() < until:
            time.sleep(0.1)
            arrived = self._store.add("left", 0)

    def _give_up_saving(self) -> NoReturn:
        self._dump_stacks()
        message = (
            f"{rank_name(self.rank)}: not saved within watchdog.grace = {self.limits.grace} s of {self.stop.reason} "
            f"(in {self.activity} at step {self._step}); the run continues from the newest checkpoint"
        )
        self.leave_run("interrupted", message)
        self._print(message)
        os._exit(STOPPED)

    # ---- a hang ----

    def _end_hung(self) -> NoReturn:
        """Dump stacks, collect where every rank is, let one rank name the late ones, and end the process."""
        self._dump_stacks()
        everyone = self._collect()
        if self.rank == min(everyone):
            diagnosis = self._diagnosis(everyone)
            with suppress(OSError):
                print(diagnosis, file=sys.stderr, flush=True)
            self.leave_run("failed", diagnosis.splitlines()[0].removeprefix("error: "))
        _bounded(lambda: flight_recorder.dump(self.folder, self.rank))
        self._meet(len(everyone))
        os._exit(HUNG)

    def _meet(self, count: int) -> None:
        """Wait until all ranks that answered are here, so that all end at once, with the code of a hang.

        Otherwise the first one to end would take the others along: NCCL aborts a process whose peer is gone, and
        launchers end the rest. Rank 0 leaves last, since it keeps the store.
        """
        store = self._store
        if store is None or count == 1:  # nobody answered, or nobody could be asked: there is nobody to wait for
            return

        def meet() -> None:
            arrived, until = store.add("hung", 1), time.monotonic() + ANSWER
            while arrived < count and time.monotonic() < until:
                time.sleep(0.05)
                arrived = store.add("hung", 0)

        _bounded(meet)
        if self.rank == 0:
            time.sleep(0.2)

    def _dump_stacks(self) -> None:
        try:
            with open(self.folder / f"stacks-{self.rank:05d}.txt", "w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:
            faulthandler.dump_traceback(all_threads=True)

    def _collect(self) -> dict[int, dict]:
        """Return reports of all ranks that answer in time, including this one."""
        report = {
            "phase": self._phase,
            "step": self._step,
            "activity": self.activity,
            "seconds": round(time.monotonic() - self._since),
            "host": host_name(),
        }
        everyone = {self.rank: report}
        if self._store is not None:
            _bounded(lambda: self._ask(report, everyone))
        return dict(everyone)  # without rank 0's store this rank speaks for itself

    def _ask(self, report: dict, everyone: dict[int, dict]) -> None:
        assert self._store is not None
        self._store.set(f"rank {self.rank}", json.dumps(report))
        self._store.set("hang", "")
        time.sleep(ANSWER)
        for rank in range(self._world):
            if self._store.check([f"rank {rank}"]):
                everyone[rank] = json.loads(self._store.get(f"rank {rank}"))
        for rank in [rank for rank in range(self._world) if rank not in everyone][:NAMED]:
            if self._store.check([f"host {rank}"]):
                self._hosts[rank] = self._store.get(f"host {rank}").decode()

    def _diagnosis(self, everyone: dict[int, dict]) -> str:
        """Return a line that names the ranks that the others wait for, and a line for each of a few ranks."""
        silent = [rank for rank in range(self._world) if rank not in everyone]
        behind = min(report["step"] for report in everyone.values())
        late = silent or [
            rank
            for rank, report in everyone.items()
            if report["step"] == behind and not report["activity"].startswith("waiting")
        ]
        hosts = self._hosts | {rank: report["host"] for rank, report in everyone.items()}
        names = [f"{rank} on {hosts[rank]}" if rank in hosts else f"{rank}" for rank in late[:NAMED]]
        first = everyone[min(everyone)]
        limit = getattr(self.limits, first["phase"])
        what = "does not answer: stopped, dead or disconnected" if silent else "is late"
        named = f"rank {', '.join(names)} {what}" if late else "every rank waits for the others"
        if self._store is None and self._expected > 1:
            place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
            named = f"{rank_name(self.rank)} has not met all {self._expected} ranks at {place}: {INTERFACES}"
        lines = [
            f"error: hung: no progress within watchdog.{first['phase']} = {limit} s: {named}; stacks in {self.folder}"
            f"{self.oom_clause()}"
        ]
        for rank in sorted({*late[:NAMED], *sorted(everyone)[:NAMED]} & everyone.keys()):
            report = everyone[rank]
            lines.append(
                f"  rank {rank} on {report['host']}: {report['phase']} after step {report['step']}, "
                f"{report['activity']}, for {report['seconds']} s"
            )
        return "\n".join(lines)

    def _print(self, text: str) -> None:
        if self.rank == 0 or not self.stop.reason or not self.stop.reason.startswith("rank "):
            with suppress(OSError):
                print(text, flush=True)


def _bounded(talk: Callable[[], None]) -> None:
    """Call a function, but return after twice ``ANSWER`` seconds: a store or a recorder may never answer."""

    def quietly() -> None:
        with suppress(RuntimeError, OSError):
            talk()

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    thread.join(2 * ANSWER)

"""A trace of some training steps by torch.profiler, and on a GPU a snapshot of its memory."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from pretrain import distributed
from pretrain.config.callbacks import ProfilerConfig
from pretrain.console import log
from pretrain.loop.callback import Callback, Outcome
from pretrain.loop.loop import Loop
from shards.files.atomic import atomic_path
from shards.files.journal import BestEffort

MAX_MEMORY_EVENTS = 100_000


class Profiler(Callback):
    """Profiles ``config.steps`` steps from step ``config.at`` on; rank 0 writes, the others are not slowed down.

    ``profile/trace-step-N.json`` opens in https://ui.perfetto.dev or chrome://tracing, and on a GPU
    ``profile/memory-step-N.pickle`` in https://pytorch.org/memory_viz. Files that can't be written are a line each.
    """

    def __init__(self, config: ProfilerConfig, folder: Path) -> None:
        self._first, self._last = config.at, config.at + config.steps - 1
        self._folder = folder / "profile"
        self._profile: profile | None = None

    def before_step(self, loop: Loop) -> None:
        if loop.step + 1 == self._first and distributed.is_main():
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
                torch.cuda.memory._record_memory_history(max_entries=MAX_MEMORY_EVENTS)
            self._profile = profile(activities=activities, record_shapes=True)
            self._profile.start()

    def after_step(self, loop: Loop, outcome: Outcome) -> None:
        if self._profile is not None and (loop.step >= self._last or loop.is_last or loop.stopping):
            self._finish(self._profile)

    def on_end(self, loop: Loop) -> None:
        if self._profile is not None:  # a step failed
            self._finish(self._profile)

    def _finish(self, profiler: profile) -> None:
        self._profile = None
        profiler.stop()
        trace = self._folder / f"trace-step-{self._first:08d}.json"
        self._write(trace, profiler.export_chrome_trace)
        if torch.cuda.is_available():
            memory = self._folder / f"memory-step-{self._first:08d}.pickle"
            self._write(memory, torch.cuda.memory._dump_snapshot)
            torch.cuda.memory._record_memory_history(enabled=None)

    def _write(self, path: Path, write: Callable[[str], object]) -> None:
        with BestEffort(path, Exception):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                write(str(temporary))
            log(f"profile: {path}")

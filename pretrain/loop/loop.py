"""The training loop of pretraining and fine-tuning: optimizer steps, with callbacks at a few moments.

Both floors put one together: pretrain/loop/trainer.py and finetune/protocols/full.py.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from pretrain import distributed
from pretrain.checkpointing.manager import CheckpointManager
from pretrain.engine.zero import ZeroEngine
from pretrain.loop.callback import Callback, Outcome
from pretrain.metrics.timer import Timer
from pretrain.resilience.guard import Guard, Verdict
from pretrain.resilience.watchdog import Watchdog
from shards.errors import ForgeError


class StepFunction(Protocol):
    """What a step minimizes; the objectives of pretraining are step functions."""

    def losses(self, engine: ZeroEngine, batches: Iterator[Any], step: int) -> Iterator[Tensor]:
        """Yield the mean losses of ``engine.accumulation`` micro batches, each after a forward pass of the engine."""

    def after_step(self, engine: ZeroEngine, step: int) -> None:
        """Follow the weights after step ``step`` has moved them."""

    def drop_step(self) -> None:
        """Forget what the micro batches of a skipped step have left."""


@dataclass(frozen=True)
class Schedule:
    """How long to train, and how fast.

    Attributes:
        steps: optimizer steps in all.
        batch_size: samples of a step, of all ranks together.
        lr: learning rate of step 0, 1, ...
    """

    steps: int
    batch_size: int
    lr: Callable[[int], float]


class Loop:
    """A training; every rank has one and calls the same methods.

    Args:
        engine: with the model and the optimizer.
        function: computes the losses.
        schedule: of the whole training.
        guard: decides which steps are applied.
        checkpoints: where the training is saved.
        watchdog: receives heartbeats, and knows whether this rank was asked to stop.
        callbacks: called in this order at every moment.

    Attributes:
        step: optimizer steps taken, skipped ones included.
        samples_seen: samples of these steps; the place in the order of samples.
        stopping: whether the training ends after this step. Callbacks may set it, on every rank alike.
        timer: times the steps; use ``timer.pause`` for whatever isn't one.
    """

    def __init__(
        self,
        engine: ZeroEngine,
        function: StepFunction,
        schedule: Schedule,
        guard: Guard,
        checkpoints: CheckpointManager,
        watchdog: Watchdog,
        callbacks: Sequence[Callback],
    ) -> None:
        self.engine, self.function, self.schedule = engine, function, schedule
        self.guard, self.checkpoints, self.watchdog, self.callbacks = guard, checkpoints, watchdog, callbacks
        self.step = self.samples_seen = 0
        self.stopping = False
        self.timer = Timer()

    @property
    def is_last(self) -> bool:
        """Whether all steps are taken."""
        return self.step >= self.schedule.steps

    def run(self, batches: Iterator[Any]) -> None:
        """Train until all steps are taken or the training is asked to stop.

        Args:
            batches: this rank's micro batches from the current step on; each has ``samples``, its sample numbers.
        """
        distributed.barrier()  # all ranks leave the set-up together: until here, a signal ends them at once
        self.timer.restart(self.step)
        try:
            self.notify("on_start")
            while not self.is_last and not self.stopping:
                self.notify("before_step")
                outcome = self._take_step(batches)
                self.notify("after_step", outcome)
        except ForgeError as error:
            if error.everywhere:  # all ranks are alive: their writers can end
                self.watchdog.begin("saving", self.step)
                self.checkpoints.settle()
            raise
        finally:
            self.notify("on_end")

    def log(self, scalars: dict[str, float], figures: dict[str, bytes] | None = None) -> None:
        """Hand scalars and figures (PNG) of this step to the callbacks that log them."""
        self.notify("on_log", scalars, figures or {})

    def notify(self, moment: str, *details: Any) -> None:
        """Call a method of all callbacks."""
        for callback in self.callbacks:
            getattr(callback, moment)(self, *details)

    def _take_step(self, batches: Iterator[Any]) -> Outcome:
        """Take one step; applied or skipped, its samples count as seen."""
        self.watchdog.begin("step", self.step)
        self.engine.set_lr(self.schedule.lr(self.step))
        verdicts: list[Verdict] = []
        samples: list[Any] = []

        def accept(loss: Tensor, grad_norm: Tensor) -> float | None:
            stop, written = self.watchdog.stop_requested(), self.checkpoints.is_written
            verdicts.append(self.guard.judge(loss, grad_norm, stop, written))
            return verdicts[0].accepted_norm

        losses = self.function.losses(self.engine, self._watched(batches, samples), self.step)
        result = self.engine.step(losses, accept)
        if result.applied:
            self.function.after_step(self.engine, self.step)
        else:
            self.function.drop_step()
        self.step += 1
        self.samples_seen += self.schedule.batch_size
        self.stopping = verdicts[0].stop
        return Outcome(verdicts[0], result.applied, result.losses, samples)

    def _watched(self, batches: Iterator[Any], samples: list[Any]) -> Generator[Any, None, None]:
        """Yield the batches, keep their sample numbers, and tell the watchdog while the rank waits for one."""
        while True:
            with self.watchdog.doing("reading tiles"):
                batch = next(batches)
            samples.append(batch.samples)
            self.watchdog.activity = "forward and backward"
            yield batch

    # ---- checkpoints ----

    def begin_save(self) -> None:
        """Copy the state of this step and write it in the background, after a save that is still in flight.

        Raises:
            RunTaken: on every rank: another run has taken the folder over.
        """
        self.finish_save()
        self.watchdog.begin("saving", self.step)
        self.checkpoints.begin(self._state(), self._check_held)

    def finish_save(self) -> None:
        """Wait for the save in flight, if there is one; see CheckpointManager.finish."""
        if self.checkpoints.in_flight:
            if not self.checkpoints.is_written:
                self.watchdog.begin("saving", self.step)
            self.notify("on_save", self.checkpoints.finish())

    def save(self, checkpoints: CheckpointManager) -> Path:
        """Write a checkpoint of this step to a place of its own and wait for it; see `begin_save`."""
        self.watchdog.begin("saving", self.step)
        return checkpoints.save(self._state(), self._check_held)

    def _state(self) -> dict[str, Any]:
        distributed.raise_on_all_ranks(self._check_held)
        state = {"step": self.step, "samples_seen": self.samples_seen, "guard": self.guard.state()}
        for callback in self.callbacks:
            state |= callback.state(self)
        return state

    def _check_held(self) -> None:
        if self.watchdog.run is not None:
            self.watchdog.run.check_held()

    def resume(self, path: Path) -> dict[str, Any]:
        """Continue from a checkpoint. Returns its state; see CheckpointManager.load."""
        state = self.checkpoints.load(path)
        self.guard.load(state["guard"])
        self.step = int(state["step"])
        self.samples_seen = int(state.get("samples_seen", self.step * self.schedule.batch_size))
        self.notify("load_state", state, path)
        return state

    def rollback(self) -> Path | None:
        """Load the weights of an earlier checkpoint; the order of samples continues. Returns None if there is none."""
        self.finish_save()
        path = self.checkpoints.earlier()
        if path is not None:
            state = self.checkpoints.load(path)
            self.notify("load_state", state, path)
            self.guard.rollback(state["guard"])
        return path

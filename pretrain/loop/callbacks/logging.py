"""Scalars of training at every log step: to the loggers, and as a line on the console."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pretrain import distributed
from pretrain.checkpointing.manager import Saved
from pretrain.config import PretrainConfig
from pretrain.console import duration, log
from pretrain.loop.callback import Callback, Outcome
from pretrain.loop.loop import Loop
from pretrain.metrics.loggers.group import Loggers
from pretrain.metrics.loggers.logger import LoggedRun
from pretrain.metrics.processor import MetricsProcessor

Scalars = dict[str, float]


class Logging(Callback):
    """Collects the scalars of all callbacks every ``log.every`` steps, and writes whatever is logged of any step.

    Args:
        config: of the run.
        metrics: measures the steps.
        sources: return further scalars of a log step; every rank calls them.
    """

    def __init__(
        self, config: PretrainConfig, metrics: MetricsProcessor, *sources: Callable[[], Mapping[str, float]]
    ) -> None:
        self._config, self._metrics, self._sources = config, metrics, sources
        self._loggers: Loggers | None = None

    def on_start(self, loop: Loop) -> None:
        config = self._config
        run = LoggedRun(Path(config.run.dir), loop.step, config.model_dump(mode="json"))
        self._loggers = Loggers(config.log.loggers, run)

    def before_step(self, loop: Loop) -> None:
        self._metrics.phases.start()

    def after_step(self, loop: Loop, outcome: Outcome) -> None:
        self._metrics.phases.stop()
        if loop.step % self._config.log.every == 0 or loop.is_last or loop.stopping:
            self._log_step(loop, outcome)

    def on_log(self, loop: Loop, scalars: Scalars, figures: dict[str, bytes]) -> None:
        if self._loggers is not None:
            self._loggers.record(loop.step, scalars)
            for name, png in figures.items():
                self._loggers.figure(loop.step, name, png)

    def on_save(self, loop: Loop, saved: Saved) -> None:
        loop.log({"checkpoint_seconds": saved.seconds, "checkpoint_wait_seconds": saved.waited})
        log(f"saved {saved.path} in {saved.seconds:.1f} s; the training waited {saved.waited:.2f} s")

    def on_end(self, loop: Loop) -> None:
        if self._loggers is not None:
            self._loggers.close()

    def state(self, loop: Loop) -> dict[str, Any]:
        """Return nothing, but sync the records of the steps that a checkpoint counts as done."""
        if self._loggers is not None:
            self._loggers.sync()
        return {}

    def text(self, loop: Loop, name: str, text: str) -> None:
        """Log a line of text; rank 0 alone writes."""
        if self._loggers is not None:
            self._loggers.text(loop.step, name, text)

    def _log_step(self, loop: Loop, outcome: Outcome) -> None:
        metrics, verdict = self._metrics.read(loop.step, loop.timer), outcome.verdict
        lr = loop.schedule.lr(loop.step - 1)
        scalars = {"lr": lr, **metrics.scalars}
        for values in (
            *(source() for source in self._sources),
            *(callback.scalars(loop) for callback in loop.callbacks),
        ):
            scalars |= values
        if verdict.reason is None:
            scalars |= {"loss": verdict.loss, "grad_norm": verdict.grad_norm}
        loop.log(scalars)
        steps = loop.schedule.steps
        left = (steps - loop.step) * loop.schedule.batch_size / scalars["tiles_per_second"]
        log(
            f"step {loop.step}/{steps}  loss {verdict.loss:.4f}  lr {lr:.2e}  grad norm {verdict.grad_norm:.2f}  "
            f"{metrics}  ETA {duration(left)}"
        )
        if distributed.world_size() > 1:
            log(f"  {metrics.shares}")

"""Progress of an evaluation's training in ``status.json``, and skipped steps on the console."""

from pretrain.checkpointing.manager import Saved
from pretrain.console import log
from pretrain.loop.callback import Callback, Outcome
from pretrain.loop.loop import Loop


class TrainingStatus(Callback):
    """Reports the progress of a training.

    Args:
        name: name of the training.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def after_step(self, loop: Loop, outcome: Outcome) -> None:
        if not outcome.applied:
            log(f"WARNING: {self.name}: step {loop.step} skipped: {outcome.verdict.reason}")
        self._report(loop, at_once=loop.is_last)

    def on_save(self, loop: Loop, saved: Saved) -> None:
        self._report(loop, at_once=True)

    def _report(self, loop: Loop, at_once: bool) -> None:
        if loop.watchdog.run is not None:
            part = f"{self.name}, step {loop.step} of {loop.schedule.steps}"
            loop.watchdog.run.report_progress(part, loop.samples_seen, at_once)

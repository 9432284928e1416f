"""``status.json`` of a pretraining run, written at the start, at every log step and at every save."""

from pretrain import distributed
from pretrain.checkpointing.manager import Saved
from pretrain.loop.callback import Callback
from pretrain.loop.loop import Loop
from pretrain.resilience.run_folder import RunFolder
from pretrain.resilience.status import Status


class StatusFile(Callback):
    """Keeps ``status.json`` up to date.

    Args:
        run: this rank's hold on the run folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run

    def on_start(self, loop: Loop) -> None:
        self.write(loop, "running")

    def on_log(self, loop: Loop, scalars: dict[str, float], figures: dict[str, bytes]) -> None:
        self.write(loop, "running")

    def on_save(self, loop: Loop, saved: Saved) -> None:
        self.write(loop, "running")

    def write(self, loop: Loop, status: Status) -> None:
        """Write the run's status and place; rank 0 alone writes."""
        if distributed.is_main():
            self._run.write_status(status, loop.step, loop.schedule.steps, loop.samples_seen)

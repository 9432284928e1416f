"""Checkpoints every some steps, at the end, and when the training is asked to stop."""

import time

from pretrain.loop.callback import Callback, Outcome
from pretrain.loop.loop import Loop


class Saving(Callback):
    """Saves the training every ``every`` steps, after the last step, and before it stops."""

    def __init__(self, every: int) -> None:
        self.every = every

    def after_step(self, loop: Loop, outcome: Outcome) -> None:
        due = loop.step % self.every == 0 and not loop.guard.in_a_row  # else the weights may be at fault
        if due or loop.is_last or loop.stopping:
            begin = time.monotonic()
            with loop.timer.pause():
                path = loop.save()
            loop.notify("on_save", path, time.monotonic() - begin)

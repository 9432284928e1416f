"""Checkpoints every some steps, at the end, and when the training is asked to stop."""

from pretrain.loop.callback import Callback, Outcome
from pretrain.loop.loop import Loop


class Saving(Callback):
    """Saves the training every ``every`` steps, after the last step, and before it stops.

    A save is written behind the next steps, and finished after the step in which the last rank has written its part.
    The last one, and the one before a stop, are waited for.

    Args:
        every: steps between two checkpoints.
        background: whether to go on training while a checkpoint is written.
    """

    def __init__(self, every: int, background: bool = True) -> None:
        self.every, self.background = every, background

    def after_step(self, loop: Loop, outcome: Outcome) -> None:
        due = loop.step % self.every == 0 and not loop.guard.in_a_row  # else the weights may be at fault
        ends = loop.is_last or loop.stopping
        if not (due or ends or outcome.verdict.saved):
            return
        with loop.timer.pause():
            if outcome.verdict.saved:
                loop.finish_save()
            if due or ends:
                loop.begin_save()
                if ends or not self.background:
                    loop.finish_save()

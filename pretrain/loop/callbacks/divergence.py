"""What is done when step after step is skipped: the weights go back, or the training ends."""

from pretrain.console import log
from pretrain.loop.callback import Callback, Outcome
from pretrain.loop.loop import Loop
from pretrain.resilience.guard import Diverged


class Divergence(Callback):
    """Acts when the guard is out of patience, and when the last steps of a training were skipped.

    Args:
        where: the training, for messages.
        advice: what to do about a divergence, for messages.
        rolls_back: whether the weights go back to an earlier checkpoint; otherwise the training ends.

    Raises (on every rank):
        Diverged: the training is at its end, or there is no checkpoint to go back to.
    """

    def __init__(self, where: str, advice: str, rolls_back: bool) -> None:
        self.where, self.advice, self.rolls_back = where, advice, rolls_back

    def after_step(self, loop: Loop, outcome: Outcome) -> None:
        if loop.guard.is_out_of_patience:
            skipped = f"{loop.guard.in_a_row} steps in a row were skipped"
            if not self.rolls_back:
                raise Diverged(
                    f"{self.where}: diverged at step {loop.step}: {skipped} ({outcome.verdict.reason}): {self.advice}"
                )
            self._roll_back(loop, skipped)
        if loop.is_last:
            loop.guard.check_end(loop.step, self.where, self.advice)

    def _roll_back(self, loop: Loop, skipped: str) -> None:
        path = loop.rollback()
        if path is None:
            raise Diverged(
                f"{self.where}: diverged at step {loop.step}: {skipped}, and there is no earlier checkpoint to return "
                f"to: {self.advice}"
            )
        log(f"WARNING: {skipped}: returned to the weights of {path}; the order of samples continues")

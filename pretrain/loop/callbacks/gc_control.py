"""Python's garbage collection at steps that all ranks agree on.

A collection in the middle of a step makes every other rank wait for it, each rank at another step: on hundreds of GPUs
some rank is always collecting.
"""

import gc

from pretrain.loop.callback import Callback, Outcome
from pretrain.loop.loop import Loop


class GcControl(Callback):
    """Turns automatic collections off and collects every ``every`` steps."""

    def __init__(self, every: int = 100) -> None:
        self.every = every

    def on_start(self, loop: Loop) -> None:
        gc.collect()
        gc.freeze()  # what the set-up has made stays
        gc.disable()

    def after_step(self, loop: Loop, outcome: Outcome) -> None:
        if loop.step % self.every == 0:
            gc.collect()

    def on_end(self, loop: Loop) -> None:
        gc.enable()
        gc.unfreeze()

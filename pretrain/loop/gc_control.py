"""Python's garbage collection, at steps that all ranks agree on.

A collection in the middle of a step makes every other rank wait for it, each rank at another step: on hundreds of GPUs
somebody always collects.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 100
"""Steps between two collections."""


@contextmanager
def collected_by_step() -> Iterator[Callable[[int], None]]:
    """No automatic collections inside; what is yielded is called after each step, and collects when one is due."""
    gc.collect()
    gc.freeze()  # what the set-up has made stays
    gc.disable()

    def after_step(step: int) -> None:
        if step % EVERY == 0:
            gc.collect()

    try:
        yield after_step
    finally:
        gc.enable()
        gc.unfreeze()

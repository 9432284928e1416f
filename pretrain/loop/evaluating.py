"""Evaluations between steps, which end early when the training is asked to stop."""

from collections.abc import Iterator
from contextlib import contextmanager

from pretrain import distributed
from pretrain.console import log
from pretrain.loop.loop import Loop


class Stopped(Exception):
    """An evaluation ended early, on all ranks, because one of them was asked to stop."""


def check_stop(requested: bool) -> None:
    """Raise Stopped on every rank if one was asked to stop; every rank calls it."""
    if distributed.any_rank(requested):
        raise Stopped


@contextmanager
def evaluating(loop: Loop) -> Iterator[None]:
    """Run an evaluation outside of the step's time; one that is asked to stop ends the training at this step."""
    loop.watchdog.begin("evaluation", loop.step)
    with loop.timer.pause():
        try:
            yield
        except Stopped:
            log(f"step {loop.step}  evaluation aborted: stop requested")
            loop.stopping = True

"""Parallel jobs: results as they complete, a progress bar, and no orphaned workers after a kill."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from shards.errors import PackStopped
from shards.plugins import load_plugins, loaded_plugins
from shards.progress import Bar, Counters

Result = TypeVar("Result")

_counters = Counters()


def counters() -> Counters:
    """Return the counters of the jobs that this process runs."""
    return _counters


def run_jobs(
    function: Callable[..., Result], jobs: Sequence[tuple], workers: int, total: int | None, done: int, what: str
) -> Iterator[Result]:
    """Call ``function(*job)`` for every job and yield the results in order of completion.

    Args:
        workers: number of processes; with 1 the jobs run in this process, which also works in a notebook.
        total, done: total and initial position of the bar, in tiles; the jobs advance it through `counters`.
        what: label of the bar.

    Raises:
        PackStopped: if a worker process died.
    """
    global _counters
    if workers == 1 or len(jobs) <= 1:
        _counters = Counters()
        yield from _run_in_process(function, jobs, Bar(_counters, total, done, what))
        return
    # "spawn": forking a process that holds GDAL or numcodecs threads is not safe
    context = multiprocessing.get_context("spawn")
    _counters = Counters(context)
    bar = Bar(_counters, total, done, what)
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _begin, (_counters.shared, loaded_plugins())) as pool:
        waiting = {pool.submit(function, *job) for job in jobs}
        try:
            while waiting:
                finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                bar.refresh()
                for future in finished:
                    yield future.result()
        except BrokenProcessPool:
            raise PackStopped(
                "a worker process died (killed, perhaps out of memory): finished shards are kept, run the same "
                "command again to continue; use fewer --workers if it dies again"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            bar.close()


def _run_in_process(function: Callable[..., Result], jobs: Sequence[tuple], bar: Bar) -> Iterator[Result]:
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(0.5):
            bar.refresh()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        for job in jobs:
            yield function(*job)
    finally:
        stop.set()
        thread.join()
        bar.close()


def _begin(shared: Any, plugins: Sequence[str]) -> None:
    """Initialize a worker: set counters, load plugins, and exit when the parent is killed."""
    _counters.shared = shared
    load_plugins(plugins, "worker")

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

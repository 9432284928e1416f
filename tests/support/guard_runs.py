"""Training runs with faulty steps for tests/distributed/test_guard.py: `python guard_runs.py JOBS.json` on each rank.

A job is a zero_runs job with these optional keys. {"poison": {"rank", "steps"}}: the losses of these steps (0, 1, ...)
are NaN on that rank. {"disk_full_after": N}: from step N on, files of this process can't grow beyond a megabyte.
{"signal_in": phase}: rank 1 receives two signals when it enters that phase after step 3 or later.
{"spoil": {"what", "step"}}: part of the state becomes infinite after the losses of that step (1, 2, ...).
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from launch import runtime
from pretrain.config import PretrainConfig
from pretrain.resilience.signals import StopRequest
from pretrain.resilience.watchdog import Watchdog
from shards.config import load_config
from shards.errors import ForgeError


def run_job(job: dict) -> None:
    from pretrain import distributed
    from pretrain.loop.trainer import Trainer

    config = load_config(job["config"], [f"run.dir={job['dir']}", *job["overrides"]], PretrainConfig)
    watchdog = Watchdog(config.watchdog, Path(job["dir"]), StopRequest())
    watchdog.stop.watched = True
    begin = watchdog.begin

    def begin_and_signal(phase, step):
        begin(phase, step)
        if phase == job.get("signal_in") and step >= 3 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR1)

    watchdog.begin = begin_and_signal  # type: ignore[method-assign]
    try:
        trainer = Trainer(config, watchdog)
        poison, losses = job.get("poison", {"rank": -1}), trainer.objective.losses

        def poisoned(engine, batches, step):
            bad = distributed.rank() == poison["rank"] and step in poison["steps"]
            for loss in losses(engine, batches, step):
                yield loss * float("nan") if bad else loss
            if step + 1 == job.get("spoil", {}).get("step"):
                spoil(trainer, job["spoil"]["what"])
            if step + 1 == job.get("disk_full_after"):
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))

        trainer.objective.losses = poisoned  # type: ignore[method-assign]
        trainer.fit()
    except ForgeError as error:
        if distributed.is_main():
            (Path(job["dir"]) / "error.txt").write_text(f"{error.exit_code} {error.everywhere} {error}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def spoil(trainer, what: str) -> None:
    """Make values infinite that don't affect this step's losses: the momentum network's, or rank 1's moments."""
    from pretrain import distributed

    if what == "momentum":
        list(trainer.objective.momentum.shards.values())[-1].fill_(float("inf"))
    elif distributed.rank() == 1:
        for state in trainer.engine.adapter.base_optimizer.state.values():
            state["exp_avg_sq"].fill_(float("inf"))


def main() -> None:
    runtime.prepare_environment(threads=1)
    runtime.prepare_torch(threads=1)
    from support.zero_runs import freeze_imports, make_shallow

    from pretrain.engine.zero import init_distributed

    init_distributed()
    make_shallow()
    freeze_imports()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run_job(job)
    runtime.end_process(0)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()

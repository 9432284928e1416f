"""Run a list of evaluations as one rank of a process group: `python finetune_runs.py JOBS.json`."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.zero_runs import freeze_imports, make_shallow

from finetune.config import FinetuneConfig
from finetune.evaluate import Evaluator
from pretrain.engine.zero import init_distributed
from pretrain.resilience.signals import StopRequest
from pretrain.resilience.watchdog import Phase, Watchdog
from shards.config import load_config
from shards.errors import ForgeError


class StoppingWatchdog(Watchdog):
    """A watchdog that requests a stop at a given training step or head epoch, as a signal would."""

    stop_at: int | None = None
    stop_at_epoch: int | None = None

    def begin(self, phase: Phase, step: int) -> None:
        super().begin(phase, step)
        if (phase, step) in (("step", self.stop_at), ("evaluation", self.stop_at_epoch)):
            self.stop.set("the test")


def run(job: dict) -> None:
    """Run one job, a config with overrides, and write its outcome to ``outcome.txt`` in its folder."""
    config = load_config(job["config"], job["overrides"], FinetuneConfig)
    folder = Path(config.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    stop = StopRequest()
    watchdog = StoppingWatchdog(config.watchdog, folder, stop)
    watchdog.stop_at, watchdog.stop_at_epoch = job.get("stop_at"), job.get("stop_at_epoch")
    try:
        outcome = "complete" if Evaluator(config, watchdog).evaluate() else "stopped"
    except ForgeError as error:
        outcome = f"{error.exit_code} {error}"
    (folder / "outcome.txt").write_text(outcome)


if __name__ == "__main__":
    init_distributed()
    make_shallow()
    freeze_imports()
    for one in json.loads(Path(sys.argv[1]).read_text()):
        run(one)
    sys.stdout.flush()
    sys.stderr.flush()
    import os

    import torch.distributed as dist

    dist.barrier()
    os._exit(0)  # gloo's threads occasionally abort a normal exit

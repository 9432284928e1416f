"""Evaluate an encoder: `deepspeed launch/finetune.py --config configs/finetune/cdl.yaml checkpoint=FILE [...]`.

The same file runs under `deepspeed`, `torchrun`, `srun` and plain `python`. It resumes from the contents of its run
folder. Exit codes: 0 complete, 1 failed, 2 misuse, 75 stopped by a signal and saved, 76 diverged, 77 hung.
"""

import sys
from pathlib import Path

# Run by path, Python puts launch/ first on sys.path, where the name "finetune" would be this very file.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pretrain.resilience.signals import STOPPED, StopRequest

if __name__ == "__main__":
    STOP = StopRequest()  # before anything takes time: schedulers may send signals at any moment

from finetune.config import FinetuneConfig
from launch import runtime
from launch.command import read_command
from pretrain.resilience.watchdog import Watchdog


def main(argv: list[str] | None = None) -> None:
    """Evaluate until complete or stopped, then end the process."""
    stop = globals().get("STOP") or StopRequest()
    config = read_command(argv, FinetuneConfig, str(__doc__).splitlines()[0])
    runtime.forgive_console()
    runtime.prepare_environment(config.run.threads, Path(config.run.dir))
    watchdog = Watchdog(config.watchdog, Path(config.run.dir), stop)
    watchdog.start()
    with runtime.one_line_errors(watchdog):
        runtime.prepare_torch(config.run.threads)
        from finetune.evaluate import Evaluator
        from pretrain.engine.zero import init_distributed

        init_distributed(config.watchdog.collective_timeout)
        watchdog.connect()
        complete = Evaluator(config, watchdog).evaluate()
    runtime.end_process(0 if complete else STOPPED)


if __name__ == "__main__":
    main()

"""Pretrain an encoder: `deepspeed launch/pretrain.py --config configs/pretrain/mae/demo.yaml [key.sub=value ...]`.

The same file runs under `deepspeed`, `torchrun`, `srun` and plain `python`. It resumes from the contents of its run
folder. Exit codes: 0 complete, 1 failed, 2 misuse, 75 stopped by a signal and saved, 76 diverged, 77 hung.
"""

import sys
from pathlib import Path

# Run by path, Python puts launch/ first on sys.path, where the name "pretrain" would be this very file.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pretrain.resilience.signals import STOPPED, StopRequest

if __name__ == "__main__":
    STOP = StopRequest()  # before anything takes time: schedulers may send signals at any moment

from launch import runtime
from launch.command import read_command
from pretrain.config import PretrainConfig
from pretrain.resilience.watchdog import Watchdog


def main(argv: list[str] | None = None) -> None:
    """Pretrain until complete or stopped, then end the process."""
    stop = globals().get("STOP") or StopRequest()
    config = read_command(argv, PretrainConfig, str(__doc__).splitlines()[0])
    runtime.forgive_console()
    runtime.prepare_environment(config.run.threads, Path(config.run.dir))
    watchdog = Watchdog(config.watchdog, Path(config.run.dir), stop)
    watchdog.start()
    with runtime.one_line_errors(watchdog):
        runtime.prepare_torch(config.run.threads)
        from pretrain import distributed
        from pretrain.engine.zero import init_distributed
        from pretrain.loop.trainer import Trainer
        from pretrain.models.attention import check_backend

        init_distributed(config.watchdog.collective_timeout)
        watchdog.connect()
        if config.model.is_vit:
            distributed.raise_on_all_hosts(lambda: check_backend(config.model.attention, distributed.device()))
        complete = Trainer(config, watchdog).fit()
    runtime.end_process(0 if complete else STOPPED)


if __name__ == "__main__":
    main()

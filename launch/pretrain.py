"""Pretrain an encoder: `deepspeed launch/pretrain.py --config configs/pretrain/mae/demo.yaml [key.sub=value ...]`.

The same file runs under `deepspeed`, `torchrun` and plain `python`. It continues whatever its run folder
holds. Exit codes: 0 complete, 2 misuse, 75 stopped by a signal and saved.
"""

import sys
from pathlib import Path

# Run by path, Python puts launch/ first on sys.path, where the name "pretrain" would be this very file.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch import runtime
from launch.command import fail, read_command
from pretrain.config import PretrainConfig
from shards.errors import ForgeError


def main(argv: list[str] | None = None) -> None:
    """Run until complete or stopped; ends the process."""
    config = read_command(argv, PretrainConfig, str(__doc__).splitlines()[0])
    stop = runtime.StopFlag()
    runtime.prepare_environment(config.run.threads)
    runtime.prepare_torch(config.run.threads)
    from pretrain.engine import init_distributed
    from pretrain.trainer import Trainer

    init_distributed()
    try:
        trainer = Trainer(config, stop)
    except ForgeError as error:  # the same on every rank
        fail(error)
    try:
        complete = trainer.fit()
    except ForgeError as error:  # perhaps on this rank alone: the launcher ends the others
        runtime.abort(error)
    runtime.end_process(0 if complete else runtime.STOPPED)


if __name__ == "__main__":
    main()

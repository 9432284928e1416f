"""Evaluate an encoder: `python launch/finetune.py --config configs/finetune/demo.yaml [key.sub=value ...]`.

Runs under `deepspeed`, `torchrun` and plain `python`. Exit codes: 0 done, 2 misuse.
"""

import sys
from pathlib import Path

# Run by path, Python puts launch/ first on sys.path, where the name "finetune" would be this very file.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from finetune.config import FinetuneConfig
from launch import runtime
from launch.command import read_command


def main(argv: list[str] | None = None) -> None:
    """Evaluate and end the process."""
    config = read_command(argv, FinetuneConfig, str(__doc__).splitlines()[0])
    runtime.prepare_environment(config.run.threads)
    runtime.prepare_torch(config.run.threads)
    with runtime.one_line_errors():
        from finetune.evaluate import evaluate, prepare
        from pretrain.engine import init_distributed

        init_distributed()
        evaluate(config, prepare(config))
    runtime.end_process(0)


if __name__ == "__main__":
    main()

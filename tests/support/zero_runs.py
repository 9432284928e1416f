"""Run many training jobs in one process group: `python zero_runs.py JOBS.json [--shallow]` on each rank.

A job is {"dir", "config", "overrides", "stop_at", "copy_from", "probe"}: train in ``dir``, stopping after
``stop_at`` steps if given, from a copy of ``copy_from``'s folder. The error of a failed job is written to
``dir/error.txt``; with ``probe``, the dtypes of weights and buffers are written to ``dir/dtypes.json``, and the
largest difference of the fp32 weights from those that the seed draws to ``dir/masters.json``.
"""

import gc
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

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

    folder = Path(job["dir"])
    if distributed.is_main() and job.get("copy_from"):
        shutil.copytree(job["copy_from"], folder)
    distributed.barrier()
    config = load_config(job["config"], [f"run.dir={folder}", *job.get("overrides", [])], PretrainConfig)
    try:
        watchdog = Watchdog(config.watchdog, folder, StopRequest())
        watchdog.stop_requested = lambda: trainer.step + 1 == job.get("stop_at")  # type: ignore[method-assign]
        trainer = Trainer(config, watchdog)
        if job.get("probe"):
            module = trainer.engine.module
            dtypes = {name: str(tensor.dtype) for name, tensor in (*module.named_parameters(), *module.named_buffers())}
            (folder / "dtypes.json").write_text(json.dumps(dtypes))
            (folder / "masters.json").write_text(json.dumps(largest_master_error(config, trainer)))
        trainer.fit()
    except ForgeError as error:
        if distributed.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "error.txt").write_text(str(error))


def largest_master_error(config: PretrainConfig, trainer) -> float:
    """Return the largest difference of the engine's fp32 weights from those that the run's seed draws."""
    from deepspeed.utils import safe_get_full_fp32_param

    from pretrain.objectives import build_objective

    drawn = dict(
        build_objective(config, trainer.objective.normalize, trainer.inputs.manifests).module.named_parameters()
    )
    masters = trainer.engine.module.named_parameters()
    if config.engine.zero_stage == 0:
        return max(float((value - drawn[name]).abs().max()) for name, value in masters)
    return max(float((safe_get_full_fp32_param(value) - drawn[name]).abs().max()) for name, value in masters)


def make_shallow() -> None:
    """Reduce the number of identical blocks: ZeRO's hooks take seconds for each step in deep models."""
    from pretrain.models import published, resnet

    published.SPEC_VITS["spec_vit_tiny"] = replace(published.SPEC_VITS["spec_vit_tiny"], depth=2)
    resnet.LAYERS = tuple((outputs, width, 1) for outputs, width, _ in resnet.LAYERS)


def freeze_imports() -> None:
    """Exempt what imports have made from collections, which would take longer than many a job: two in each.

    For this, runs freeze nothing of their own: unfreezing would not tell the two apart.
    """
    import torch._dynamo  # noqa: F401  # which torch's optimizers load

    from pretrain.loop import trainer
    from pretrain.loop.callbacks import gc_control

    assert trainer.GcControl is gc_control.GcControl
    gc.collect()
    gc.freeze()
    steps = {name: getattr(gc, name) for name in ("collect", "enable", "disable")}
    gc_control.gc = SimpleNamespace(**steps, freeze=lambda: None, unfreeze=lambda: None)  # type: ignore[assignment]


def main() -> None:
    runtime.prepare_environment(threads=1)
    runtime.prepare_torch(threads=1)
    from pretrain.engine.zero import init_distributed

    init_distributed()
    jobs = json.loads(Path(sys.argv[1]).read_text())
    if "--shallow" in sys.argv:
        make_shallow()
    freeze_imports()
    for job in jobs:
        run_job(job)
    runtime.end_process(0)


if __name__ == "__main__":
    main()

"""Checkpoints as transactions that any world size and any ZeRO stage can load.

::

    RUN/checkpoints/
      step-00000200/
        weights-00000-of-00002.safetensors     fp32 parameters and buffers by name, split over the writing ranks
        optimizer-00000-of-00002.safetensors   Adam's exp_avg and exp_avg_sq (SGD's momentum) by parameter name
        teacher-00000-of-00002.safetensors     the momentum network of MoCo and DINO, fp32
        state.json                             step, samples seen, config, dataset
        checkpoint.json                        size and SHA-256 of each file; written last
      step-00000400.tmp/                       being written, or left by a kill: never read

Every rank takes part in gathering each parameter and writes the ones it owns; a rank never holds more
than its share. The staged folder gets its name only when all files are on disk.

This reads private attributes of DeepSpeed's ZeRO optimizers, whose public checkpoints are bound to the
world size and stage that wrote them; setup.cfg therefore bounds its version, and the tests run the matrix.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pretrain import distributed
from pretrain.engine import ZeroEngine
from pretrain.momentum import MomentumNetwork
from shards.atomic import TEMPORARY, fsync_folder, write_atomic
from shards.errors import ForgeError

FORMAT = 1
SEAL = "checkpoint.json"
STATE = "state.json"
MOMENTS = {torch.optim.AdamW: ("exp_avg", "exp_avg_sq"), torch.optim.SGD: ("momentum_buffer",)}


class CheckpointError(ForgeError):
    """A checkpoint that is damaged, missing where one was expected, or of another run."""


def save_checkpoint(
    engine: ZeroEngine, folder: Path, state: dict[str, Any], keep: int, momentum: MomentumNetwork | None = None
) -> Path:
    """Write ``folder/step-N`` and drop older ones beyond ``keep``; every rank must call it.

    Args:
        momentum: the average that belongs to the engine's weights, where the objective has one.
        state: plain JSON, the same on all ranks; read back by ``read_state``.
    """
    final = folder / f"step-{engine.step_count:08d}"
    staged = final.with_name(final.name + TEMPORARY)
    if distributed.is_main():
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
    distributed.barrier()
    weights, optimizer, adam_step = _gather_owned(engine)
    part = f"{distributed.rank():05d}-of-{distributed.world_size():05d}.safetensors"
    written = {}
    kinds = {"weights": weights, "optimizer": optimizer}
    if momentum is not None:
        kinds["teacher"] = momentum.owned_tensors()
    for kind, tensors in kinds.items():
        written[f"{kind}-{part}"] = _write_tensors(staged / f"{kind}-{part}", tensors)
    everyone = distributed.gather_objects(written)
    if distributed.is_main():
        text = json.dumps(state | {"format": FORMAT, "step": engine.step_count, "adam_step": adam_step}, indent=1)
        write_atomic(staged / STATE, text)
        files = {name: seal for files in everyone for name, seal in files.items()}
        files[STATE] = _seal(staged / STATE)
        write_atomic(staged / SEAL, json.dumps({"format": FORMAT, "files": files}, indent=1))
        fsync_folder(staged)
        if final.exists():  # a step that was saved, damaged, and reached again
            shutil.rmtree(final)
        os.rename(staged, final)
        fsync_folder(folder)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    distributed.barrier()
    return final


def load_checkpoint(engine: ZeroEngine, path: Path, momentum: MomentumNetwork | None = None) -> None:
    """Put a checkpoint's weights, buffers and optimizer state into an engine of any world size and stage.

    Raises:
        CheckpointError: it holds another model.
    """
    with _TensorFiles(path, "weights") as weights, _TensorFiles(path, "optimizer") as optimizer:
        _check_model(engine, weights, path)
        adam_step = float(read_state(path)["adam_step"])
        _create_optimizer_state(engine, adam_step)
        _set_parameters(engine, weights, optimizer)
        _refresh_model_copies(engine)
        with torch.no_grad():
            for name, buffer in engine.module.named_buffers():
                if name in weights.names:
                    buffer.copy_(weights.get(name))
    if momentum is not None:
        _load_momentum(momentum, path)
    engine.deepspeed.global_steps = int(read_state(path)["step"])
    distributed.barrier()


def newest_verified(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose every file has its size and hash, and a line for each newer one that hasn't.

    Raises:
        CheckpointError: there are checkpoints and none is whole: training anew would hide the loss.
    """
    problems: list[str] = []
    found = list_checkpoints(folder)
    for path in reversed(found):
        problem = find_damage(path)
        if problem is None:
            return path, problems
        problems.append(problem)
    if found:
        raise CheckpointError(f"{folder}: no whole checkpoint left ({problems[0]}); move the folder away to start anew")
    return None, problems


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if not path.name.endswith(TEMPORARY))


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, in one line that names the file, or None."""
    try:
        files = json.loads((path / SEAL).read_bytes())["files"]
        seals = {name: {"size": seal["size"], "sha256": seal["sha256"]} for name, seal in files.items()}
        seals[STATE]  # without it, nothing is sealed
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{path / SEAL}: missing or unreadable"
    for name, expected in seals.items():
        try:
            if (path / name).stat().st_size != expected["size"]:
                return f"{path / name}: {(path / name).stat().st_size} bytes where {expected['size']} were written"
            if _seal(path / name) != expected:
                return f"{path / name}: its content changed since it was written"
        except OSError:
            return f"{path / name}: missing"
    return None


def read_state(path: Path) -> dict[str, Any]:
    """The JSON state of a checkpoint."""
    return json.loads((path / STATE).read_bytes())


def read_weights(path: Path, prefix: str, kind: Literal["weights", "teacher"] = "weights") -> dict[str, Tensor]:
    """All weights and buffers below ``prefix.``, without it, from the files alone."""
    with _TensorFiles(path, kind) as weights:
        return {
            name.removeprefix(f"{prefix}."): weights.get(name)
            for name in weights.names
            if name.startswith(f"{prefix}.")
        }


# ---- gathering and writing ----


def _gather_owned(engine: ZeroEngine) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """This rank's share of weights and moments (fp32, on the CPU), and Adam's step (0 under SGD)."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    _link_optimizer_state(engine)
    weights: dict[str, Tensor] = {}
    optimizer: dict[str, Tensor] = {}
    parameters, names = dict(engine.module.named_parameters()), _moments(engine)
    for number, name in enumerate(engine.names):
        parameter = parameters[name]
        if engine.config.zero_stage == 0:
            state = engine.deepspeed.optimizer.state[parameter]
            full, moments = parameter.data, [state[moment] for moment in names]
        else:  # collective: every rank calls it for every parameter
            full = safe_get_full_fp32_param(parameter)
            moments = [safe_get_full_optimizer_state(parameter, moment) for moment in names]
        if number % distributed.world_size() == distributed.rank():
            weights[name] = _cpu_copy(full)
            for moment, value in zip(names, moments, strict=True):
                optimizer[f"{name}/{moment}"] = _cpu_copy(value)
    if distributed.is_main():
        weights |= {name: buffer.detach().cpu().clone() for name, buffer in engine.module.named_buffers()}
    states = _base_optimizer(engine).state.values()
    return weights, optimizer, max(float(state.get("step", 0)) for state in states)


def _cpu_copy(value: Tensor) -> Tensor:
    return value.detach().float().cpu().clone().contiguous()


def _link_optimizer_state(engine: ZeroEngine) -> None:
    """Stages 1 and 2 link parameters to Adam's state once, for the first group only; do it anew for all groups."""
    if engine.config.zero_stage in (1, 2):
        engine.deepspeed.optimizer._hp_optimizer_states_linked = False
        engine.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    try:
        save_file(tensors, path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        return _seal(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: can't be written: {error}; the checkpoint before is whole") from None


def _seal(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


# ---- reading ----


class _TensorFiles:
    """The tensors of all parts of one kind, read one by one."""

    def __init__(self, path: Path, kind: str) -> None:
        self._files = [safe_open(part, framework="pt") for part in sorted(path.glob(f"{kind}-*.safetensors"))]
        self._where = {name: file for file in self._files for name in file.keys()}

    @property
    def names(self) -> set[str]:
        return set(self._where)

    def get(self, name: str) -> Tensor:
        return self._where[name].get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._where[name].get_slice(name).get_shape())

    def __enter__(self) -> "_TensorFiles":
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files:
            file.__exit__(None, None, None)


def _check_model(engine: ZeroEngine, weights: _TensorFiles, path: Path) -> None:
    own = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in engine.module.named_parameters()}
    missing = sorted(name for name in own if name not in weights.names)
    other = sorted(name for name in own if name not in missing and weights.shape(name) != own[name])
    known = own.keys() | {name for name, _ in engine.module.named_buffers()}
    extra = sorted(weights.names - known)
    for names, what in ((missing, "lacks"), (other, "has another shape of"), (extra, "has, and this model doesn't,")):
        if names:
            raise CheckpointError(f"{path}: checkpoint of another model: it {what} {len(names)} tensors: {names[0]}")


def _base_optimizer(engine: ZeroEngine) -> torch.optim.Optimizer:
    """The torch optimizer inside DeepSpeed's."""
    optimizer = engine.deepspeed.optimizer
    return optimizer if engine.config.zero_stage == 0 else optimizer.optimizer


def _flat_partitions(engine: ZeroEngine) -> Iterator[Tensor]:
    """The tensors that the torch optimizer steps: this rank's flat fp32 partitions, or the parameters at stage 0."""
    if engine.config.zero_stage == 0:
        yield from (p for p in engine.module.parameters() if p.requires_grad)
    elif engine.config.zero_stage == 3:
        yield from engine.deepspeed.optimizer.fp32_partitioned_groups_flat
    else:
        yield from engine.deepspeed.optimizer.single_partition_of_fp32_groups


def _moments(engine: ZeroEngine) -> tuple[str, ...]:
    """What the optimizer keeps for each weight."""
    return MOMENTS[type(_base_optimizer(engine))]


def _create_optimizer_state(engine: ZeroEngine, step: float) -> None:
    """Optimizers make their state in the first step; a loaded one has to be there before."""
    base = _base_optimizer(engine)
    for flat in _flat_partitions(engine):
        base.state[flat] = {moment: torch.zeros_like(flat) for moment in _moments(engine)}
        if isinstance(base, torch.optim.AdamW):
            base.state[flat]["step"] = torch.tensor(step)
    _link_optimizer_state(engine)


def _set_parameters(engine: ZeroEngine, weights: _TensorFiles, optimizer: _TensorFiles) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    parameters = dict(engine.module.named_parameters())
    for name in engine.names:
        parameter = parameters[name]
        moments = {moment: optimizer.get(f"{name}/{moment}") for moment in _moments(engine)}
        if engine.config.zero_stage == 0:
            parameter.data.copy_(weights.get(name))
            for moment, value in moments.items():
                engine.deepspeed.optimizer.state[parameter][moment].copy_(value)
        else:
            safe_set_full_fp32_param(parameter, weights.get(name).to(distributed.device()))
            for moment, value in moments.items():
                safe_set_full_optimizer_state(parameter, value.to(distributed.device()), moment)


def _load_momentum(momentum: MomentumNetwork, path: Path) -> None:
    with _TensorFiles(path, "teacher") as files:
        wrong = [name for name in momentum.tensor_names() if name not in files.names]
        wrong += [name for name in momentum.tensor_names() if not wrong and files.shape(name) != momentum.shape(name)]
        if wrong:
            raise CheckpointError(f"{path}: its momentum network has no '{wrong[0]}' of this model's shape")
        for name in momentum.tensor_names():
            momentum.set_tensor(name, files.get(name))


def _refresh_model_copies(engine: ZeroEngine) -> None:
    """Setting the fp32 master leaves the copies that the forward uses as they were; bring them after it."""
    optimizer = engine.deepspeed.optimizer
    if engine.config.zero_stage == 3:
        for group, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
            optimizer.fp16_partitioned_groups_flat[group].data.copy_(flat.data)
            optimizer._unflatten_partitioned_parameters(group)
        persistent = getattr(optimizer, "persistent_parameters", [])
        if persistent:  # these stay gathered between steps, so they are copies too
            persistent[0].partition(persistent)
            persistent[0].all_gather(persistent)
    elif engine.config.zero_stage in (1, 2):
        from deepspeed.runtime.utils import all_gather_dp_groups

        for group, flat in enumerate(optimizer.single_partition_of_fp32_groups):
            rank = torch.distributed.get_rank(group=optimizer.real_dp_process_group[group])
            optimizer.parallel_partitioned_bit16_groups[group][rank].data.copy_(flat.data)
        all_gather_dp_groups(
            groups_flat=optimizer.bit16_groups_flat,
            partitioned_param_groups=optimizer.parallel_partitioned_bit16_groups,
            dp_process_group=optimizer.real_dp_process_group,
            start_alignment_factor=optimizer.nccl_start_alignment_factor,
            allgather_bucket_size=optimizer.allgather_bucket_size,
        )

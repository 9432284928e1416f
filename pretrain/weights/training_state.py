"""The whole state of a training in a checkpoint, in the forms of plain torch: state dicts, DCP folders, and back.

A folder of torch.distributed.checkpoint that is written here holds::

    model.*      module.state_dict(): fp32 weights and buffers
    buffers.*    buffers that a state dict leaves out, such as statistics of bands
    optim.*      state and param_groups of the optimizer by parameter name, as `get_optimizer_state_dict` returns them,
                 and the groups' values once for each parameter, as it does with flatten_optimizer_state_dict
    teacher.*    the momentum network of MoCo and DINO
    random.*     the random generators of the processes
    state.json, checkpoint.json    the checkpoint's state, and the sizes and hashes of the folder's files

The hashes tell whether the folder is as it was written: the run can go on from a checkpoint that is made of it then.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pretrain.weights.checkpoint_files import (
    SEAL,
    STATE,
    TENSOR_INDEX,
    check_seal,
    read_json_file,
    read_kind,
    read_seals,
    seal_of,
)
from pretrain.weights.dcp_files import is_dcp, write_dcp
from pretrain.weights.description import WeightsError
from pretrain.weights.raw_checkpoint import resolve
from shards.files.atomic import TEMPORARY, atomic_open, fsync_folder, write_atomic

KINDS = ("weights", "optimizer", "teacher", "random")
FORMAT = 3
"""Of checkpoints that are written; see pretrain/checkpointing/checkpoint.py."""


@dataclass(frozen=True)
class TrainingState:
    """Everything in a checkpoint.

    Attributes:
        where: the checkpoint, for messages.
        tensors: by kind (`KINDS`) and name; the optimizer's are named ``parameter/moment``.
        state: the checkpoint's JSON.
    """

    where: str
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]

    def model(self) -> dict[str, Tensor]:
        """Return the module's state dict."""
        beside = set(self._recorded("buffers_of_data"))
        return {name: tensor for name, tensor in self.tensors["weights"].items() if name not in beside}

    def buffers(self) -> dict[str, Tensor]:
        """Return the buffers that the module's state dict leaves out."""
        return {name: self.tensors["weights"][name] for name in self._recorded("buffers_of_data")}

    def optimizer_by_name(self) -> dict[str, Any]:
        """Return the optimizer's state dict with names of parameters, as `get_optimizer_state_dict` does."""
        recorded = self._recorded("optimizer")
        state: dict[str, dict[str, Tensor]] = {}
        for name, value in self.tensors["optimizer"].items():
            parameter, _, moment = name.rpartition("/")
            state.setdefault(parameter, {})[moment] = value
        if recorded["counts_steps"]:
            for own in state.values():
                own["step"] = torch.tensor(float(self.state["adam_step"]))
        return {"state": state, "param_groups": [_values(group) for group in recorded["param_groups"]]}

    def optimizer(self) -> dict[str, Any]:
        """Return the optimizer's state dict with numbers of parameters, for ``load_state_dict``.

        Each group lists the names of its parameters under ``param_names``, in their order.
        """
        named, groups = self.optimizer_by_name(), []
        names = [name for group in named["param_groups"] for name in group["params"]]
        numbers = {name: number for number, name in enumerate(names)}
        for group in named["param_groups"]:
            own = group["params"]
            groups.append({**group, "params": [numbers[name] for name in own], "param_names": own})
        state = {numbers[name]: values for name, values in named["state"].items()}
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def _recorded(self, key: str) -> Any:
        if key not in self.state:
            raise WeightsError(
                f"{self.where}: saved by an earlier version, which did not record the optimizer's parameter groups: "
                "continue the run up to its next checkpoint, and convert that"
            )
        return self.state[key]


def read_training_state(path: Path) -> TrainingState:
    """Read a checkpoint, the newest checkpoint of a run, or a folder that `save_dcp` has written.

    Raises:
        WeightsError: it is none of these, or has changed since it was written.
    """
    step = resolve(path)
    if not (step / SEAL).is_file():
        hint = "; give a network its weights with init" if step.is_dir() and is_dcp(step) else ""
        raise WeightsError(f"{path}: not a checkpoint of a run: it has no {SEAL}{hint}")
    seals = read_seals(step / SEAL)
    check_seal(step / STATE, seals)
    tensors = {kind: read_kind(step, kind, seals) for kind in KINDS}
    return TrainingState(str(step), {kind: own for kind, own in tensors.items() if own}, read_json_file(step / STATE))


def save_training(path: Path, training: TrainingState) -> None:
    """Write model and optimizer as one file for ``torch.load(path, weights_only=True)``."""
    content = {
        "model": training.model(),
        "buffers": training.buffers(),
        "optimizer": training.optimizer(),
        "step": training.state["step"],
    }
    with atomic_open(path) as file:
        torch.save(content, file)


def save_dcp(folder: Path, training: TrainingState) -> None:
    """Write a folder of torch.distributed.checkpoint; it gets its name when it is complete."""
    optimizer = training.optimizer_by_name()
    for group in optimizer["param_groups"]:
        for name in group["params"]:
            optimizer |= {f"param_groups.{name}.{key}": value for key, value in group.items() if key != "params"}
    content = {"model": training.model(), "buffers": training.buffers(), "optim": optimizer}
    content |= {kind: own for kind, own in training.tensors.items() if kind in ("teacher", "random")}
    staged = _staged(folder)
    write_dcp(staged, content)
    _publish(staged, folder, training.state)


def save_checkpoint(folder: Path, training: TrainingState) -> None:
    """Write a checkpoint from which the run goes on, at any number of processes; it gets its name when complete."""
    staged, index = _staged(folder), {}
    for kind, tensors in training.tensors.items():
        name = f"{kind}-00000-of-00001.safetensors"
        save_file(tensors, staged / name)
        if kind != "random":
            index[kind] = _indexed(staged / name)
    write_atomic(staged / TENSOR_INDEX, json.dumps(index))
    _publish(staged, folder, training.state)


def _indexed(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}
        return {
            name: {"dtype": part.get_dtype(), "shape": part.get_shape(), "files": [(0, path.name)]}
            for name, part in parts.items()
        }


def _staged(folder: Path) -> Path:
    staged = folder.with_name(folder.name + TEMPORARY)
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    return staged


def _publish(staged: Path, folder: Path, state: dict[str, Any]) -> None:
    write_atomic(staged / STATE, json.dumps(state, indent=1))
    seals = {path.name: seal_of(path) for path in sorted(staged.iterdir())}
    write_atomic(staged / SEAL, json.dumps({"format": FORMAT, "files": seals}, indent=1))
    fsync_folder(staged)
    os.rename(staged, folder)
    fsync_folder(folder.parent)


def _values(group: dict[str, Any]) -> dict[str, Any]:
    """Return a parameter group as it was before it became JSON, on any device."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in group.items()}
    values |= {key: None for key in ("fused", "foreach") if key in values}  # torch chooses
    return {**values, "params": list(group["params"])}

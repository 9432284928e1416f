"""The files of our checkpoints, read without the training engine: seals, state, and whole tensors by kind.

`pretrain/checkpointing/checkpoint.py` documents their layout. A folder of torch.distributed.checkpoint that
`training_state.save_dcp` has written is read like one.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.weights.dcp_files import METADATA, read_dcp
from pretrain.weights.description import WeightsError
from pretrain.weights.torch_files import one_line
from shards.files.names import plain_name
from shards.files.untrusted import read_json_value

SEAL, STATE = "checkpoint.json", "state.json"
TENSOR_INDEX = "index.json"
"""See pretrain/checkpointing/tensor_files.py."""
PART = "@"
"""Between a tensor's name and the number of the first element, in the name of a part."""
_DCP_PREFIXES = {
    "weights": ("model.", "buffers."),
    "optimizer": ("optim.state.",),
    "teacher": ("teacher.",),
    "random": ("random.",),
}


def tensor_and_start(entry: str) -> tuple[str, int | None]:
    """Return the tensor that an entry of a checkpoint's file belongs to, and its first element if it is a part."""
    name, mark, start = entry.rpartition(PART)
    return (name, int(start)) if mark and start.isdecimal() else (entry, None)


def has_kind(step: Path, kind: str, seals: dict[str, Any]) -> bool:
    """Return whether a checkpoint has tensors of a kind, such as ``teacher``."""
    if METADATA not in seals:
        return any(name.startswith(f"{kind}-") for name in seals)
    names = read_dcp(step, lambda name: False)[1]
    return any(name.startswith(_DCP_PREFIXES[kind]) for name in names)


def read_kind(step: Path, kind: str, seals: dict[str, Any]) -> dict[str, Tensor]:
    """Read all tensors of a kind, whole, by name; empty if there are none.

    Raises:
        WeightsError: a file is missing, or has changed since it was written.
    """
    if METADATA in seals:
        return _read_dcp_kind(step, kind, seals)
    return _whole_tensors(step, sorted(name for name in seals if name.startswith(f"{kind}-")), seals)


def _read_dcp_kind(step: Path, kind: str, seals: dict[str, Any]) -> dict[str, Tensor]:
    for name in seals:
        check_seal(step / name, seals)
    tensors, _ = read_dcp(step, lambda name: name.startswith(_DCP_PREFIXES[kind]))
    if kind != "optimizer":
        return {_without(_DCP_PREFIXES[kind], name): tensor for name, tensor in tensors.items()}
    named = {name.removeprefix("optim.state.").rpartition("."): tensor for name, tensor in tensors.items()}
    return {f"{parameter}/{moment}": tensor for (parameter, _, moment), tensor in named.items() if moment != "step"}


def _without(prefixes: tuple[str, ...], name: str) -> str:
    return next(name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix))


def _whole_tensors(step: Path, files: list[str], seals: dict[str, Any]) -> dict[str, Tensor]:
    """Read files of a checkpoint; parts of a tensor, which are named ``tensor@start``, are put together."""
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for file_name in files:
        check_seal(step / file_name, seals)
        try:
            with safe_open(step / file_name, framework="pt") as file:
                for entry in file.keys():
                    name, start = tensor_and_start(entry)
                    if start is None:
                        found[name] = file.get_tensor(entry)
                    else:
                        parts.setdefault(name, {})[start] = file.get_tensor(entry)
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{step / file_name}: not a safetensors file ({one_line(error)}); use another checkpoint of the run"
            ) from None
    if parts:
        check_seal(step / TENSOR_INDEX, seals)
        kind, index = files[0].partition("-")[0], read_json_file(step / TENSOR_INDEX)
        try:
            shapes = {name: tuple(index[kind][name]["shape"]) for name in parts}
            found |= {name: torch.cat([parts[name][start] for start in sorted(parts[name])]) for name in parts}
            found |= {name: found[name].view(shape) for name, shape in shapes.items()}
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise WeightsError(
                f"{step}: parts of a tensor are missing ({one_line(error)}); use another checkpoint of the run"
            ) from None
    return found


def read_seals(path: Path) -> dict[str, Any]:
    """Return size and hash of each file of a checkpoint, by name."""
    seals = read_json_file(path).get("files")
    try:
        return {plain_name(name): seal for name, seal in dict(seals or {}).items()}
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path}: damaged ({error}); use another checkpoint of the run") from None


def check_seal(path: Path, seals: dict[str, Any]) -> None:
    """Raise WeightsError if a file of a checkpoint has changed since it was written."""
    try:
        seal = seal_of(path)
        is_intact = seal == {key: seals[path.name][key] for key in seal}
    except (OSError, LookupError, TypeError):
        is_intact = False
    if not is_intact:
        raise WeightsError(f"{path}: missing, or changed since it was written; use another checkpoint of the run")


def seal_of(path: Path) -> dict[str, Any]:
    """Return the size and the SHA-256 of a file."""
    with open(path, "rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def read_json_file(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a checkpoint; raises WeightsError if it is damaged."""
    try:
        values = read_json_value(path.read_bytes())
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: missing or unreadable; use another checkpoint of the run")
    return values

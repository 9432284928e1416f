"""Read tensors under the names that they have in a file: safetensors, torch files, our checkpoints.

No code of a file is run: torch files are read with ``weights_only``. `pretrain/checkpointing/checkpoint.py` documents
the layout of our checkpoints; it needs the training engine, and this module reads them without it.
"""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.weights.description import TASK_KEY, EncoderDescription, WeightsError, describe_run, read_tuned_header
from pretrain.weights.torch_files import Network, one_line, read_torch
from shards.files.names import plain_name
from shards.files.untrusted import read_json_value

ENCODER_FILE = "encoder.safetensors"
INDEX = ".index.json"
TENSOR_INDEX = "index.json"
"""Of our checkpoints; see pretrain/checkpointing/tensor_files.py."""
PART = "@"
"""Between a tensor's name and the number of the first element, in the name of a part."""
FOLDER_FILES = (ENCODER_FILE, "model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


@dataclass(frozen=True)
class RawCheckpoint:
    """The tensors of a file or a checkpoint's folder under the names that they have there.

    Attributes:
        where: the file or folder, for messages.
        tensors: by their names in it.
        others: names of entries that were not read or are not tensors.
        description: what the file says about its encoder; None where it says nothing.
        prefix: of the names of the encoder that is described.
        network: "student" or "teacher", where the file says so.
        heads: of our checkpoints, what was trained beside the encoder: decoder, heads.
    """

    where: str
    tensors: dict[str, Tensor]
    others: list[str] = field(default_factory=list)
    description: EncoderDescription | None = None
    prefix: str = ""
    network: str | None = None
    heads: dict[str, Tensor] = field(default_factory=dict)


def read_raw_checkpoint(path: Path, network: Network = "auto") -> RawCheckpoint:
    """Read a file, a checkpoint's folder, or the newest checkpoint in a run's folder.

    Raises:
        WeightsError: the file is missing, damaged, without tensors, or lacks the network asked for.
    """
    path = resolve(path)
    if path.is_dir():
        return _read_step(path, network)
    if path.name.endswith(INDEX):
        return _read_parts(path, network)
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such encoder file; check the path") from None
    except OSError as error:
        raise WeightsError(f"{path}: can't be read: {error.strerror}; check its permissions") from None
    if path.suffix == ".safetensors" or start[8:] == b"{":
        return _read_safetensors(path)
    if start.startswith((_ZIP, _PICKLE)):
        tensors, others, inside = read_torch(path, network, start.startswith(_ZIP))
        return RawCheckpoint(str(path), tensors, others, network=inside)
    raise WeightsError(f"{path}: not a checkpoint: neither safetensors nor a torch file; check the path")


def resolve(path: Path) -> Path:
    """Return the file, or the folder of one of our checkpoints, that a path stands for: of a run, the newest one.

    Raises:
        WeightsError: a folder that holds neither.
    """
    if not path.is_dir():
        return path
    step = _newest_step(path)
    return _file_in(path) if step is None else step


def tensor_and_start(entry: str) -> tuple[str, int | None]:
    """Return the tensor that an entry of a checkpoint's file belongs to, and its first element if it is a part."""
    name, mark, start = entry.rpartition(PART)
    return (name, int(start)) if mark and start.isdecimal() else (entry, None)


def parts_of(index: Path) -> dict[str, str]:
    """Return the file of each tensor that an index lists; Hugging Face splits large models in this way.

    Raises:
        WeightsError: the index is missing or damaged.
    """
    try:
        named = dict(read_json_value(index.read_bytes())["weight_map"])
        return {str(name): plain_name(part) for name, part in named.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{index}: missing, or not an index of weights ({error}); check the path") from None


def _read_parts(index: Path, network: Network) -> RawCheckpoint:
    """The tensors of all files that an index names."""
    parts = parts_of(index)
    read = {part: read_raw_checkpoint(index.with_name(part), network) for part in sorted(set(parts.values()))}
    missing = [name for name, part in parts.items() if name not in read[part].tensors]
    if missing:
        raise WeightsError(f"{index}: {parts[missing[0]]} lacks {missing[0]}; download its files again")
    tensors = {name: read[part].tensors[name] for name, part in parts.items()}
    described = next((file for file in read.values() if file.description is not None), RawCheckpoint("", {}))
    return replace(described, where=str(index), tensors=tensors, others=[])


def _file_in(folder: Path) -> Path:
    """The encoder's file in a folder, by the names that this project, Hugging Face and timm use.

    Raises:
        WeightsError: there is no such file.
    """
    file = next((folder / name for name in FOLDER_FILES if (folder / name).is_file()), None)
    if file is not None:
        return file
    hint = "name another"
    if (folder / "zero_to_fp32.py").is_file():
        hint = f"merge a DeepSpeed checkpoint into one file: python {folder / 'zero_to_fp32.py'} {folder} DEST"
    elif (folder / ".metadata").is_file():
        hint = f"merge it into one file: python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} DEST"
    raise WeightsError(f"{folder}: neither checkpoints nor {ENCODER_FILE} in this folder; {hint}")


def _read_safetensors(path: Path) -> RawCheckpoint:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: not a complete safetensors file ({one_line(error)}); export or download it again"
        ) from None
    described = read_tuned_header(metadata, str(path))
    prefix, network = "encoder." if TASK_KEY in metadata else "", described.network if described else None
    return RawCheckpoint(str(path), tensors, description=described, prefix=prefix, network=network)


# ---- our checkpoints ----


def _newest_step(folder: Path) -> Path | None:
    if (folder / "checkpoint.json").is_file() or folder.name.startswith("step-"):
        return folder
    for parent in (folder / "checkpoints", folder):
        steps = sorted(step for step in parent.glob("step-*") if step.name.removeprefix("step-").isdecimal())
        if steps:
            return steps[-1]
    return None


def _read_step(step: Path, network: Network) -> RawCheckpoint:
    seals = _read_seals(step / "checkpoint.json")
    _check(step / "state.json", seals)
    state = _read_json(step / "state.json")
    teachers = sorted(name for name in seals if name.startswith("teacher-"))
    if network == "teacher" and not teachers:
        raise WeightsError(f"{step}: this run has no teacher; don't choose a network")
    of_teacher = describe_run(state, "teacher", str(step / "state.json"))
    take_teacher = network == "teacher" or (network == "auto" and of_teacher.objective == "dino" and bool(teachers))
    files = teachers if take_teacher else sorted(name for name in seals if name.startswith("weights-"))
    heads = _whole_tensors(step, files, seals)
    encoder = [name for name in heads if name.startswith("encoder.")]
    tensors = {name.removeprefix("encoder."): heads.pop(name) for name in encoder}
    which = "teacher" if take_teacher else "student"
    described = describe_run(state, which, str(step / "state.json"))
    return RawCheckpoint(str(step), tensors, list(heads), described, network=which, heads=heads)


def _whole_tensors(step: Path, files: list[str], seals: dict[str, Any]) -> dict[str, Tensor]:
    """Read files of a checkpoint; parts of a tensor, which are named ``tensor@start``, are put together."""
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for file_name in files:
        _check(step / file_name, seals)
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
        _check(step / TENSOR_INDEX, seals)
        kind, index = files[0].partition("-")[0], _read_json(step / TENSOR_INDEX)
        try:
            shapes = {name: tuple(index[kind][name]["shape"]) for name in parts}
            found |= {name: torch.cat([parts[name][start] for start in sorted(parts[name])]) for name in parts}
            found |= {name: found[name].view(shape) for name, shape in shapes.items()}
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise WeightsError(
                f"{step}: parts of a tensor are missing ({one_line(error)}); use another checkpoint of the run"
            ) from None
    return found


def _read_seals(path: Path) -> dict[str, Any]:
    """Size and hash of each file of a checkpoint, by name."""
    seals = _read_json(path).get("files")
    try:
        return {plain_name(name): seal for name, seal in dict(seals or {}).items()}
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path}: damaged ({error}); use another checkpoint of the run") from None


def _check(path: Path, seals: dict[str, Any]) -> None:
    """Raise WeightsError if a file of a checkpoint has changed since it was written."""
    try:
        with open(path, "rb") as file:
            seal = {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        is_intact = seal == {key: seals[path.name][key] for key in seal}
    except (OSError, LookupError, TypeError):
        is_intact = False
    if not is_intact:
        raise WeightsError(f"{path}: missing, or changed since it was written; use another checkpoint of the run")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = read_json_value(path.read_bytes())
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: missing or unreadable; use another checkpoint of the run")
    return values

"""Tensors out of files, under the names that they have there: safetensors, torch files, our checkpoints.

Nothing that a file holds is run: torch files are read with ``weights_only``. What our checkpoints look like is
at the top of `pretrain/checkpoint.py`, which needs the training engine; this reads them without.
"""

import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.models.description import EncoderDescription, WeightsError, describe_run, read_header
from shards.arrays import read_json_value
from shards.names import plain_name

Network = Literal["auto", "student", "teacher"]
"""Which of a training's networks to take: the trained one, its average, or (``auto``) the better one that is there."""

ENCODER_FILE = "encoder.safetensors"
_CONTAINERS = {
    "auto": ("state_dict", "model", "teacher"),
    "student": ("state_dict", "model", "student"),
    "teacher": ("teacher", "state_dict", "model"),
}
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_READ_ERRORS = (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError)  # of torch.load


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        where: the file or checkpoint, for messages.
        tensors: by their names in it.
        others: names of what is there and was not read, or is no tensor.
        description: what the file says of the encoder, None where it says nothing.
        network: which network it is, where the file says so.
    """

    where: str
    tensors: dict[str, Tensor]
    others: list[str] = field(default_factory=list)
    description: EncoderDescription | None = None
    network: str | None = None


def read_contents(path: Path, network: Network = "auto") -> Contents:
    """Read a file, or a checkpoint's folder, or the newest checkpoint of a run's folder.

    Raises:
        WeightsError: missing, damaged, not tensors, or without the network that was asked for.
    """
    if path.is_dir():
        step = _newest_step(path)
        if step is not None:
            return _read_step(step, network)
        path = path / ENCODER_FILE
        if not path.is_file():
            raise WeightsError(f"{path.parent}: neither checkpoints nor {ENCODER_FILE} in this folder; name another")
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
        return _read_torch(path, network, start.startswith(_ZIP))
    raise WeightsError(f"{path}: not a checkpoint: neither safetensors nor a torch file; check the path")


def _read_safetensors(path: Path) -> Contents:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: not a whole safetensors file ({_line(error)}); export or download it again"
        ) from None
    described = read_header(metadata, str(path))
    return Contents(str(path), tensors, [], described, described.network if described else None)


# ---- torch files ----


def _read_torch(path: Path, network: Network, is_zip: bool) -> Contents:
    try:  # mapped, not read: of a training checkpoint, two thirds are the optimizer's
        with torch.serialization.safe_globals(_stand_ins(path) if is_zip else []):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from None
    except _READ_ERRORS as error:
        raise WeightsError(f"{path}: not a whole torch file ({_line(error)}); copy or download it again") from None
    where, inside = str(path), None
    if isinstance(content, Mapping):
        for name in _CONTAINERS[network]:
            if isinstance(content.get(name), Mapping):
                content, inside = content[name], name
                break
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise WeightsError(f"{where}: not a checkpoint: it holds a {kind}, not tensors by name; save a state_dict")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    return Contents(where, tensors, others, None, inside if inside in ("student", "teacher") else None)


def _stand_ins(path: Path) -> list[Any]:
    """An empty class for each foreign one that a file names, e.g. optimizers in a Lightning checkpoint's settings.

    ``weights_only`` calls nothing but what it is told is safe, and these do nothing: tensors come out, objects don't.
    """
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return [(type("StandIn", (_Nothing,), {}), name) for name in names]


class _Nothing:
    """Takes whatever a pickle gives it and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Nothing":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...


def _refused(path: Path, error: str) -> WeightsError:
    found = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", error) or re.search(r"(Can only \w+)", error)
    if found is None:
        return WeightsError(f"{path}: not a whole torch file (damaged pickle); copy or download it again")
    return WeightsError(
        f"{path}: holds Python objects ({found[1]}), which could run code and are not loaded; where it was made, "
        "save its tensors alone: torch.save(torch.load(FILE, weights_only=False)['state_dict'], DEST)"
    )


# ---- our checkpoints ----


def _newest_step(folder: Path) -> Path | None:
    if (folder / "checkpoint.json").is_file() or folder.name.startswith("step-"):
        return folder
    for place in (folder / "checkpoints", folder):
        steps = sorted(step for step in place.glob("step-*") if step.name.removeprefix("step-").isdecimal())
        if steps:
            return steps[-1]
    return None


def _read_step(step: Path, network: Network) -> Contents:
    seals = _read_seals(step / "checkpoint.json")
    _check(step / "state.json", seals)
    state = _read_json(step / "state.json")
    teachers = sorted(name for name in seals if name.startswith("teacher-"))
    if network == "teacher" and not teachers:
        raise WeightsError(f"{step}: this run has no teacher; leave the choice of the network out")
    of_teacher = describe_run(state, "teacher", str(step / "state.json"))
    take_teacher = network == "teacher" or (network == "auto" and of_teacher.objective == "dino" and bool(teachers))
    files = teachers if take_teacher else sorted(name for name in seals if name.startswith("weights-"))
    tensors, others = {}, []
    for name in files:
        _check(step / name, seals)
        try:
            with safe_open(step / name, framework="pt") as file:
                for full in file.keys():
                    if full.startswith("encoder."):
                        tensors[full.removeprefix("encoder.")] = file.get_tensor(full)
                    else:
                        others.append(full)
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{step / name}: not a safetensors file ({_line(error)}); take another checkpoint of the run"
            ) from None
    which = "teacher" if take_teacher else "student"
    return Contents(str(step), tensors, others, describe_run(state, which, str(step / "state.json")), which)


def _read_seals(path: Path) -> dict[str, Any]:
    """What a checkpoint's files are, by their names in its folder."""
    seals = _read_json(path).get("files")
    try:
        return {plain_name(name): seal for name, seal in dict(seals or {}).items()}
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path}: damaged ({error}); take another checkpoint of the run") from None


def _check(path: Path, seals: dict[str, Any]) -> None:
    """Refuse a file of a checkpoint that is not as it was written."""
    try:
        with open(path, "rb") as file:
            found = {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        whole = found == {key: seals[path.name][key] for key in found}
    except (OSError, LookupError, TypeError):
        whole = False
    if not whole:
        raise WeightsError(f"{path}: missing, or not as it was written; take another checkpoint of the run")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = read_json_value(path.read_bytes())
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: missing or unreadable; take another checkpoint of the run")
    return values


def _line(error: Exception) -> str:
    """An error as part of a line: torch's go on for paragraphs."""
    return re.split(r"\. |\n", str(error))[0].strip() or type(error).__name__

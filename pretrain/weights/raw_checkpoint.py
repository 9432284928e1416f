"""Read tensors under the names that they have in a file: safetensors, torch files, our checkpoints.

No code of a file is run: torch files are read with ``weights_only``, and folders of torch.distributed.checkpoint by
`read_dcp`.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.weights.checkpoint_files import SEAL, STATE, check_seal, has_kind, read_json_file, read_kind, read_seals
from pretrain.weights.dcp_files import is_dcp, read_dcp
from pretrain.weights.description import TASK_KEY, EncoderDescription, WeightsError, describe_run, read_tuned_header
from pretrain.weights.torch_files import Network, one_line, read_torch
from shards.files.names import plain_name
from shards.files.untrusted import read_json_value

ENCODER_FILE = "encoder.safetensors"
INDEX = ".index.json"
FOLDER_FILES = (ENCODER_FILE, "model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin")
_OPTIMIZER = re.compile(r"(^|\.)optim(izer)?s?\.")
"""In names of a DCP folder, which are those of nested dicts, joined by dots."""
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
        return _read_dcp(path) if is_dcp(path) and not (path / SEAL).is_file() else _read_step(path, network)
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
    """Return what a path stands for: a file, a folder of DCP, or one of our checkpoints: of a run, the newest one.

    Raises:
        WeightsError: a folder that holds neither.
    """
    if not path.is_dir():
        return path
    step = path if is_dcp(path) else _newest_step(path)
    return _file_in(path) if step is None else step


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


def _read_dcp(folder: Path) -> RawCheckpoint:
    """The tensors of a folder of torch.distributed.checkpoint of any code, but for the optimizer's."""
    tensors, others = read_dcp(folder, lambda name: _OPTIMIZER.search(name) is None)
    return RawCheckpoint(str(folder), tensors, others)


# ---- our checkpoints ----


def _newest_step(folder: Path) -> Path | None:
    if (folder / SEAL).is_file() or folder.name.startswith("step-"):
        return folder
    for parent in (folder / "checkpoints", folder):
        steps = sorted(step for step in parent.glob("step-*") if step.name.removeprefix("step-").isdecimal())
        if steps:
            return steps[-1]
    return None


def _read_step(step: Path, network: Network) -> RawCheckpoint:
    seals = read_seals(step / SEAL)
    check_seal(step / STATE, seals)
    state, has_teacher = read_json_file(step / STATE), has_kind(step, "teacher", seals)
    if network == "teacher" and not has_teacher:
        raise WeightsError(f"{step}: this run has no teacher; don't choose a network")
    of_teacher = describe_run(state, "teacher", str(step / STATE))
    take_teacher = network == "teacher" or (network == "auto" and of_teacher.objective == "dino" and has_teacher)
    heads = read_kind(step, "teacher" if take_teacher else "weights", seals)
    encoder = [name for name in heads if name.startswith("encoder.")]
    tensors = {name.removeprefix("encoder."): heads.pop(name) for name in encoder}
    which = "teacher" if take_teacher else "student"
    described = describe_run(state, which, str(step / STATE))
    return RawCheckpoint(str(step), tensors, list(heads), described, network=which, heads=heads)

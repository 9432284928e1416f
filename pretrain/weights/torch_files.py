"""Read tensors from torch files: state dicts under any key, and pickled modules. No code of a file runs."""

import pickle
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pretrain.weights.description import EXTRA_STATE, WeightsError, to_extra_state

Network = Literal["auto", "student", "teacher"]
"""Which network of a run to take: the trained one, its moving average, or (``auto``) the better one available."""

_CONTAINERS = {
    "auto": ("state_dict", "model", "teacher"),
    "student": ("state_dict", "model", "student"),
    "teacher": ("teacher", "state_dict", "model"),
}
_MOST = 100_000  # dicts and modules in a file: few hold more, and one that refers to itself holds any number
_READ_ERRORS = (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError)  # of torch.load


def read_torch(path: Path, network: Network, is_zip: bool) -> tuple[dict[str, Tensor], list[str], str | None]:
    """Return tensors by dotted name, the names of other entries, and which network they are, where the file says so.

    Raises:
        WeightsError: the file is damaged, a compiled program, or holds objects that can't be skipped.
    """
    try:  # mapped, not read: of a training checkpoint, two thirds are the optimizer's
        with torch.serialization.safe_globals(_stand_ins(path) if is_zip else []):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from None
    except _READ_ERRORS as error:
        if re.search("torchscript|failed locating file data.pkl", str(error), re.IGNORECASE):
            raise WeightsError(
                f"{path}: a compiled program (TorchScript, torch.export), not weights; on the machine where it was "
                "made, save only its tensors: torch.save(program.state_dict(), FILE)"
            ) from None
        raise WeightsError(
            f"{path}: not a complete torch file ({one_line(error)}); copy or download it again"
        ) from None
    named, inside = _as_mapping(content), None
    for name in _CONTAINERS[network]:
        within = _as_mapping((named or {}).get(name))
        if within is not None:
            named, inside = within, name
            break
    if named is None:
        kind = type(content).__name__
        raise WeightsError(f"{path}: not a checkpoint: it holds a {kind}, not tensors by name; save a state_dict")
    tensors, others = _flatten(path, named)
    return tensors, others, inside if inside in ("student", "teacher") else None


def _flatten(path: Path, named: Mapping[Any, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of nested dicts and modules by dotted name, and the names of all other entries and optimizer states."""
    tensors: dict[str, Tensor] = {}
    others: list[str] = []
    waiting: list[tuple[str, Mapping[Any, Any]]] = [("", named)]
    for prefix, mapping in waiting:
        for key, value in mapping.items():
            name = f"{prefix}{key}"
            within = None if "optimizer" in name else _as_mapping(value)
            if isinstance(value, Tensor):
                tensors[name] = value
            elif within:
                waiting.append((f"{name}.", within))
            elif value is not None:
                others.append(name)
        if len(waiting) > _MOST:
            raise WeightsError(f"{path}: not a checkpoint: its dicts are nested too deep; save a state_dict")
    return tensors, others


def _as_mapping(value: Any) -> Mapping[Any, Any] | None:
    """A dict unchanged, a pickled module as a nested state dict, None for anything else."""
    if isinstance(value, Mapping):
        return value
    state = getattr(value, "kept", None)
    if not (isinstance(state, dict) and isinstance(state.get("_modules"), Mapping)):
        return None
    passing = state.get("_non_persistent_buffers_set") or ()
    buffers = {name: one for name, one in (state.get("_buffers") or {}).items() if name not in passing}
    described, extra = getattr(state.get("description"), "kept", None), {}
    if isinstance(described, dict):
        with suppress(ValueError, TypeError, RecursionError):
            extra = {EXTRA_STATE: to_extra_state(described)}
    return {**(state.get("_parameters") or {}), **buffers, **state["_modules"], **extra}


def _stand_ins(path: Path) -> list[Any]:
    """An empty class for each class that a file names, such as optimizers in the settings of a Lightning checkpoint.

    ``weights_only`` calls only what is declared safe, and these classes do nothing: data comes out, objects don't.
    """
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return [(type("StandIn", (_StandIn,), {}), name) for name in names]


class _StandIn:
    """Accepts whatever a pickle passes to it, and keeps the attributes of the object.

    Attributes:
        kept: the attributes, as plain data.
    """

    kept: Any = None

    def __new__(cls, *_: Any, **__: Any) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.kept = state

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...


def _refused(path: Path, error: str) -> WeightsError:
    match = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", error) or re.search(r"(Can only \w+)", error)
    if match is None:
        return WeightsError(f"{path}: not a complete torch file (damaged pickle); copy or download it again")
    return WeightsError(
        f"{path}: holds Python objects ({match[1]}), which could run code and are not loaded; on the machine where it "
        "was made, save only its tensors: torch.save(torch.load(FILE, weights_only=False)['state_dict'], DEST)"
    )


def one_line(error: BaseException) -> str:
    """Return the first sentence of an error; torch's messages are paragraphs."""
    return re.split(r"\. |\n", str(error))[0].strip() or type(error).__name__

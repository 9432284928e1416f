"""Heads trained by the frozen protocol, saved next to their results: full fine-tuning can start from them."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from shards.files.atomic import write_atomic

Heads = Mapping[tuple[str, int], dict[str, Tensor]]
"""Weights of heads by name and seed."""


def save_heads(path: Path, heads: Heads) -> None:
    """Write the weights of heads atomically."""
    tensors = {
        f"{head}/{seed}/{name}": tensor.detach().cpu().contiguous()
        for (head, seed), weights in heads.items()
        for name, tensor in weights.items()
    }
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, save(tensors))


def load_head(path: Path, head: str, seed: int) -> dict[str, Tensor] | None:
    """Return the weights of one head; None if the file is missing, damaged or lacks that head."""
    prefix = f"{head}/{seed}/"
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names} or None
    except (OSError, SafetensorError):
        return None

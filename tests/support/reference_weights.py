"""Deterministic weights and inputs from names and seeds, with which the reference outputs were computed."""

import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


def rule_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the values of a state-dict entry, which depend only on its published name and shape."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.tensor(0)
    if leaf == "running_var":
        return 1 + 0.1 * torch.rand(shape, generator=generator)
    if leaf == "running_mean":
        return 0.1 * torch.randn(shape, generator=generator)
    if len(shape) <= 1:
        scaled = 0.02 * torch.randn(shape, generator=generator)
        return 1 + scaled if len(shape) == 1 and leaf == "weight" else scaled
    return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))


def fill_by_rule(module: nn.Module, prefix: str = "", keep: tuple[str, ...] = ()) -> None:
    """Fill parameters and buffers from ``prefix`` and their names, except those in ``keep``."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name not in keep:
                tensor.copy_(rule_tensor(prefix + name, tuple(tensor.shape)))


def rule_input(folder: Path, seed: int) -> tuple[Tensor, torch.Generator]:
    """Return two normalized EnMAP images (2, 202, 128, 128) and the generator that drew them."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 6000, (2, 202, 128, 128), generator=generator, dtype=torch.int32).to(torch.int16)
    mu, sigma = (
        torch.from_numpy(np.load(folder / "statistics" / f"enmap_{name}.npy").astype(np.float32)).view(-1, 1, 1)
        for name in ("mu", "sigma")
    )
    return (raw.float() - mu) / sigma, generator

"""Attention kernels behind one signature, layout (batch, tokens, heads, head dim) in and out."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.models.compilation import is_exporting
from shards.errors import ConfigError

Backend = Literal["auto", "xformers", "sdpa", "math"]
"""``auto``: xformers on CUDA in half precision where it is installed, else torch's SDPA. ``math`` is the reference."""

SeqLens = Sequence[tuple[int, int]]
"""Lengths of sequences that are packed into a single one, in order: (num_sequences, length) for each length."""


def attention(
    query: Tensor, key: Tensor, value: Tensor, backend: Backend = "auto", seqlens: SeqLens | None = None
) -> Tensor:
    """Compute softmax(q k^T / sqrt(head dim)) v, each (batch, tokens, heads, head dim).

    Args:
        backend: which kernel; all take any head dim (xformers and SDPA pad where their fast paths need it).
        seqlens: lengths of packed sequences where the batch is 1; the mask is block-diagonal, so that tokens attend
            within their own sequence.

    Raises:
        RuntimeError: ``backend`` is xformers, which can't run here.
    """
    if backend == "auto":
        half = query.dtype in (torch.float16, torch.bfloat16)
        backend = "xformers" if query.is_cuda and half and not is_exporting() and _xformers() else "sdpa"
    if backend == "math":
        return _reference(query, key, value, seqlens)
    if backend == "sdpa":
        return _sdpa(query, key, value) if seqlens is None else _each_length(query, key, value, seqlens)
    kernel = _xformers()
    if kernel is None or not query.is_cuda:
        raise RuntimeError("attention 'xformers' needs a GPU and the extra 'gpu'; use model.attention=auto")
    return kernel(query, key, value, attn_bias=None if seqlens is None else _block_diagonal(tuple(seqlens)))


def check_backend(backend: Backend, device: torch.device) -> None:
    """Raise ConfigError if a backend can't run on this device."""
    if backend != "xformers":
        return
    if device.type != "cuda":
        raise ConfigError(f"key 'model.attention': xformers runs on GPUs, this process has {device.type}: write auto")
    if _xformers() is None:
        raise ConfigError(
            "key 'model.attention': xformers is not installed for this torch: pip install 'spectralforge[gpu]', or "
            "write auto"
        )


def _reference(query: Tensor, key: Tensor, value: Tensor, seqlens: SeqLens | None) -> Tensor:
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    if seqlens is not None:
        lengths = torch.tensor([length for count, length in seqlens for _ in range(count)])
        owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(query.device)
        scores = scores.masked_fill(owner[:, None] != owner, -torch.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)


def _sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def _each_length(query: Tensor, key: Tensor, value: Tensor, seqlens: SeqLens) -> Tensor:
    """Call SDPA for each length: it has no block-diagonal kernel, and sequences of one length are a batch."""
    sizes = [count * length for count, length in seqlens]
    parts = zip(*(x[0].split(sizes) for x in (query, key, value)), strict=True)
    outputs = [
        _sdpa(*(x.unflatten(0, (count, length)) for x in part)).flatten(0, 1)
        for part, (count, length) in zip(parts, seqlens, strict=True)
    ]
    return torch.cat(outputs)[None]


@cache
def _block_diagonal(seqlens: tuple[tuple[int, int], ...]) -> Any:
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    return BlockDiagonalMask.from_seqlens([length for count, length in seqlens for _ in range(count)])


@cache
def _xformers() -> Callable[..., Tensor] | None:
    """Return xformers' kernel, or None if it isn't installed."""
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError:
        return None
    return memory_efficient_attention

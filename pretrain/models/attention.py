"""Attention kernels behind one signature, layout (batch, tokens, heads, head dim) in and out."""

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Backend = Literal["auto", "xformers", "sdpa", "math"]
"""``auto``: xformers on CUDA in half precision where it is installed, else torch's SDPA. ``math`` is the reference."""


def attention(query: Tensor, key: Tensor, value: Tensor, backend: Backend = "auto") -> Tensor:
    """softmax(q k^T / sqrt(head dim)) v, each (batch, tokens, heads, head dim).

    Raises:
        RuntimeError: xformers was asked for and can't run here.
    """
    if backend == "auto":
        half = query.dtype in (torch.float16, torch.bfloat16)
        backend = "xformers" if query.is_cuda and half and _xformers() else "sdpa"
    if backend == "math":
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)
    if backend == "sdpa":
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    kernel = _xformers()
    if kernel is None or not query.is_cuda:
        raise RuntimeError("attention 'xformers' needs a GPU and the extra 'gpu'; use model.attention=auto")
    return kernel(query, key, value)


@cache
def _xformers() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """xformers' kernel, or None where it isn't installed (importing it on a CPU build only warns)."""
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError:
        return None
    return memory_efficient_attention

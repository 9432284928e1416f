"""Attention kernels behind one signature, layout (batch, tokens, heads, head dim) in and out."""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.models.compilation import is_exporting
from shards.errors import ConfigError

Backend = Literal["auto", "xformers", "sdpa", "math"]
"""``auto``: xformers on CUDA in half precision where its kernels load, else torch's SDPA. ``math`` is the reference."""

XFORMERS_PAIR = "pip install 'torch==2.10.0' 'xformers==0.0.35'"
"""Installs versions that are built for each other (constraints-gpu.txt)."""

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
        reason = xformers_problem() or f"it runs on GPUs, these tensors are on {query.device.type}"
        raise RuntimeError(f"attention 'xformers': {reason}; use model.attention=auto")
    bias = None if seqlens is None else _block_diagonal(tuple(seqlens), query.device)
    return kernel(query, key, value, attn_bias=bias)


def check_backend(backend: Backend, device: torch.device) -> None:
    """Raise ConfigError if a backend can't run on this device; say so if ``auto`` finds an xformers that can't load."""
    if backend not in ("auto", "xformers"):
        return
    if device.type != "cuda":
        if backend == "xformers":
            raise ConfigError(
                f"key 'model.attention': xformers runs on GPUs, this process has {device.type}: write auto"
            )
        return
    problem = xformers_problem()
    if problem and backend == "xformers":
        raise ConfigError(f"key 'model.attention': {problem}: {XFORMERS_PAIR}, or write auto")
    if problem and is_installed():
        from pretrain.console import log  # needs tqdm, which an encoder in a notebook does without

        log(f"WARNING: {problem}: torch's attention is used; {XFORMERS_PAIR}")


def is_installed() -> bool:
    """Return whether xformers is there, whether or not it loads."""
    return find_spec("xformers") is not None


@cache
def xformers_problem() -> str | None:
    """Return why xformers' kernels can't be used in this process, or None if its C++ extension is loaded.

    The package imports without its extension, and then refuses every operation at the first forward.
    """
    if not is_installed():
        return "xformers is not installed"
    logging.getLogger("xformers").setLevel(logging.ERROR)  # it would say the same in five lines, on every rank
    try:
        import xformers
        import xformers.ops
    except (ImportError, OSError) as error:
        return f"xformers does not import: {(str(error).splitlines() or [type(error).__name__])[0]}"
    if getattr(xformers, "_has_cpp_library", False):
        return None
    build = getattr(getattr(xformers._cpp_lib, "_cpp_library_load_exception", None), "build_info", None)
    reason = f"it is built for torch {build.torch_version}" if build else "it has none"
    return (
        f"the C++ extension of xformers {xformers.__version__} does not load: {reason}, this one is {torch.__version__}"
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
def _block_diagonal(seqlens: tuple[tuple[int, int], ...], device: torch.device) -> Any:
    """Return xformers' mask of packed sequences, whose offsets are on a device."""
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    return BlockDiagonalMask.from_seqlens([length for count, length in seqlens for _ in range(count)], device=device)


def _xformers() -> Callable[..., Tensor] | None:
    """Return xformers' kernel, or None if it can't be used."""
    if xformers_problem():
        return None
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention

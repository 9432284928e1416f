"""Activation checkpointing: memory for time, with the same numbers (arXiv 1604.06174)."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

_again: ContextVar[bool] = ContextVar("recomputing", default=False)


Recompute = bool | Literal["selective"]
"""Keep everything (False), the inputs alone (True), or inputs and what is dear to compute again ("selective")."""

_DEAR = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}


def recomputed(function: Callable[..., Any], policy: Recompute, *inputs: Any) -> Any:
    """Call a function; by the policy, call it again in the backward pass instead of keeping what it computes."""
    if not policy:
        return function(*inputs)
    contexts = _selective if policy == "selective" else _whole
    return checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)


def _whole() -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _second_time()


def _selective() -> tuple[AbstractContextManager, AbstractContextManager]:
    keeping, giving = create_selective_checkpoint_contexts(_policy)
    return keeping, _second_time(giving)


def _policy(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _DEAR else CheckpointPolicy.PREFER_RECOMPUTE


def is_recomputing() -> bool:
    """Whether this is the second call: batch norms must not count it again."""
    return _again.get()


@contextmanager
def _second_time(inner: AbstractContextManager | None = None) -> Generator[None, None, None]:
    token = _again.set(True)
    try:
        with inner or nullcontext():
            yield
    finally:
        _again.reset(token)

"""Activation checkpointing: memory for time, with the same numbers (arXiv 1604.06174)."""

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from torch.utils.checkpoint import checkpoint

_again: ContextVar[bool] = ContextVar("recomputing", default=False)


def recomputed(function: Callable[..., Any], enabled: bool, *inputs: Any) -> Any:
    """Call a function; where ``enabled``, keep its inputs alone and call it again in the backward pass."""
    if not enabled:
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _second_time()))


def is_recomputing() -> bool:
    """Whether this is the second call: batch norms must not count it again."""
    return _again.get()


@contextmanager
def _second_time() -> Generator[None, None, None]:
    token = _again.set(True)
    try:
        yield
    finally:
        _again.reset(token)

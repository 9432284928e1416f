"""Activation checkpointing: less memory for more time, with the same numbers (arXiv 1604.06174)."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal

import torch
from torch._ops import OpOverload
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from pretrain.models.compilation import compiling, is_compiling

Policy = Literal["none", "selective", "blocks"]
"""Save all activations, inputs and the results of SAVED_OPS, or only inputs; the rest is recomputed."""

SAVED_OPS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._efficient_attention_forward.default,  # xformers calls it for head dims that flash lacks
}
"""Operations that are expensive to recompute; ``selective`` saves their results."""

XFORMERS_OPS = {"xformers_flash::flash_fwd", "xformers_flash3::flash_fwd"}
"""Names of xformers' operations that are saved, too: it registers those of this machine when it is imported."""

_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)


def checkpointed(function: Callable[..., Any], policy: Policy, *inputs: Any) -> Any:
    """Call a function; in the backward pass, call it again for the activations that the policy doesn't save."""
    if policy == "none":
        return function(*inputs)
    contexts = partial(_contexts, policy == "selective", is_compiling())
    return checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)


def checkpointed_in_graph(function: Callable[..., Any], policy: Policy) -> Callable[..., Any]:
    """Return a function whose activations the compiler saves or recomputes by a policy, for torch.compile to trace.

    A graph that was compiled inside of `checkpointed` could only be recomputed as a whole.
    """
    if policy == "none":
        return function
    save = partial(create_selective_checkpoint_contexts, _decide)
    options: dict[str, Any] = {"context_fn": save} if policy == "selective" else {}

    def call(*inputs: Any) -> Any:
        return checkpoint(function, *inputs, use_reentrant=False, **options)

    return call


def is_recomputing() -> bool:
    """Return whether this call repeats one of the forward pass, whose statistics batch norms must not count again."""
    return _recomputing.get()


def _contexts(selective: bool, compiled: bool) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts of the forward pass and of the recomputation, which may run in another thread."""
    if not selective:
        return nullcontext(), _recomputation(compiled, nullcontext())
    saving, loading = create_selective_checkpoint_contexts(_decide)
    return saving, _recomputation(compiled, loading)


def _decide(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    saved = operation in SAVED_OPS or (isinstance(operation, OpOverload) and operation.name() in XFORMERS_OPS)
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _recomputation(compiled: bool, inner: AbstractContextManager) -> Generator[None, None, None]:
    token = _recomputing.set(True)
    try:
        with compiling(compiled), inner:
            yield
    finally:
        _recomputing.reset(token)

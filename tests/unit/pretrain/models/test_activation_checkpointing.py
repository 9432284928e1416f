"""Selective recomputation keeps the results of attention, also of xformers' operations, which may not be there."""

from importlib.util import find_spec

import pytest
import torch

from pretrain.models.activation_checkpointing import SAVED_OPS, XFORMERS_OPS, checkpointed


@pytest.fixture
def operation():
    """xformers' flash attention as an operation of a CPU; yields a function of it, and the list of its calls."""
    if find_spec("xformers"):
        pytest.skip("xformers is installed, and its operation has no CPU kernel")
    calls: list[int] = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x.exp()

    library = torch.library.Library("xformers_flash", "FRAGMENT")
    library.define("flash_fwd(Tensor x) -> Tensor")
    library.impl("flash_fwd", forward, "CPU")

    class Attention(torch.autograd.Function):
        """Like xformers' own: the operation inside of a function that has a backward pass."""

        @staticmethod
        def forward(context, x):
            out = torch.ops.xformers_flash.flash_fwd(x)
            context.save_for_backward(out)
            return out

        @staticmethod
        def backward(context, gradient):
            return gradient * context.saved_tensors[0]

    yield Attention.apply, calls
    library._destroy()


@pytest.mark.parametrize(("policy", "count"), [("none", 1), ("selective", 1), ("blocks", 2)])
def test_attention_of_xformers_is_computed_once(operation, policy, count):
    attention, calls = operation
    x = torch.linspace(-1, 1, 5, requires_grad=True)
    checkpointed(lambda x: attention(x.sin()).cos(), policy, x).sum().backward()
    assert len(calls) == count
    expected = -(x.sin().exp().sin() * x.sin().exp() * x.cos())
    torch.testing.assert_close(x.grad, expected)


def test_the_saved_operations_are_named_without_the_library():
    assert {"xformers_flash::flash_fwd"} <= XFORMERS_OPS
    names = {operation.name() for operation in SAVED_OPS}
    assert "aten::_efficient_attention_forward" in names  # which xformers calls as it is

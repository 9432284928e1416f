"""Units under activation checkpointing and torch.compile: the same numbers, with less memory or time."""

import gc
import shutil
import weakref
from functools import partial

import pytest
import torch
from support.masks import masks_of
from support.small_networks import drawn, small_autoencoder
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pretrain.engine.compiled_units import compile_units
from pretrain.models.activation_checkpointing import checkpointed
from pretrain.models.adapter import SpectralConv
from pretrain.models.batchnorm import grouped_batch_norms
from pretrain.models.compilation import compiling
from pretrain.models.initialize import initialize
from pretrain.models.registry import build_encoder
from pretrain.models.resnet import Bottleneck
from pretrain.models.transformer import Block
from pretrain.models.unit import set_activation_checkpointing


@pytest.mark.parametrize("name", ["spec_vit_tiny", "spec_resnet50"])
def test_recomputed_activations_give_the_same_gradients_and_count_once(name):
    results = []
    for policy in ("none", "blocks", "selective"):
        encoder = build_encoder(name, 8, 4, bn_group=2)
        initialize(encoder, "test", 0)
        calls: list[str] = []
        set_activation_checkpointing(encoder, policy)
        for part in encoder.modules():
            if isinstance(part, Block | Bottleneck | SpectralConv):
                part.register_forward_pre_hook(lambda module, inputs, calls=calls: calls.append(type(module).__name__))
        features = encoder.train()(drawn(4, 80, 8, 8))
        forward = len(calls)
        features.square().sum().backward()
        blocks = [call for call in calls[:forward] if call != "SpectralConv"]
        again = {"none": [], "blocks": calls[:forward], "selective": blocks}
        assert sorted(calls[forward:]) == sorted(again[policy])
        gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
        results.append((gradients, [norm.flush() for norm in grouped_batch_norms(encoder)]))
    for gradients, pending in results[1:]:
        for name, gradient in results[0][0].items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)
        for one, other in zip(results[0][1], pending, strict=True):
            assert other[-1] == one[-1] == 2
            torch.testing.assert_close(other, one)


def test_selective_recomputation_keeps_less_and_multiplies_nothing_twice():
    """Products are counted in the backward pass; bytes are those that are still there after the forward."""
    counted, kept = {}, {}
    for policy in ("none", "selective", "blocks"):
        block = Block(32, 2, 128, "sdpa")
        initialize(block, "test", 0)
        x = drawn(2, 64, 32).requires_grad_()
        with _LiveBytes() as live:
            out = checkpointed(block, policy, x, None)
        kept[policy] = live.held()
        with FlopCounterMode(display=False) as counter:
            checkpointed(block, policy, x, None).square().sum().backward()
        counted[policy] = counter.get_total_flops()
        del out
    assert counted["selective"] == counted["none"] < counted["blocks"]
    assert kept["blocks"] < kept["selective"] < 0.8 * kept["none"]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.nightly)])
def test_compiled_functions_give_the_same_losses_and_gradients(backend, monkeypatch):
    """The graphs are the same with both; inductor's code for a CPU takes most of a minute to compile."""
    if backend == "inductor" and shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    found = []
    for compiled in (False, True):
        model = small_autoencoder()
        initialize(model, "test", 0)
        names = list(model.state_dict())
        if compiled:
            compile_units(model)
        assert list(model.state_dict()) == names
        masks = masks_of(torch.rand(4, 4, generator=torch.Generator().manual_seed(1)), 0.5)
        with compiling(compiled):
            losses = model.train()(drawn(4, 80, 8, 8), masks)[0]
        losses.mean().backward()
        found.append((losses.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=0)
    for name, gradient in found[0][1].items():
        worst = float((found[1][1][name] - gradient).abs().max())
        assert worst <= 1e-5 * max(float(gradient.abs().max()), 1e-2), name


def test_a_graph_saves_what_its_policy_says(monkeypatch):
    """This backend divides graphs as inductor does, and compiles nothing."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager_decomp_partition"))
    saved = {}
    for policy in ("none", "selective", "blocks"):
        torch._dynamo.reset()
        block = Block(32, 2, 128, "sdpa")
        initialize(block, "test", 0)
        set_activation_checkpointing(block, policy)
        compile_units(block)
        kept: dict[int, torch.Tensor] = {}
        weights = {weight.data_ptr() for weight in block.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.setdefault(t.data_ptr(), t), lambda t: t
        ):
            block.run(drawn(2, 64, 32).requires_grad_(), None)
        saved[policy] = sum(tensor.nbytes for key, tensor in kept.items() if key not in weights)
    assert saved["blocks"] < saved["selective"] / 4 < saved["none"] / 5


class _LiveBytes(TorchDispatchMode):
    """Bytes of tensors that operations inside have made and that are still held."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, list | tuple) else [result]:
            if isinstance(one, torch.Tensor):
                storage = one.untyped_storage()
                self._made[storage._cdata] = weakref.ref(storage)
        return result

    def held(self) -> int:
        gc.collect()
        return sum(storage().nbytes() for storage in self._made.values() if storage() is not None)

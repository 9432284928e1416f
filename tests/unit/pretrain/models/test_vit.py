"""The ViT's pieces: positions, patches, sizes, and weights drawn from names."""

import gc
import math
import re
import shutil
import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pretrain.engine.zero import compile_blocks
from pretrain.models.activation_checkpointing import recomputed
from pretrain.models.adapter import SpectralConv
from pretrain.models.batchnorm import grouped_batch_norms
from pretrain.models.compilation import Body
from pretrain.models.encoder import Encoder
from pretrain.models.initialize import initialize
from pretrain.models.patches import gather_tokens, patchify, resize_positions, sincos_positions
from pretrain.models.registry import ENCODERS, build_encoder
from pretrain.models.resnet import Bottleneck
from pretrain.models.vit import Block, SpecViT
from pretrain.objectives.mae import MaskedAutoencoder
from pretrain.objectives.picture import unpatchify
from shards.errors import ConfigError


def _model(decoder_width: int = 16) -> MaskedAutoencoder:
    encoder = SpecViT(8, 4, width=16, depth=2, heads=2, mlp_hidden=32, bn_group=2)
    return MaskedAutoencoder(encoder, 80, 0.5, True, decoder_width=decoder_width, decoder_heads=2)


@pytest.mark.parametrize(("width", "grid"), [(16, 4), (192, 3), (512, 32)])
def test_positions_are_sines_and_cosines_of_column_then_row(width, grid):
    table = sincos_positions(width, grid)
    assert table.shape == (1, 1 + grid * grid, width)
    assert table.dtype == torch.float32
    assert not table[0, 0].any()
    quarter = width // 4
    for row, column in [(0, 0), (0, grid - 1), (grid - 1, 0), (grid // 2, 1)]:
        token = table[0, 1 + row * grid + column].tolist()
        for index in (0, 1, quarter - 1):
            rate = 1 / 10000 ** (4 * index / width)
            expected = [f(place * rate) for place in (column, row) for f in (math.sin, math.cos)]
            assert token[index::quarter] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_a_patch_holds_its_pixels_row_by_row_with_spectra_last(patch_size):
    images = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8)
    patches = patchify(images, patch_size)
    grid = 8 // patch_size
    assert patches.shape == (2, grid**2, patch_size**2, 3)
    for row in range(8):
        for column in range(8):
            patch = (row // patch_size) * grid + column // patch_size
            pixel = (row % patch_size) * patch_size + column % patch_size
            assert torch.equal(patches[:, patch, pixel], images[:, :, row, column])


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_unpatchify_undoes_patchify(patch_size):
    images = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    back = unpatchify(patchify(images, patch_size)[0].numpy(), patch_size)
    np.testing.assert_array_equal(back, images[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("rest", [(), (2,), (3, 2)])
def test_gathered_tokens_are_those_of_the_ids(rest):
    tokens = torch.randn(2, 6, *rest, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[5, 0, 2], [1, 1, 3]])
    picked = gather_tokens(tokens, ids)
    for sample in range(2):
        assert torch.equal(picked[sample], tokens[sample, ids[sample]])


def test_tokens_depend_on_where_a_patch_lies():
    encoder = SpecViT(8, 4, width=16, depth=1, heads=2, mlp_hidden=32)
    initialize(encoder, "here", 0)
    patches = torch.randn(1, 1, 16, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = (encoder.eval().tokens(patches, torch.tensor([[place]])) for place in (0, 3))
    assert not torch.allclose(first, second)


def test_ids_in_order_are_the_whole_grid():
    encoder = SpecViT(8, 4, width=16, depth=1, heads=2, mlp_hidden=32)
    initialize(encoder, "whole", 0)
    patches = torch.randn(2, 4, 16, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = encoder.eval().tokens(patches)
        assert torch.equal(encoder.tokens(patches, torch.arange(4).expand(2, -1)), expected)


@pytest.mark.parametrize(("image_size", "patch_size"), [(128, 3), (10, 4), (4, 8)])
def test_a_patch_size_that_does_not_divide_the_image_is_refused(image_size, patch_size):
    with pytest.raises(ValueError, match=f"patch size {patch_size} does not divide image size {image_size}"):
        build_encoder("spec_vit_tiny", image_size, patch_size)


def test_an_unknown_encoder_is_refused_with_the_known_names():
    with pytest.raises(ConfigError, match="unknown encoder 'vit': known are spec_vit_tiny, spec_vit_small"):
        build_encoder("vit")


@pytest.mark.parametrize(("name", "parameters"), [("spec_vit_tiny", 5_985_344), ("spec_vit_small", 22_531_328)])
def test_sizes_are_the_published_ones(name, parameters):
    assert sum(p.numel() for p in build_encoder(name).parameters()) == parameters
    assert name in ENCODERS


def test_fixed_positions_are_a_buffer_under_the_same_name():
    encoder = SpecViT(8, 4, width=16, depth=1, heads=2, mlp_hidden=32)
    before = set(encoder.state_dict())
    encoder.vit_core.fix_positions()
    assert set(encoder.state_dict()) == before
    assert "vit_core.pos_embed" not in dict(encoder.named_parameters())
    assert torch.equal(encoder.vit_core.pos_embed, sincos_positions(16, 2))


# ---- initialize ----


def test_initialize_fills_every_parameter():
    model = _model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    initialize(model, "run", 1)
    unfilled = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    assert unfilled == []


def test_initial_weights_depend_on_the_seed_and_the_name_alone():
    one, other = _model(), _model(decoder_width=32)
    torch.manual_seed(123)
    initialize(one, "run", 1)
    torch.manual_seed(456)
    initialize(other.decoder, "run.decoder", 1)  # another order, and modules of other sizes in between
    initialize(other.encoder, "run.encoder", 1)
    for (name, first), second in zip(one.encoder.named_parameters(), other.encoder.parameters(), strict=True):
        assert torch.equal(first, second), name


def test_initialize_leaves_torchs_own_generator():
    model = _model()
    before = torch.get_rng_state()
    initialize(model, "run", 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("name", "seed"), [("run", 2), ("other", 1)])
def test_another_seed_or_name_gives_other_weights(name, seed):
    one, other = _model(), _model()
    initialize(one, "run", 1)
    initialize(other, name, seed)
    for (label, first), second in zip(one.named_parameters(), other.parameters(), strict=True):
        constant = first.dim() == 1
        assert torch.equal(first, second) == constant, label


def test_layers_of_one_shape_get_different_weights():
    model = _model()
    initialize(model, "run", 1)
    first, second = (model.encoder.vit_core.blocks[block].mlp.fc1.weight for block in (0, 1))
    assert not torch.equal(first, second)


def test_norms_begin_at_one_and_biases_at_zero():
    model = _model()
    initialize(model, "run", 1)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert (parameter == (1.0 if name.endswith("weight") else 0.0)).all(), name


def test_spreads_are_those_of_the_published_rules():
    encoder = build_encoder("spec_vit_tiny", image_size=32)
    initialize(encoder, "run", 1)
    core = encoder.vit_core
    assert float(core.pos_embed.detach().std()) == pytest.approx(0.02, rel=0.05)
    bound = math.sqrt(6 / (192 + 768))  # Xavier
    assert float(core.blocks[0].mlp.fc1.weight.detach().abs().max()) == pytest.approx(bound, rel=1e-3)
    assert float(core.patch_embed.proj.weight.detach().abs().max()) == pytest.approx(
        math.sqrt(6 / (192 + 128 * 16)), rel=1e-3
    )
    convolution = encoder.spectral_adapter.get_submodule("3").weight
    assert float(convolution.detach().abs().max()) == pytest.approx(1 / math.sqrt(32 * 7), rel=1e-2)  # torch's default


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("spec_vit_tiny", 5_985_344),
        ("spec_vit_small", 22_531_328),
        ("spec_vit_base", 87_473_792),
        ("spec_vit_large", 305_516_416),
        ("spec_vit_huge", 633_672_832),
        ("spec_vit_giant", 1_138_043_264),
        ("spec_vit_gigantic", 1_845_000_000),
    ],
)
def test_encoders_have_the_published_number_of_parameters(name, parameters):
    with torch.device("meta"):
        encoder = build_encoder(name)
    count = sum(parameter.numel() for parameter in encoder.parameters())
    assert count == parameters or (name == "spec_vit_gigantic" and abs(count / parameters - 1) < 0.005)


# ---- sizes, crops, layers ----


def _drawn(name: str = "spec_vit_tiny", size: int = 16, patch: int = 4, bands: int = 100) -> Encoder:
    encoder = build_encoder(name, size, patch, bands=bands)
    initialize(encoder, "test", 0)
    return encoder.eval()


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["spec_vit_tiny", "vit_tiny"])
@torch.no_grad()
def test_packed_crops_are_the_crops_alone(name):
    encoder = _drawn(name)
    crops = [_normal(3, 100, 16, 16), _normal(4, 100, 8, 8), _normal(2, 100, 12, 12)]
    packed = encoder(crops)
    assert packed.shape == (9, 192)
    torch.testing.assert_close(packed, torch.cat([encoder(crop) for crop in crops]), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_positions_are_interpolated_to_other_sizes():
    positions = sincos_positions(16, 8)
    assert resize_positions(positions, (8, 8)) is positions
    flat = torch.cat([positions[:, :1], torch.full((1, 64, 16), 3.0)], 1)
    resized = resize_positions(flat, (4, 6))
    assert torch.equal(resized[:, :1], positions[:, :1])
    torch.testing.assert_close(resized[:, 1:], torch.full((1, 24, 16), 3.0))
    ramp = torch.arange(8.0).view(1, 8, 1, 1).expand(1, 8, 8, 16).reshape(1, 64, 16)  # rows count up
    finer = resize_positions(torch.cat([positions[:, :1], ramp], 1), (16, 16))[0, 1:].view(16, 16, 16)
    assert (finer[1:-1].diff(dim=0) > 0).all()
    torch.testing.assert_close(finer[:, 0], finer[:, 9])
    wide = resize_positions(torch.cat([positions[:, :1], ramp], 1), (4, 12))[0, 1:].view(4, 12, 16)
    assert (wide.diff(dim=0) > 1).all()
    assert wide.diff(dim=1).abs().max() < 1e-5


@pytest.mark.parametrize(("patch", "bands"), [(4, 202), (8, 150), (16, 242)])
@pytest.mark.parametrize("name", ["spec_vit_tiny", "vit_tiny"])
@torch.no_grad()
def test_each_place_of_a_map_tells_of_its_own_patch(name, patch, bands):
    """Blocks that add nothing leave each patch to itself, in an image that isn't square."""
    encoder = _drawn(name, 4 * patch, patch, bands)
    assert encoder.stride == patch
    images = _normal(1, bands, 2 * patch, 3 * patch)
    changed = images.clone()
    changed[:, :, -1, -patch - 1] += 1.0  # the last pixel of row 1, column 1
    assert not torch.equal(encoder(changed), encoder(images))
    for block in encoder.core.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
    moved = (encoder.dense_features(changed) != encoder.dense_features(images)).any(1)
    assert moved.tolist() == [[[False, False, False], [False, True, False]]]
    encoder.core.pos_embed[0, 1:] = _normal(4, 192).repeat_interleave(4, 0)  # each row its own
    even = encoder.dense_features(torch.zeros_like(images))
    assert torch.allclose(even, even[..., :1], atol=1e-5)
    assert not torch.allclose(even[:, :, 0], even[:, :, 1], atol=0.1)


@torch.no_grad()
def test_an_image_that_patches_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="10 x 16 px do not divide into patches of 4 px"):
        _drawn()(_normal(1, 100, 10, 16))


@pytest.mark.parametrize("name", ["spec_vit_tiny", "vit_tiny"])
@torch.no_grad()
def test_intermediate_layers(name):
    encoder, images = _drawn(name), _normal(2, 100, 16, 16)
    ((last, cls),) = encoder.get_intermediate_layers(images, return_prefix_tokens=True, norm=True)
    torch.testing.assert_close(cls[:, 0], encoder(images))
    (shaped,) = encoder.get_intermediate_layers(images, reshape=True, norm=True)
    torch.testing.assert_close(shaped, encoder.dense_features(images))
    torch.testing.assert_close(shaped.flatten(2).transpose(1, 2), last)
    outputs: list[torch.Tensor] = []
    for block in encoder.core.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    for n, numbers in ((4, [8, 9, 10, 11]), ([3, 0, -1], [3, 0, 11]), ([-12, 5, 5], [0, 5, 5])):
        outputs.clear()
        layers = encoder.get_intermediate_layers(images, n=n, return_prefix_tokens=True)
        for (patches, cls), number in zip(layers, numbers, strict=True):
            assert torch.equal(torch.cat([cls, patches], 1), outputs[number])
    for wrong in (0, 13):
        with pytest.raises(ValueError, match=f"the last {wrong} layers were asked for; this encoder has 12"):
            encoder.get_intermediate_layers(images, n=wrong)
    for wrong in (12, -13):
        with pytest.raises(ValueError, match=f"layer {wrong} was asked for; this encoder has layers 0 to 11"):
            encoder.get_intermediate_layers(images, n=[0, wrong])


@pytest.mark.parametrize(("name", "stride"), [("vit_tiny", 4), ("resnet50", 32), ("spec_resnet50", 16)])
def test_every_encoder_gives_vectors_and_maps_and_trains(name, stride):
    encoder = _drawn(name, 32).train()
    with torch.no_grad():
        for parameter in encoder.parameters():  # fresh residual blocks of a ResNet add nothing: no gradient inside
            if parameter.dim() == 1:
                parameter.fill_(0.5)
    images = _normal(2, 100, 32, 32)
    maps = encoder.dense_features(images)
    assert encoder.stride == stride
    assert maps.shape == (2, encoder.feature_dim, 32 // stride, 32 // stride)
    assert maps.isfinite().all()
    assert encoder([images, images]).shape == (4, encoder.feature_dim)
    (encoder(images).square().mean() + maps.square().mean()).backward()
    still = {
        name for name, parameter in encoder.named_parameters() if parameter.grad is None or not parameter.grad.any()
    }
    assert still == {key for key in encoder.state_dict() if re.search(r"spectral_adapter\.[036]\.bias", key)}


@pytest.mark.parametrize("name", ["spec_vit_tiny", "spec_resnet50"])
def test_recomputed_activations_give_the_same_gradients_and_count_once(name):
    results = []
    for recompute in (False, True, "selective"):
        encoder = build_encoder(name, 8, 4, bn_group=2)
        initialize(encoder, "test", 0)
        calls: list[str] = []
        for part in encoder.modules():
            if hasattr(part, "recompute"):
                part.recompute = recompute
            if isinstance(part, Block | Bottleneck | SpectralConv):
                part.register_forward_pre_hook(lambda module, inputs, calls=calls: calls.append(type(module).__name__))
        features = encoder.train()(_normal(4, 80, 8, 8))
        forward = len(calls)
        features.square().sum().backward()
        again = {False: [], True: calls[:forward], "selective": [c for c in calls[:forward] if c != "SpectralConv"]}
        assert sorted(calls[forward:]) == sorted(again[recompute])
        gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
        results.append((gradients, [norm.take_pending() for norm in grouped_batch_norms(encoder)]))
    for gradients, pending in results[1:]:
        for name, gradient in results[0][0].items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)
        for one, other in zip(results[0][1], pending, strict=True):
            assert other[-1] == one[-1] == 2
            torch.testing.assert_close(other, one)


def test_selective_recomputation_keeps_less_and_multiplies_nothing_twice():
    """Products are counted in the backward pass; bytes are those that are still there after the forward."""
    counted, kept = {}, {}
    for recompute in (False, "selective", True):
        block = Block(32, 2, 128, "sdpa")
        initialize(block, "test", 0)
        x = _normal(2, 64, 32).requires_grad_()
        with _LiveBytes() as live:
            out = recomputed(block, recompute, x, None)
        kept[recompute] = live.held()
        with FlopCounterMode(display=False) as counter:
            recomputed(block, recompute, x, None).square().sum().backward()
        counted[recompute] = counter.get_total_flops()
        del out
    assert counted["selective"] == counted[False] < counted[True]
    assert kept[True] < kept["selective"] < 0.8 * kept[False]


def test_compiled_bodies_give_the_same_losses_and_gradients(monkeypatch):
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    found = []
    for compiled in (False, True):
        monkeypatch.setattr(Body, "compiles", compiled)
        model = _model()
        initialize(model, "test", 0)
        names = list(model.state_dict())
        if compiled:
            compile_blocks(model)
        assert list(model.state_dict()) == names
        noise = torch.rand(4, 4, generator=torch.Generator().manual_seed(1))
        losses = model.train()(_normal(4, 80, 8, 8), noise)[0]
        losses.mean().backward()
        found.append((losses.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=0)
    for name, gradient in found[0][1].items():
        worst = float((found[1][1][name] - gradient).abs().max())
        assert worst <= 1e-5 * max(float(gradient.abs().max()), 1e-2), name


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

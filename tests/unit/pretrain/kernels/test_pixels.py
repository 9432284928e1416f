"""Kernels of normalization and loss, run by Triton's interpreter, against eager torch."""

import math

import numpy as np
import pytest
import torch

from pretrain.kernels.launching import interpreting
from pretrain.models.initialize import initialize
from pretrain.models.normalize import Normalizer
from pretrain.models.patches import gather_tokens
from pretrain.models.spectrum import Spectrum
from pretrain.models.vit import SpecViT, ViTEncoder
from pretrain.models.wave import WaveStem
from pretrain.objectives.image_bands import ImageBands
from pretrain.objectives.masked_autoencoder import MaskedAutoencoder
from pretrain.objectives.masked_loss import fused_errors, masked_targets, num_counted, squared_errors
from pretrain.objectives.masks import MaskedPatches, choose_masks
from shards.sensors.sensor import NODATA

pytestmark = pytest.mark.usefixtures("interpreter")

BATCH, TOKENS, PIXELS, MASKED = 2, 6, 4, 4


def _tiles(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    tiles = torch.randint(-200, 9000, shape, dtype=torch.int16, generator=generator)
    tiles[torch.rand(shape, generator=generator) < 0.05] = NODATA
    return tiles


def _normalizer(bands: int, clip: float | None) -> Normalizer:
    return Normalizer([3000.0 + band for band in range(bands)], [1700.0 - band for band in range(bands)], clip)


@pytest.mark.parametrize("clip", [None, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_normalize(clip, dtype):
    tiles, normalize = _tiles(2, 5, 7, 9), _normalizer(5, clip)
    expected = normalize._normalize(tiles, normalize.mu, normalize.sigma, dtype)
    assert torch.equal(normalize(tiles, dtype), expected)


def test_normalize_by_the_tables_of_several_sources():
    tiles, bands = _tiles(3, 5, 7, 9), torch.arange(10.0).view(2, 5)
    normalize, sources = Normalizer(3000 + bands, 1700 - bands, 1.5), torch.tensor([1, 0, 1])
    with interpreting(False):
        expected = normalize(tiles, sources=sources)
    assert torch.equal(normalize(tiles, sources=sources), expected)


def test_results_beyond_the_range_of_half_precision_are_cut():
    normalize = Normalizer([0.0], [0.01])
    assert normalize(torch.full((1, 1, 1, 1), 30_000, dtype=torch.int16), torch.float16).item() == 65504


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("is_counted", [True, False])
@pytest.mark.parametrize("bands", [5, 1100])  # 1,100: more values in a patch than a program holds
def test_patch_loss_of_integers(bands, is_counted, norm_pix):
    patches, normalize = _tiles(BATCH, TOKENS, PIXELS, bands), _normalizer(bands, 2.0)
    _compare(patches, normalize, is_counted, norm_pix, torch.float32, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_patch_loss_of_normalized_patches(dtype):
    patches = _normalizer(7, None).spectra(_tiles(BATCH, TOKENS, PIXELS, 7)).to(dtype)
    _compare(patches, None, True, True, dtype, 1e-5 if dtype == torch.float32 else 2e-3)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_patch_loss_of_several_sources(norm_pix):
    patches, bands = _tiles(BATCH, TOKENS, PIXELS, 5), torch.arange(10.0).view(2, 5)
    patches[1, ..., 3:] = NODATA
    normalize, wanted = Normalizer(3000 + bands, 1700 - bands, 2.0), torch.tensor([[1.0] * 5, [1, 1, 1, 0, 0]])
    _compare(patches, normalize, True, norm_pix, torch.float32, 1e-5, torch.tensor([1, 0]), wanted)


def _compare(
    patches: torch.Tensor,
    normalize: Normalizer | None,
    is_counted: bool,
    norm_pix: bool,
    dtype: torch.dtype,
    tolerance: float,
    sources: torch.Tensor | None = None,
    wanted: torch.Tensor | None = None,
) -> None:
    generator = torch.Generator().manual_seed(3)
    values = PIXELS * patches.shape[-1]
    prediction = torch.randn(BATCH, MASKED, values, generator=generator).to(dtype)
    if wanted is not None:  # a decoder by wavelength predicts 0 for other bands
        prediction = (prediction.unflatten(2, (PIXELS, -1)) * wanted[:, None, None]).flatten(2)
    prediction.requires_grad_()
    ids = torch.stack([torch.randperm(TOKENS, generator=generator)[:MASKED] for _ in range(BATCH)])
    counted = (torch.rand(BATCH, MASKED, PIXELS, generator=generator) < 0.7).float() if is_counted else None
    if counted is not None:
        counted[0, 0], counted[0, 1, 1:] = 0, 0  # a patch without pixels, and perhaps one with a single pixel
    divisor = None if counted is None else num_counted(counted, None)
    weights = torch.tensor([0.3, 0.7])

    losses = fused_errors(prediction, patches, ids, counted, divisor, normalize, norm_pix, sources, wanted)
    (losses * weights).sum().backward()
    gradient, prediction.grad = prediction.grad, None

    truth = gather_tokens(patches, ids)
    truth = truth.float() if normalize is None else normalize.spectra(truth, sources)
    weight = torch.full((1, 1, PIXELS), 1 / (MASKED * PIXELS)) if counted is None else counted / divisor.view(-1, 1, 1)
    if wanted is not None:
        weight = weight * (wanted.shape[1] / wanted.sum(1)).view(-1, 1, 1)

    def targets(part: slice) -> torch.Tensor:
        return masked_targets(truth[part], norm_pix, *(None if x is None else x[part] for x in (counted, wanted)))

    expected = squared_errors(prediction, targets, weight)
    (expected * weights).sum().backward()
    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=0)
    scale = prediction.grad.abs().max().item()
    assert math.isclose((gradient - prediction.grad).abs().max().item() / scale, 0, abs_tol=tolerance)


def _two_sensors(bands: int) -> ImageBands:
    """Two images, of which the second has half of the bands."""
    widths = torch.full((2, bands), 10.0)
    widths[1, bands // 2 :] = 0
    spectrum = Spectrum(torch.linspace(400, 2400, bands).expand(2, -1), widths)
    return ImageBands(torch.tensor([0, 1]), spectrum, spectrum)


@pytest.mark.parametrize("is_counted", [True, False])
def test_a_model_of_two_sensors_has_the_losses_and_gradients_of_eager_torch(is_counted):
    tables = 3000 + torch.arange(24.0).view(2, 12)
    encoder = SpecViT(16, 4, width=16, depth=1, heads=2, mlp_hidden=32, stem=WaveStem())
    _compare_models(encoder, Normalizer(tables, tables / 2), is_counted, _two_sensors(12))


@pytest.mark.parametrize("is_counted", [True, False])
def test_a_model_with_the_kernel_has_the_losses_and_gradients_of_eager_torch(is_counted):
    _compare_models(SpecViT(16, 4, width=16, depth=1, heads=2, mlp_hidden=32), _normalizer(80, None), is_counted)


def _compare_models(encoder: ViTEncoder, normalize: Normalizer, is_counted: bool, *bands: ImageBands) -> None:
    count = normalize.mu.shape[-3]
    tiles = _tiles(2, count, 16, 16)
    masks = MaskedPatches(*map(torch.from_numpy, choose_masks(np.random.default_rng(0).random((2, 16)), 0.5)))
    valid = (tiles != NODATA).float().mean(1, keepdim=True) > 0.95 if is_counted else None
    model = MaskedAutoencoder(encoder, count, 0.5, decoder_width=16, decoder_heads=2, normalize=normalize)
    initialize(model, "mae", 1)
    results = []
    for is_fused in (True, False):
        model.zero_grad()
        with interpreting(is_fused):
            losses = model.losses(tiles, masks, valid, None, *bands)[0]
            losses.mean().backward()
        results.append([losses, *(parameter.grad for parameter in model.parameters())])
    for fused, expected in zip(*results, strict=True):
        torch.testing.assert_close(fused, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())

"""Masks, targets and loss of the masked autoencoder."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.masks import masks_of

from pretrain.config import PretrainConfig
from pretrain.models.initialize import initialize
from pretrain.models.normalize import Normalizer
from pretrain.models.patches import gather_tokens, patchify
from pretrain.models.vit import SpecViT
from pretrain.objectives.image_bands import ALL_BANDS
from pretrain.objectives.masked_autoencoder import MaskedAutoencoder
from pretrain.objectives.masked_loss import masked_targets
from pretrain.objectives.masks import MaskedPatches

BANDS = 80


def _model(norm_pix: bool = True, mask_ratio: float = 0.5, decoder_depth: int = 1) -> MaskedAutoencoder:
    encoder = SpecViT(16, 4, width=16, depth=1, heads=2, mlp_hidden=32)
    model = MaskedAutoencoder(encoder, BANDS, mask_ratio, norm_pix, 16, decoder_depth, 2)
    initialize(model, "mae", 1)
    return model.eval()


def _images(batch: int = 2) -> torch.Tensor:
    return 2 + 3 * torch.randn(batch, BANDS, 16, 16, generator=torch.Generator().manual_seed(0))


def _masks(batch: int = 2, patches: int = 16, ratio: float = 0.5) -> MaskedPatches:
    return masks_of(torch.rand(batch, patches, generator=torch.Generator().manual_seed(1)), ratio)


@pytest.mark.parametrize(("patches", "ratio", "kept"), [(1024, 0.9, 102), (1024, 0.75, 256), (16, 0.5, 8), (9, 0.6, 3)])
def test_masks_keep_the_share_and_part_the_grid(patches, ratio, kept):
    masks = _masks(5, patches, ratio)
    assert masks.visible.shape == (5, kept)
    for visible, masked in zip(masks.visible.tolist(), masks.masked.tolist(), strict=True):
        assert visible == sorted(visible)
        assert masked == sorted(masked)
        assert sorted(visible + masked) == list(range(patches))


def test_the_patches_of_smallest_noise_are_kept():
    masks = masks_of(torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.0, 0.3, 0.2, 0.1]]), 0.5)
    assert masks.visible.tolist() == [[1, 3], [0, 3]]
    assert masks.masked.tolist() == [[0, 2], [1, 2]]


@pytest.mark.parametrize(("patches", "share", "decoded"), [(16, 0.5, 4), (16, 0.3, 3), (16, 0.01, 1), (20, 0.7, 7)])
def test_a_share_of_the_masked_patches_is_decoded_in_the_order_of_noise(patches, share, decoded):
    """0.7 of ten masked patches are seven, although 0.7 * 10 is more than 7 in floating point."""
    noise = torch.rand(5, patches, generator=torch.Generator().manual_seed(1))
    masks, every = masks_of(noise, 0.5, share), masks_of(noise, 0.5)
    assert torch.equal(masks.visible, every.visible)
    ranked = noise.argsort(1)[:, patches // 2 :]
    assert torch.equal(masks.masked, ranked[:, :decoded].sort(1).values)


@pytest.mark.parametrize("depth", [1, 2])
def test_decoding_a_share_is_a_decoder_that_never_sees_the_others(depth):
    """The reference puts mask tokens on the whole grid, and drops those that are not decoded before the blocks."""
    model, images = _model(decoder_depth=depth), _images()
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(1))
    masks, decoder = masks_of(noise, 0.5, 0.5), model.decoder
    losses, prediction, ids, _ = model(images, masks)
    gradients = torch.autograd.grad(losses.mean(), list(model.parameters()), allow_unused=True)

    patches = patchify(images, 4)
    latent = decoder.decoder_embed(model.encoder.tokens(gather_tokens(patches, masks.visible), masks.visible))
    grid = decoder.mask_token.expand(2, 16, -1)
    grid = grid.scatter(1, masks.visible[:, :, None].expand(-1, -1, 16), latent[:, 1:])
    x = torch.cat([latent[:, :1], grid], 1) + decoder.decoder_pos_embed
    kept = torch.cat([torch.zeros(2, 1, dtype=torch.long), 1 + torch.cat(list(masks), 1).sort(1).values], 1)
    x = gather_tokens(x, kept)
    for block in decoder.decoder_blocks:
        x = block(x)
    places = torch.stack([torch.searchsorted(row, 1 + masked) for row, masked in zip(kept, masks.masked, strict=True)])
    expected = decoder.decoder_pred(decoder.decoder_norm(gather_tokens(x, places)))
    target = masked_targets(gather_tokens(patches, masks.masked), True)
    expected_losses = (expected - target).square().mean((1, 2))

    assert torch.equal(ids, masks.masked)
    torch.testing.assert_close(prediction, expected)
    torch.testing.assert_close(losses, expected_losses)
    plain = torch.autograd.grad(expected_losses.mean(), list(model.parameters()), allow_unused=True)
    for one, other in zip(gradients, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_targets_are_the_patches_own_pixels_in_order():
    patches = _images().reshape(2, 4, 16, -1)
    assert torch.equal(masked_targets(patches, False), patches.flatten(2))


def test_normalized_targets_have_the_unbiased_variance_of_numpy():
    patches = torch.randn(2, 3, 4, 2, generator=torch.Generator().manual_seed(0))  # 8 values: ddof matters, 7 %
    flat = patches.numpy().astype(np.float64).reshape(2, 3, 8)
    expected = (flat - flat.mean(-1, keepdims=True)) / np.sqrt(flat.var(-1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(masked_targets(patches, True).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_constant_patch_has_a_finite_target():
    assert not masked_targets(torch.full((1, 1, 4, 2), 3.0), True).any()


class _Given(torch.nn.Module):
    """A decoder that predicts what it is told."""

    def __init__(self, prediction: torch.Tensor) -> None:
        super().__init__()
        self.prediction = prediction

    def forward(self, latent: torch.Tensor, masks: object, bands: object = None) -> torch.Tensor:
        return self.prediction


@pytest.mark.parametrize("norm_pix", [True, False])
def test_loss_is_the_mean_square_over_masked_patches_of_each_sample(norm_pix):
    model, images, masks = _model(norm_pix), _images(), _masks()
    masked = masks.masked
    target = masked_targets(gather_tokens(patchify(images, 4), masked), norm_pix)
    error = torch.randn(target.shape, generator=torch.Generator().manual_seed(2))
    model.decoder = _Given(target + error)
    losses, prediction, ids, _ = model(images, masks)
    assert torch.equal(prediction, target + error)
    assert torch.equal(ids, masked)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, error.square().mean((1, 2)), rtol=1e-5, atol=0)


def test_pixels_of_visible_patches_are_no_target():
    model, images, masks = _model(), _images(), _masks()
    prediction = torch.randn(2, 8, 16 * BANDS, generator=torch.Generator().manual_seed(3))
    model.decoder = _Given(prediction)  # of zeros, the loss would be the variance of normalized targets, a constant
    before, _, _, _ = model(images, masks)
    for name, changes in (("visible", False), ("masked", True)):
        other = images.clone()
        for sample, patch in enumerate(getattr(masks, name)[:, 0].tolist()):
            row, column = 4 * (patch // 4), 4 * (patch % 4)
            other[sample, :, row, column] += 100.0
        after, _, _, _ = model(other, masks)
        assert torch.equal(after, before) != changes


def test_pixels_of_masked_patches_never_reach_the_prediction():
    model, images, masks = _model(), _images(), _masks()
    hidden = images.clone()
    for sample in range(2):
        for patch in masks.masked[sample].tolist():
            row, column = 4 * (patch // 4), 4 * (patch % 4)
            hidden[sample, :, row : row + 4, column : column + 4] = float("nan")
    with torch.no_grad():
        assert torch.equal(model(images, masks)[1], model(hidden, masks)[1])


def test_each_prediction_is_for_its_own_place():
    """Where all tokens are the mask token, predictions differ by position alone."""
    model, masks = _model(), _masks()
    with torch.no_grad():
        _, prediction, _, _ = model(_images(), masks)
    assert torch.unique(prediction[0], dim=0).shape[0] == prediction.shape[1]


@pytest.mark.parametrize("norm_pix", [True, False])
def test_a_perfect_prediction_is_put_back_to_the_truth(norm_pix):
    model, images, masked = _model(norm_pix), _images(), _masks().masked[0]
    patches = patchify(images[:1], 4)
    prediction = masked_targets(patches[:, masked], norm_pix)[0]
    truth, predicted = model.reconstruct(images[0], prediction, masked)
    assert torch.equal(truth, patches[0])
    torch.testing.assert_close(predicted, truth, rtol=1e-5, atol=1e-5)


def test_only_masked_patches_are_replaced_by_the_prediction():
    model, images = _model(norm_pix=False), _images()
    masked = torch.tensor([1, 6])
    truth, predicted = model.reconstruct(images[0], torch.full((2, 16 * BANDS), 7.0), masked)
    assert (predicted[masked] == 7).all()
    others = torch.tensor([patch for patch in range(16) if patch not in (1, 6)])
    assert torch.equal(predicted[others], truth[others])


def test_a_sample_gives_the_same_loss_alone_and_in_a_batch():
    model, images, masks = _model(), _images(4), _masks(4)
    one = [MaskedPatches(*(ids[row, None] for ids in masks)) for row in range(4)]
    with torch.no_grad():
        together = model(images, masks)[0]
        alone = torch.cat([model(images[row : row + 1], one[row])[0] for row in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("image_size", "ratio", "fits"), [(8, 0.75, True), (8, 0.9, False), (16, 0.9, True)])
def test_a_mask_that_hides_every_patch_is_refused_before_a_run(image_size, ratio, fits):
    values = {
        "run": {"dir": "run"},
        "data": {"shards": "shards"},
        "train": {"steps": 1},
        "model": {"image_size": image_size, "patch_size": 4},
        "objective": {"mask_ratio": ratio},
    }
    if fits:
        PretrainConfig.model_validate(values)
    else:
        with pytest.raises(ValidationError, match=r"mask_ratio 0.9 leaves none of the 4 patches visible"):
            PretrainConfig.model_validate(values)


# ---- missing pixels and spectral angles ----


@pytest.mark.parametrize("norm_pix", [False, True])
def test_values_of_missing_pixels_do_not_matter(norm_pix):
    model, images, masks = _model(norm_pix=norm_pix), _images(), _masks()
    valid = torch.ones(len(images), 1, *images.shape[2:], dtype=torch.bool)
    masked = masks.masked[0, 0]
    grid = model.encoder.grid
    row, column = 4 * int(masked // grid), 4 * int(masked % grid)
    valid[0, 0, row : row + 2, column : column + 3] = False
    changed = images.clone()
    changed[0, :, row : row + 2, column : column + 3] += 50.0
    with torch.no_grad():
        assert torch.equal(model(images, masks, valid)[0], model(changed, masks, valid)[0])
        matters = (model(changed, masks)[0][0] - model(images, masks)[0][0]).abs()
        assert matters > (1e-4 if norm_pix else 1)
        everything = torch.ones_like(valid)
        torch.testing.assert_close(model(images, masks, everything)[0], model(images, masks)[0])
        pixels = 16 * masks.masked.shape[1] - 6
        scaled = model(images, masks, valid, torch.tensor(7.0))[0][0] * 7 / pixels
        torch.testing.assert_close(scaled, model(images, masks, valid)[0][0])


def _angled(mu: float = 0.0) -> MaskedAutoencoder:
    bands = _images().shape[1]
    encoder = SpecViT(8, 4, width=16, depth=1, heads=2, mlp_hidden=32)
    normalize = Normalizer([mu] * bands, [2.0] * bands)
    return MaskedAutoencoder(encoder, bands, norm_pix=False, spectral_angle=0.5, normalize=normalize)


def test_the_spectral_angle_is_that_of_the_digital_numbers():
    model = _angled(mu=10.0)
    one, other = torch.randn(2, 3, 4, _images().shape[1], generator=torch.Generator().manual_seed(0)).unbind(0)
    a, b = (2 * x.double() + 10 for x in (one, other))
    expected = torch.acos((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)))
    torch.testing.assert_close(model._angles(one[None], other[None])[0].double(), expected, rtol=1e-4, atol=1e-5)


def test_the_loss_has_the_mean_angle_with_its_weight():
    model = _angled(mu=10.0).eval()
    initialize(model, "mae", 1)
    images, noise = _images()[..., :8, :8], torch.tensor([[0.1, 0.9, 0.8, 0.7], [0.9, 0.1, 0.8, 0.7]])
    masks = masks_of(noise, 0.75)
    with torch.no_grad():
        losses, prediction, ids, _ = model(images, masks)
        truth = gather_tokens(patchify(images, 4), ids)
        angles = model._angles(prediction.view_as(truth), truth)
        model.spectral_angle = 0.0
        expected = model(images, masks)[0] + 0.5 * angles.mean((1, 2))
    assert angles.min() > 0.01
    torch.testing.assert_close(losses, expected)


def test_proportional_spectra_have_no_angle_and_a_finite_gradient():
    model = _angled()
    spectra = torch.rand(1, 2, 4, _images().shape[1], generator=torch.Generator().manual_seed(0)) + 0.1
    for factor in (1, 3):  # at 1 the difference is exactly 0
        longer = (factor * spectra).requires_grad_()
        angles = model._angles(longer, spectra)
        assert angles.detach().max() < 1e-5
        angles.sum().backward()
        assert longer.grad.isfinite().all()


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("with_missing", [True, False])
def test_errors_of_bands_average_to_the_loss(norm_pix, with_missing):
    model, images, masks = _model(norm_pix), _images(), _masks()
    model.decoder = _Given(torch.randn(2, 8, 16 * BANDS, generator=torch.Generator().manual_seed(3)))
    valid = (
        torch.rand(2, 1, *images.shape[2:], generator=torch.Generator().manual_seed(4)) > 0.3 if with_missing else None
    )
    losses, prediction, _, _ = model(images, masks, valid)
    errors = model.band_errors(images, masks, prediction, valid, ALL_BANDS)
    assert errors.shape == (2, BANDS)
    torch.testing.assert_close(errors.mean(1), losses, rtol=1e-5, atol=0)


def test_a_band_that_is_predicted_badly_stands_out():
    model, images, masks = _model(norm_pix=False), _images(), _masks()
    target = masked_targets(gather_tokens(patchify(images, 4), masks.masked), False)
    wrong = target.unflatten(2, (16, BANDS)).clone()
    wrong[..., 5] += 3.0
    errors = model.band_errors(images, masks, wrong.flatten(2), None, ALL_BANDS)
    assert errors[:, 5].tolist() == pytest.approx([9.0, 9.0], rel=1e-4)
    assert errors[:, :5].abs().max() == 0

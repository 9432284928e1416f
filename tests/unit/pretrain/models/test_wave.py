"""The wave stem: features from bands of any sensor."""

import pytest
import torch
from support.small_networks import drawn
from torch.utils.flop_counter import FlopCounterMode

from pretrain.models.initialize import initialize
from pretrain.models.registry import build_encoder
from pretrain.models.spectrum import Spectrum, spectral_weights, spectrum_of
from pretrain.models.unit import set_activation_checkpointing
from pretrain.models.wave import WaveStem, set_default_spectrum

WAVE = {"name": "wave"}


def _bands(step: float, low: float = 420.0, high: float = 2440.0) -> Spectrum:
    centers = torch.arange(low, high, step)
    return Spectrum(centers[None], torch.full_like(centers, 8.0)[None])


def _stem() -> WaveStem:
    stem = WaveStem()
    initialize(stem, "test", 0)
    return stem


def _reflectance(spectrum: Spectrum) -> torch.Tensor:
    """Smooth spectra of two pixels, (1, 2, C)."""
    position = (spectrum.center_nm - 420) / 2000
    return torch.stack([(3 * position).sin() + 0.5, (7 * position).cos()], 1)


@pytest.mark.parametrize("step", [5.0, 20.0])
def test_twice_or_half_as_many_bands_keep_the_scale(step):
    stem, usual, other = _stem(), _bands(10.0), _bands(step)
    products, changed = (_reflectance(spectrum) @ stem.matrix(spectrum) for spectrum in (usual, other))
    assert changed.norm().item() == pytest.approx(products.norm().item(), rel=0.05)
    assert torch.nn.functional.cosine_similarity(changed, products, -1).min() > 0.95


def test_absent_bands_count_for_nothing_and_have_no_neighbors():
    stem, spectrum = _stem(), _bands(10.0)
    kept = torch.ones(spectrum.center_nm.shape[-1], dtype=torch.bool)
    kept[::3] = False
    hidden = spectrum._replace(fwhm_nm=spectrum.fwhm_nm * kept)
    fewer = Spectrum(spectrum.center_nm[:, kept], spectrum.fwhm_nm[:, kept])
    pixels = _reflectance(spectrum)
    expected = stem(pixels[..., kept], fewer)
    pixels[..., ~kept] = 1e4
    torch.testing.assert_close(stem(pixels, hidden), expected)


def test_weights_are_shares_of_half_the_distance_to_both_neighbors_up_to_30_nm():
    centers = torch.tensor([[500.0, 430.0, 410.0, 400.0, 2000.0]])
    present = torch.tensor([[True, True, True, True, False]])
    weights = spectral_weights(centers, present)
    torch.testing.assert_close(weights, torch.tensor([[15.0, 25.0, 15.0, 5.0, 0.0]]) / 60)
    assert spectral_weights(centers[:, :1], present[:, :1]).item() == 1
    assert not spectral_weights(centers, ~present & False).any()


def test_bands_in_another_order_have_the_same_features():
    stem, spectrum = _stem(), _bands(30.0)
    order = torch.randperm(spectrum.center_nm.shape[-1], generator=torch.Generator().manual_seed(0))
    shuffled = Spectrum(spectrum.center_nm[:, order], spectrum.fwhm_nm[:, order])
    pixels = _reflectance(spectrum)
    torch.testing.assert_close(stem(pixels[..., order], shuffled), stem(pixels, spectrum))


def test_a_response_is_a_sensor_whose_bands_are_made_from_the_images_channels():
    stem, spectrum = _stem(), _bands(10.0)
    response = torch.rand(1, 12, spectrum.center_nm.shape[-1], generator=torch.Generator().manual_seed(0))
    made = Spectrum(torch.linspace(450, 2300, 12)[None], torch.full((1, 12), 60.0), response)
    pixels = _reflectance(spectrum)
    expected = stem(pixels @ response[0].T, made._replace(response=None))
    torch.testing.assert_close(stem(pixels, made), expected, rtol=1e-4, atol=1e-5)


def test_each_group_of_samples_has_its_own_bands():
    stem, first, second = _stem(), _bands(20.0), _bands(20.0, low=430.0, high=2450.0)
    both = Spectrum(*(torch.cat(parts) for parts in zip(first[:2], second[:2], strict=True)))
    pixels = drawn(4, 3, first.center_nm.shape[-1])
    expected = torch.cat([stem(pixels[:2], first), stem(pixels[2:], second)])
    torch.testing.assert_close(stem(pixels, both), expected)
    with pytest.raises(ValueError, match="3 samples are not a multiple of 2 groups"):
        stem(pixels[:3], both)


def test_images_of_other_bands_or_without_any_are_refused():
    with pytest.raises(ValueError, match="needs the centers and widths of its bands"):
        _stem()(drawn(1, 1, 5))
    with pytest.raises(ValueError, match="images of 5 bands, but a spectrum of 2"):
        _stem()(drawn(1, 1, 5), spectrum_of([400, 500], [10, 10]))


@pytest.mark.parametrize("name", ["spec_vit_tiny", "spec_resnet50"])
def test_encoders_have_the_features_of_their_default_bands_or_of_those_given(name):
    encoder = build_encoder(name, 16, 4, bands=3, stem=WAVE, attention="math")
    initialize(encoder, "test", 0)
    bands = [[450.0, 550.0, 650.0], [30.0] * 3]
    set_default_spectrum(encoder, *bands)
    images = drawn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(encoder.eval()(images, "map"), encoder(images, "map", spectrum_of(*bands)))
        other = encoder(images, "pooled", spectrum_of([450.0, 550.0, 850.0], [30.0] * 3))
        assert not torch.allclose(encoder(images), other, atol=1e-3)
    assert encoder.bands is None


def test_operations_are_those_that_torch_counts():
    encoder, bands = build_encoder("spec_vit_tiny", 64, 4, bands=202, stem=WAVE, attention="math"), 202
    spectrum, images = spectrum_of(range(400, 2420, 10), [10] * bands), drawn(2, bands, 64, 64)
    with FlopCounterMode(display=False, depth=4) as counter:
        encoder(images, "pooled", spectrum).sum().backward()
    counted = sum(counter.get_flop_counts()["SpecViT.spectral_adapter"].values())
    made = 3 * bands * encoder.stem.embedding.flops()  # once for all pixels
    expected = 2 * encoder.training_flops(bands, 64)["stem"] + made
    assert counted == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("policy", ["selective", "blocks"])
def test_recomputed_activations_give_the_same_gradients(policy):
    results = []
    for chosen in ("none", policy):
        stem, spectrum = _stem().train(), _bands(40.0)
        set_activation_checkpointing(stem, chosen)
        stem(_reflectance(spectrum), spectrum).square().sum().backward()
        results.append([parameter.grad for parameter in stem.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)

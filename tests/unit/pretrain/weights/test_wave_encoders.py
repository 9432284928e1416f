"""Encoders by wavelength: files, and images of any bands."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.small_encoder import BANDS, SIZE, small_description

import spectralforge
from finetune.encoders.model_file import InputDescription, TaskModel
from pretrain.models.initialize import initialize
from pretrain.models.registry import build_encoder
from pretrain.weights.band_input import statistics
from pretrain.weights.description import WeightsError
from pretrain.weights.files import load_encoder, save_encoder
from pretrain.weights.pretrained import PretrainedEncoder


@pytest.fixture(scope="module")
def wave():
    network = build_encoder("spec_vit_tiny", SIZE, 4, stem={"name": "wave"})
    initialize(network, "small", 1)
    return PretrainedEncoder(network, small_description(config={"model": {"stem": {"name": "wave"}}}))


def _tiles(bands: int = BANDS) -> np.ndarray:
    values = np.random.default_rng(0).integers(500, 3000, (2, 1, SIZE, SIZE)) + 5 * np.arange(bands)[:, None, None]
    return values.astype(np.int16)


def test_own_bands_have_the_same_features_however_they_are_named(wave):
    tiles, order = _tiles(), np.random.default_rng(1).permutation(BANDS)
    features, known = wave.encode(tiles), wave.description
    torch.testing.assert_close(wave.encode(tiles, known.wavelength_nm, known.fwhm_nm), features)
    centers, widths = np.array(known.wavelength_nm)[order], np.array(known.fwhm_nm)[order]
    torch.testing.assert_close(wave.encode(tiles[:, order], centers, widths), features, rtol=1e-4, atol=1e-5)


def test_other_bands_are_taken_with_statistics_between_those_of_the_own(wave):
    centers = (np.array(wave.wavelength_nm[:-1]) + np.array(wave.wavelength_nm[1:])) / 2
    between = (_tiles()[:, :-1].astype(np.float32) + _tiles()[:, 1:]) / 2
    features = wave.encode(between, centers, [6.0] * (BANDS - 1))
    assert (features - wave.encode(_tiles())).norm() < 0.2 * features.norm()
    assert wave.features(between[:, ::2], centers[::2]).shape == (2, 192, 2, 2)
    layer = wave.get_intermediate_layers(between, wavelengths_nm=centers, norm=True, reshape=True)[0]
    torch.testing.assert_close(layer, wave.features(between, centers))


def test_bands_outside_of_the_trained_ranges_give_a_warning(wave):
    outside = "1 of 3 bands, from 2200 to 2200 nm, are outside of what this encoder was trained on, 400 to 914"
    with pytest.warns(UserWarning, match=outside):
        wave.encode(_tiles(3), [450.0, 500.0, 2200.0], [10.0] * 3)


def test_a_width_is_needed_for_a_single_band(wave):
    with pytest.raises(WeightsError, match="fwhm_nm: needed for a single band"):
        wave.encode(_tiles(1), [500.0])


def test_an_export_opens_again_with_equal_features_and_its_card_names_the_ranges(wave, tmp_path):
    path = wave.save(tmp_path / "encoder.safetensors")
    other = spectralforge.load_encoder(path)
    assert torch.equal(other.encode(_tiles()), wave.encode(_tiles()))
    card = path.with_suffix(".md").read_text()
    assert "Takes bands of any sensor, by centers and widths; trained on 400 to 914 nm." in card


def test_weights_without_a_description_are_recognized(wave, tmp_path):
    torch.save(wave.encoder.state_dict(), tmp_path / "weights.pth")
    network, description = load_encoder(tmp_path / "weights.pth")
    assert description.by_wavelength
    assert all(torch.equal(network.state_dict()[name], value) for name, value in wave.encoder.state_dict().items())


def test_a_task_model_takes_the_bands_of_its_tiles_or_those_they_are_resampled_to(wave):
    known, native = wave.description, [[450.0, 650.0, 850.0], [30.0] * 3]
    inputs = InputDescription("own", *native, [1000.0] * 3, [300.0] * 3, None)
    assert TaskModel(wave.encoder, known, inputs).bands == tuple(native)
    response = np.full((BANDS, 3), 1 / 3).tolist()
    resampled = InputDescription("own", *native, known.mu, known.sigma, None, response)
    model = TaskModel(wave.encoder, known, resampled)
    assert model.bands == (known.wavelength_nm, known.fwhm_nm)
    assert model.scores(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.int16)).shape == (1, 192, 2, 2)


def test_an_encoder_of_several_datasets_has_the_statistics_of_each_sensor():
    first = {"name": "a", "sensor": "a", "wavelength_nm": [400.0, 500.0, 600.0], "fwhm_nm": [10.0] * 3}
    second = {"name": "b", "sensor": "b", "wavelength_nm": [550.0, 650.0], "fwhm_nm": [10.0] * 2}
    sources = [first | {"mu": [1.0, 2.0, 3.0], "sigma": [1.0] * 3}, second | {"mu": [10.0, 20.0], "sigma": [3.0] * 2}]
    described = small_description(sources=sources)
    assert described.ranges_nm == [(400.0, 650.0)]
    shares = [{"shards": "a", "weight": 2.0, "name": None}, {"shards": "x", "weight": 1.0, "name": "b"}]
    assert small_description(config={"data": {"sources": shares}}).pretrained_on == "a 66.7 %, b 33.3 %"
    for centers, expected in (
        ([400.0, 500.0, 600.0], [1.0, 2.0, 3.0]),  # the first one's own bands
        ([650.0, 550.0], [20.0, 10.0]),  # the second one's, in another order
        ([450.0, 575.0], [1.5, (2.75 + 12.5) / 2]),  # of the one that covers a band, and the mean of both
        ([700.0], [(3.0 + 20.0) / 2]),  # beyond both
    ):
        mu, _ = statistics(described.tables, np.array(centers), np.full(len(centers), 10.0))
        np.testing.assert_allclose(mu, expected)


def test_the_sources_of_a_run_are_read_from_the_header_of_a_file(wave, tmp_path):
    table = {"name": "a", "sensor": "enmap", "wavelength_nm": [400.0], "fwhm_nm": [9.0], "mu": [1.0], "sigma": [2.0]}
    described = replace(wave.description, sources=[table, table | {"name": "b"}])
    save_encoder(tmp_path / "encoder.safetensors", wave.encoder.state_dict(), described)
    assert load_encoder(tmp_path / "encoder.safetensors")[1].sources == described.sources
    save_encoder(tmp_path / "bad.safetensors", wave.encoder.state_dict(), replace(described, sources=[{"mu": 3}]))
    with pytest.raises(WeightsError, match="its description is damaged"):
        load_encoder(tmp_path / "bad.safetensors")

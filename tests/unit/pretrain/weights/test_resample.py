"""`resample`: cubes of any sensor for an encoder, missing where nothing was measured."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_encoder import BANDS, SIZE, small_description

import spectralforge
from pretrain.weights.description import WeightsError
from shards.sensors.sensor import NODATA, get_sensor

NM = np.arange(395.0, 925.0, 5.0)


def _line(nm: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Spectra that rise with the wavelength, int16."""
    return np.broadcast_to(nm[:, None, None] * 2, (len(nm), size, size)).astype(np.int16)


def test_a_cube_of_another_sensor_can_be_encoded(encoder):
    found = spectralforge.resample(_line(NM), NM, to=encoder)
    assert (found.shape, found.dtype, isinstance(found, np.ndarray)) == ((BANDS, SIZE, SIZE), np.float32, True)
    np.testing.assert_allclose(found[:, 0, 0], np.array(encoder.wavelength_nm) * 2, rtol=1e-3)
    torch.testing.assert_close(
        encoder.encode(found), encoder.encode(_line(np.array(encoder.wavelength_nm))), rtol=0.02, atol=0.02
    )


def test_the_encoder_s_own_bands_stay_as_they_are(encoder):
    tiles = np.random.default_rng(0).integers(0, 3000, (3, BANDS, SIZE, SIZE)).astype(np.int16)
    tiles[0, :, 1, 1], tiles[1, 7, 2, 2] = NODATA, NODATA
    found = spectralforge.resample(tiles, encoder.wavelength_nm, encoder.description.fwhm_nm, to=encoder)
    np.testing.assert_array_equal(np.where(np.isnan(found), NODATA, found), tiles)
    assert torch.equal(encoder.encode(found), encoder.encode(tiles))


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.booleans(), st.booleans(), st.booleans())
def test_order_unit_kind_and_rank_change_nothing(random, micrometers, tensor, batch):
    target = small_description()
    cube = np.random.default_rng(1).integers(0, 3000, (len(NM), 2, 2)).astype(np.int16)
    wanted = spectralforge.resample(cube, NM, np.full(len(NM), 6.0), to=target)
    order = random.sample(range(len(NM)), len(NM))
    mixed = cube[order][None] if batch else cube[order]
    unit = 1000 if micrometers else 1
    found = spectralforge.resample(
        torch.from_numpy(mixed) if tensor else mixed, NM[order] / unit, [6.0 / unit] * len(NM), to=target
    )
    assert isinstance(found, torch.Tensor) == tensor
    np.testing.assert_allclose(np.asarray(found).reshape(wanted.shape), wanted, rtol=1e-5)
    assert found.ndim == mixed.ndim


def test_missing_pixels_stay_missing_and_a_missing_band_is_made_of_those_beside_it(encoder):
    cube = _line(NM).copy()
    cube[:, 0, 0] = NODATA
    cube[40] = NODATA  # a bad band, everywhere
    found = spectralforge.resample(cube, NM, np.full(len(NM), 1.0), to=encoder)
    assert np.isnan(found[:, 0, 0]).all()
    lost = np.isnan(found[:, 1, 1])
    assert 1 <= lost.sum() <= 2
    np.testing.assert_allclose(found[~lost, 1, 1], np.array(encoder.wavelength_nm)[~lost] * 2, rtol=0.01)
    masked = np.ma.masked_equal(cube, NODATA)
    np.testing.assert_array_equal(spectralforge.resample(masked, NM, np.full(len(NM), 1.0), to=encoder), found)
    assert encoder.encode(found).isfinite().all()


def test_bands_that_are_not_covered_are_missing(encoder):
    part = NM[NM < 700]
    found = spectralforge.resample(_line(part), part, to=encoder)
    centers = np.array(encoder.wavelength_nm)
    assert np.isnan(found[centers > 705]).all() and not np.isnan(found[centers < 690]).any()
    holes = NM[(NM < 500) | (NM > 600)]
    found = spectralforge.resample(_line(holes), holes, to=encoder)
    assert np.isnan(found[(centers > 505) & (centers < 595)]).all()
    with pytest.raises(WeightsError, match=r"bands from 395 to 495 nm cover \d+ of 80 bands .* too few"):
        spectralforge.resample(_line(NM[:21]), NM[:21], to=encoder)


def test_reflectance_becomes_digital_numbers(encoder):
    found = spectralforge.resample(_line(NM) / 1e4, NM, to=encoder)
    np.testing.assert_allclose(found, spectralforge.resample(_line(NM), NM, to=encoder), rtol=1e-5)


def test_gradients_pass(encoder):
    cube = torch.from_numpy(_line(NM)).float().requires_grad_()
    spectralforge.resample(cube, NM, to=encoder).sum().backward()
    assert cube.grad is not None and cube.grad.isfinite().all() and cube.grad.sum() > 0


def test_a_registered_sensor_is_a_target_too():
    enmap = get_sensor("enmap")
    found = spectralforge.resample(_line(NM), NM, to=enmap)
    assert found.shape == (202, SIZE, SIZE)


@pytest.mark.parametrize(
    ("cube", "nm", "widths", "says"),
    [
        (_line(NM), NM[:-1], None, "105 wavelengths were given"),
        (_line(NM), np.where(NM == 500, np.nan, NM), None, "nan for band 21"),
        (_line(NM), np.where(NM == 500, 495, NM), None, "are both at 495 nm"),
        (_line(NM), NM, [5.0], "1 widths for 106 wavelengths"),
        (_line(NM), NM, [-5.0] * len(NM), "fwhm_nm: -5 for band 0"),
        (_line(NM).transpose(1, 2, 0), NM, None, "numpy.moveaxis"),
        (_line(NM)[0], NM, None, "give .B, bands, height, width"),
        (np.where(_line(NM) == 1000, -9999, _line(NM)), NM, None, "the value -9999"),
        (_line(NM)[:1], NM[:1], None, "fwhm_nm: needed for a single band"),
        ("cube", NM, None, "type <U"),
    ],
)
def test_what_does_not_go_together_is_one_line(encoder, cube, nm, widths, says):
    with pytest.raises(WeightsError, match=says) as raised:
        spectralforge.resample(cube, nm, widths, to=encoder)
    assert "\n" not in str(raised.value)


def test_a_target_without_bands_is_one_line(encoder):
    for target in (small_description(wavelength_nm=[], fwhm_nm=[], bands=80), 5, None):
        with pytest.raises(WeightsError, match="'to' doesn't say which bands"):
            spectralforge.resample(_line(NM), NM, to=target)

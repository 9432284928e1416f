"""The border of the Python API: images as people have them are read right, or refused in one line."""

import numpy as np
import pytest
import torch
from support.small_encoder import BANDS, SIZE, small_description, small_encoder

from pretrain.weights.description import WeightsError
from pretrain.weights.pretrained import PretrainedEncoder
from shards.sensors.sensor import NODATA


def _tiles(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(-50, 3000, (count, BANDS, SIZE, SIZE), dtype=np.int16)


def _missing() -> tuple[np.ndarray, np.ndarray]:
    """Tiles with a whole pixel and two single values missing, and where."""
    where = np.zeros((2, BANDS, SIZE, SIZE), bool)
    where[0, :, 2:4, 1], where[1, 5, 0, 0], where[1, 6, 0, 0] = True, True, True
    return np.where(where, np.int16(NODATA), _tiles()), where


FORMS = {
    "big-endian": lambda x: x.astype(">i2"),
    "big-endian floats": lambda x: x.astype(">f8"),
    "flipped": lambda x: x[:, :, ::-1][:, :, ::-1],
    "not contiguous": lambda x: np.asfortranarray(x),
    "int8 steps": lambda x: np.repeat(x, 2, axis=3)[..., ::2],
    "int32": lambda x: x.astype(np.int32),
    "int64": lambda x: x.astype(np.int64),
    "float32": lambda x: x.astype(np.float32),
    "float64": lambda x: x.astype(np.float64),
    "long double": lambda x: x.astype(np.longdouble),
    "a list": lambda x: x.tolist(),
    "a list of arrays": lambda x: list(x),
    "a tuple of tensors": lambda x: tuple(torch.from_numpy(x)),
    "a tensor": lambda x: torch.from_numpy(x),
    "a tensor with gradient": lambda x: torch.from_numpy(x).float().requires_grad_(),
    "a masked array without a mask": lambda x: np.ma.asarray(x),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_any_form_of_the_same_images_gives_the_same_features(encoder, form):
    assert torch.equal(encoder.encode(form(_tiles())), encoder.encode(_tiles()))


@pytest.mark.filterwarnings("error")
def test_unsigned_read_only_and_foreign_arrays_are_read(encoder):
    tiles = np.abs(_tiles())
    wanted = encoder.encode(tiles)
    for dtype in (np.uint16, np.uint32, np.uint64):
        assert torch.equal(encoder.encode(tiles.astype(dtype)), wanted)
        assert torch.equal(encoder.encode(torch.from_numpy(tiles.astype(dtype))), wanted)
    tiles.flags.writeable = False
    assert torch.equal(encoder.encode(tiles), wanted)

    class Foreign:  # as xarray's are
        def __array__(self, dtype=None, copy=None):
            return np.asarray(tiles, dtype)

    assert torch.equal(encoder.encode(Foreign()), wanted)
    halves = (tiles // 8 * 8).astype(np.float16)
    assert torch.equal(encoder.encode(halves), encoder.encode(halves.astype(np.int16)))
    bright = np.full((1, BANDS, SIZE, SIZE), 1000, np.uint16)
    bright[0, 3] = 40_000  # beyond int16
    assert torch.equal(encoder.encode(bright), encoder.encode(bright.astype(np.float64)))


MISSING = {
    "NaN": lambda x, where: np.where(where, np.nan, x),
    "infinities": lambda x, where: np.where(where, -np.inf, x.astype(np.float32)),
    "a masked array": lambda x, where: np.ma.masked_array(x, where),
    "a masked array of -9999": lambda x, where: np.ma.masked_equal(np.where(where, np.int16(-9999), x), -9999),
    "a masked array of 16 bits": lambda x, where: np.ma.masked_array(np.abs(x.astype(int)).astype(np.uint16), where),
    "masked floats": lambda x, where: np.ma.masked_array(x.astype(">f4"), where),
    "a list of masked arrays": lambda x, where: [np.ma.masked_array(*one) for one in zip(x, where, strict=True)],
    "float64 of the nodata value": lambda x, where: x.astype(np.float64),
    "a tensor with NaN": lambda x, where: torch.from_numpy(np.where(where, np.nan, x)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", MISSING.values(), ids=MISSING.keys())
def test_missing_is_missing_however_it_is_said(encoder, form):
    tiles, where = _missing()
    if form is MISSING["a masked array of 16 bits"]:
        tiles = np.where(where, np.int16(NODATA), np.abs(tiles))
    found = encoder.encode(form(tiles, where))
    assert torch.equal(found, encoder.encode(tiles))
    assert not torch.equal(found, encoder.encode(_tiles()))


def test_images_without_any_value_are_missing_throughout(encoder):
    nothing = np.full((1, BANDS, SIZE, SIZE), NODATA, np.int16)
    assert torch.equal(encoder.encode(np.where(True, np.nan, nothing)), encoder.encode(nothing))


@pytest.mark.parametrize("batch_size", [1, 32])
def test_reflectance_is_scaled_to_digital_numbers(encoder, batch_size):
    tiles, where = _missing()
    tiles[0] = 10_000  # a batch of whole numbers alone: what all images are decides
    tiles[where] = NODATA
    reflectance = np.where(where, np.nan, tiles / 1e4)
    found = encoder.encode(reflectance, batch_size=batch_size)
    torch.testing.assert_close(found, encoder.encode(tiles))
    torch.testing.assert_close(encoder.encode(reflectance.astype(np.float32)), found, rtol=1e-4, atol=1e-5)


def _with(value: float, dtype: str, where: object = np.s_[:, :, 0, 0]) -> np.ndarray:
    tiles = _tiles().astype(dtype)
    tiles[where] = value
    return tiles


REFUSED = {
    "the usual mark": (lambda: _with(-9999, "i2"), "the value -9999 in all bands"),
    "the usual mark in a band": (lambda: _with(-9999, "f4", np.s_[0, 3, 0, 0]), "the value -9999 in some bands"),
    "the mark of unsigned": (lambda: _with(65535, "u2", np.s_[0, :, 1]), "masked_equal(images, 65535)"),
    "another mark": (lambda: _with(-999, "i2"), "the value -999 in all bands"),
    "the smallest float": (lambda: _with(np.finfo("f4").min, "f4"), "masked array"),
    "the mark in reflectance": (lambda: _with(-9999, "f8") / 1e4, "the value -0.9999 in all bands"),
    "the mark in a band's reflectance": (lambda: _with(-9999, "f4", np.s_[0, 3, 0, 0]) / 1e4, "the value -0.9999"),
    "another mark in reflectance": (lambda: np.where(_tiles() < 0, -1.0, _with(-1e4, "f8") / 1e4), "the value -1 in"),
    "a huge value": (lambda: _with(1e20, "f8", np.s_[0, 0, 0, 0]), "masked_values(images, 1e+20)"),
    "percent": (lambda: _tiles() / 100.0, "multiply percent by 100"),
    "a normalized image": (lambda: (_tiles() - 1500) / 700.0, "undo a normalization"),
    "booleans": (lambda: _tiles() > 0, "type bool"),
    "complex numbers": (lambda: _tiles().astype(complex), "type complex128"),
    "text": (lambda: _tiles().astype(str), "type <U"),
    "objects": (lambda: _tiles().astype(object), "type object"),
    "nothing": (lambda: None, "type object"),
    "a complex tensor": (lambda: torch.zeros(1, BANDS, SIZE, SIZE, dtype=torch.complex64), "type torch.complex64"),
    "a sparse tensor": (lambda: torch.from_numpy(_tiles()).to_sparse(), "give digital numbers"),
    "ragged lists": (lambda: [[1, 2], [3]], "not an array of numbers"),
    "tensors of two sizes": (lambda: [torch.zeros(1), torch.zeros(2)], "not an array of numbers"),
    "no list": (lambda: [], "shape (0,)"),
    "a plane": (lambda: _tiles()[0, 0], "give (B, bands, height, width)"),
    "a scalar": (lambda: 5, "give (B, bands, height, width)"),
    "bands last": (lambda: _tiles().transpose(0, 2, 3, 1), "numpy.moveaxis(images, -1, -3)"),
    "one with bands last": (lambda: torch.from_numpy(_tiles())[0].movedim(0, -1), "images.movedim(-1, -3)"),
    "no pixels": (lambda: _tiles()[:, :, :0], "images of 0 x 8 px"),
}


@pytest.mark.parametrize(("images", "says"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("call", ["encode", "features", "__call__", "get_intermediate_layers"])
def test_what_can_not_be_right_is_one_line(encoder, images, says, call):
    with pytest.raises(WeightsError) as raised:
        getattr(encoder, call)(images())
    assert says in str(raised.value) and "\n" not in str(raised.value)


def test_the_advice_of_an_error_works(encoder):
    tiles, where = _missing()
    marked = np.where(where, np.int16(-9999), tiles)
    with pytest.raises(WeightsError, match=r"numpy\.ma\.masked_equal\(images, -9999\)"):
        encoder.encode(marked)
    assert torch.equal(encoder.encode(np.ma.masked_equal(marked, -9999)), encoder.encode(tiles))
    last = _tiles().transpose(0, 2, 3, 1)
    assert torch.equal(encoder.encode(np.moveaxis(last, -1, -3)), encoder.encode(_tiles()))
    torch.testing.assert_close(encoder.encode(_tiles() / 100.0 * 100), encoder.encode(_tiles()))
    for dtype in (np.float32, np.float64):
        divided = (tiles / 1e4).astype(dtype)  # with what marks missing pixels
        with pytest.raises(WeightsError, match=r"masked_values\(images, -3\.2768\)"):
            encoder.encode(divided)
        found = encoder.encode(np.ma.masked_values(divided, -3.2768))
        torch.testing.assert_close(found, encoder.encode(tiles), rtol=1e-4, atol=1e-5)


def test_values_of_real_tiles_pass(encoder):
    """Negative, zero, saturated and missing ones, as L2A products have them."""
    tiles = _tiles()
    tiles[0, :, 0, 0], tiles[0, ::7, 1, 0], tiles[0, 3, 1, 1], tiles[1, 5, 2, 2] = 0, 32767, NODATA, -32767
    assert encoder.encode(tiles).isfinite().all()


@pytest.mark.parametrize("size", [0, -1, 2.5, "2", None, True])
def test_a_batch_size_is_a_whole_number_above_0(encoder, size):
    with pytest.raises(WeightsError, match="batch_size"):
        encoder.encode(_tiles(), batch_size=size)


def test_no_images_have_no_features(encoder):
    none = np.zeros((0, BANDS, SIZE, 2 * SIZE), np.int16)
    assert encoder.encode(none).shape == (0, 192)
    assert encoder.features(none).shape == (0, 192, 2, 4)
    assert encoder(none).shape == (0, 192)
    with pytest.raises(WeightsError, match="empty; give at least one"):
        encoder.get_intermediate_layers(none)


def test_wavelengths_come_in_any_unit_order_and_form(encoder):
    tiles, nm = _tiles(), np.array(encoder.wavelength_nm)
    wanted, order = encoder.encode(tiles), np.random.default_rng(1).permutation(BANDS)
    for given in (nm[order] / 1000, torch.from_numpy(nm[order]), (nm[order] / 1000).astype(np.float32).tolist()):
        assert torch.equal(encoder.encode(tiles[:, order], given), wanted)


def _changed(band: int, value: float):
    return lambda nm: np.where(np.arange(BANDS) == band, value, nm)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_changed(57, np.nan), "nan for band 57"),
        (_changed(57, np.inf), "inf for band 57"),
        (_changed(57, -1.0), "-1 for band 57"),
        (_changed(4, 400.25), "bands 0 and 4 .from 0. are both at 400.25 nm"),
        (lambda nm: nm[:-1], "79 wavelengths were given"),
        (lambda nm: nm[None], "shape .1, 80.: give one number per band"),
        (lambda nm: ["blue"] * BANDS, "not a number for each band"),
        (lambda nm: np.ma.masked_less(nm, 401), "nan for band 0"),
        (lambda nm: nm + 500, "spectralforge.resample"),
    ],
)
def test_wavelengths_that_can_not_be_right_are_one_line(encoder, change, says):
    with pytest.raises(WeightsError, match=says) as raised:
        encoder.encode(_tiles(), change(np.array(encoder.wavelength_nm)))
    assert "\n" not in str(raised.value)


def test_bands_closer_than_the_tolerance_are_told_apart():
    centers = [400.0 + 6.5 * band for band in range(BANDS)]
    centers[41] = centers[40] + 0.16  # where two detectors meet
    encoder = PretrainedEncoder(small_encoder(), small_description(wavelength_nm=centers))
    tiles = _tiles()
    assert torch.equal(encoder.encode(tiles, np.array(centers) + 0.2), encoder.encode(tiles))


def test_wavelengths_need_an_encoder_that_knows_its_own(encoder):
    unknown = PretrainedEncoder(small_encoder(), small_description(wavelength_nm=[], fwhm_nm=[], bands=BANDS))
    assert torch.equal(unknown.encode(_tiles()), encoder.encode(_tiles()))
    with pytest.raises(WeightsError, match=f"doesn't say which {BANDS} bands it takes"):
        unknown.encode(_tiles(), encoder.wavelength_nm)


def test_one_band_does_not_stand_for_two():
    centers = [400.0 + 6.5 * band for band in range(BANDS)]
    centers[41] = centers[40] + 0.16
    encoder = PretrainedEncoder(small_encoder(), small_description(wavelength_nm=centers))
    with pytest.raises(WeightsError, match="images of 79 bands: this encoder takes 80; resample"):
        encoder.encode(np.delete(_tiles(), 41, axis=1), np.delete(centers, 41))


def test_gradients_pass_through_missing_pixels_and_reflectance(encoder):
    values = torch.from_numpy(_tiles() / 1e4)
    values[0, 0, 0, 0] = torch.nan
    values.requires_grad_()
    encoder(values).sum().backward()
    assert values.grad is not None and values.grad.isfinite().all()
    assert values.grad[0, 0, 0, 0] == 0 and values.grad[0, 1].abs().sum() > 0

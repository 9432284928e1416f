"""PRISMA L2D products as ASI documents them: descending bands, absent ones, scaled uint16, rows by bands by columns."""

import h5py
import numpy as np
import pytest
from rasterio.windows import Window
from support.products import SMALL, cube_of, make_product

from shards.errors import SourceError, TileError
from shards.sensors.sensor import NODATA
from shards.sources.images import open_image
from tools.sample_ground import flags, reflectance, swath_edge
from tools.sample_products import prisma_bands

FIELDS = "HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields"


@pytest.fixture
def path(tmp_path):
    return make_product("prisma", tmp_path)


def test_the_bands_of_both_detectors_come_without_those_that_do_not_exist(path):
    (vnir, _), (swir, _) = prisma_bands()
    with open_image(path) as image:
        np.testing.assert_allclose(image.wavelength_nm, [*vnir[3:], *swir[:171]], rtol=1e-6)
        assert image.fwhm_nm == (12.0,) * 63 + (11.0,) * 171
        assert image.wavelength_nm[0] > image.wavelength_nm[62] < image.wavelength_nm[63]
        assert (image.date, image.time, image.scene) == ("2022-07-24", "20220724T101530Z", path.stem)


def test_reflectance_is_that_which_was_written_within_half_a_digital_number(path):
    found = cube_of(path)
    with open_image(path) as image:
        wanted = reflectance(SMALL, np.array(image.wavelength_nm), np.array(image.fwhm_nm), *SMALL.pixels)
    wanted[:, swath_edge(SMALL.size)] = np.nan
    known = np.isfinite(found)
    assert known.mean() > 0.3 and not known[:, swath_edge(SMALL.size)].any()
    assert np.abs(found - 10000 * wanted)[known].max() <= 0.51 + 10000 / 65535 / 2
    assert (wanted[~known & np.isfinite(wanted)] < 1e-4).all()  # gaps of water vapor have no measurement


def test_the_place_is_that_of_the_corner_pixels(path):
    with open_image(path) as image:
        assert image.grid.crs == "EPSG:32633" and image.grid.shape == (40, 40)
        assert image.grid.transform == tuple(SMALL.transform)[:6]


def test_a_window_and_some_bands_are_those_of_the_whole(path):
    with open_image(path, ["saturation"]) as image:
        whole, bands = image.read(), [230, 3, 70, 64, 63]
        part = image.read(bands, Window(5, 9, 20, 12))
    np.testing.assert_array_equal(part, whole[[band - 1 for band in bands], 9:21, 5:25])


def test_values_that_the_error_matrix_flags_are_missing_where_asked(path):
    cloud = flags()["cloud"][SMALL.cut]
    assert 0.2 < cloud.mean() < 0.9
    plain, masked = cube_of(path), cube_of(path, "saturation")
    inside = cloud & ~swath_edge(SMALL.size)
    assert np.isfinite(plain[:, inside]).mean() > 0.7 and np.isnan(masked[:, inside]).all()
    np.testing.assert_array_equal(masked[:, ~cloud], plain[:, ~cloud])


def test_a_scale_beyond_one_is_applied_and_what_int16_cannot_hold_is_missing(path):
    with h5py.File(path, "r+") as file:
        file.attrs["L2ScaleVnirMin"], file.attrs["L2ScaleVnirMax"] = -0.5, 6.0
        cube = file[f"{FIELDS}/VNIR_Cube"]
        cube[20, 10, :3] = [1, 32768, 65535]
    with open_image(path) as image:
        found = image.read([8], Window(0, 20, 3, 1))[0, 0]
    np.testing.assert_array_equal(found, [-4999, 27500, NODATA])


def _drop_wavelengths(file):
    file.attrs["List_Cw_Swir"] = np.zeros(173, np.float32)


def _drop_corner(file):
    del file.attrs["Product_LRcorner_easting"]


def _move_corner(file):
    file.attrs["Product_LRcorner_easting"] += 300.0


def _turn(file):
    latitude = file["HDFEOS/SWATHS/PRS_L2D_HCO/Geolocation Fields/Latitude"]
    latitude[...] = latitude[()][::-1]


def _make_level_1(file):
    file.move("HDFEOS/SWATHS/PRS_L2D_HCO", "HDFEOS/SWATHS/PRS_L1_HCO")


def _shorten(file):
    file.attrs["List_Fwhm_Vnir"] = np.ones(65, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop_wavelengths, "List_Cw_Swir: gives no wavelengths"),
        (_drop_corner, "Product_LRcorner_easting can't be read"),
        (_move_corner, "corners are 50 x 40 pixels of 30 m apart, but its cubes have 40 x 40"),
        (_turn, "rows don't run from north to south"),
        (_make_level_1, "PRISMA L1 product holds radiance, not reflectance: order the L2D product"),
        (_shorten, "66 Vnir bands, but 66 centers and 65 widths"),
    ],
)
def test_a_product_that_contradicts_itself_is_one_line(path, change, message):
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(SourceError, match=message) as caught, open_image(path) as image:
        image.grid  # noqa: B018
    assert str(path) in str(caught.value)


def test_a_truncated_file_is_one_line(path):
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(SourceError, match=r"\.he5: truncated or damaged .*: download it again"), open_image(path):
        pass


def test_a_file_with_the_extension_alone_is_no_product(tmp_path):
    path = tmp_path / "other.he5"
    path.write_text("text")
    with pytest.raises(TileError, match="not a readable raster"), open_image(path):
        pass


def test_an_unknown_quality_layer_is_refused_with_those_that_there_are(path):
    with pytest.raises(SourceError, match="no quality layer 'cloud' to mask: it has invalid, negative, saturation"):
        cube_of(path, "cloud")

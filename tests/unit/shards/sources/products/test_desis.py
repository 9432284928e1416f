"""DESIS L2A products as DLR documents them: a zip with gains, offsets and one quality flag a layer."""

import zipfile

import numpy as np
import pytest
import rasterio
from support.products import SMALL, cube_of, make_product

from shards.errors import SourceError
from shards.sensors.sensor import get_sensor
from shards.sources.images import open_image
from tools.sample_ground import flags, reflectance, swath_edge

DESIS = get_sensor("desis")
CLEAR = ~swath_edge(SMALL.size)


@pytest.fixture
def path(tmp_path):
    return make_product("desis", tmp_path)


@pytest.fixture
def folder(path, tmp_path):
    """The product, unpacked."""
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(path) as file:
        file.extractall(folder)
    return folder


def rewrite(folder, old, new):
    metadata = next(folder.glob("*-METADATA.xml"))
    text = metadata.read_text()
    assert old in text
    metadata.write_text(text.replace(old, new))


def test_reflectance_is_that_which_was_written_within_half_a_digital_number(path):
    found = cube_of(path)
    wanted = 10000 * reflectance(SMALL, np.array(DESIS.wavelength_nm), np.array(DESIS.fwhm_nm), *SMALL.pixels)
    np.testing.assert_array_equal(np.isfinite(found), np.broadcast_to(CLEAR, found.shape))
    assert np.nanmax(np.abs(found - wanted)) <= 0.501
    with open_image(path) as image:
        assert image.wavelength_nm == DESIS.wavelength_nm and image.fwhm_nm == DESIS.fwhm_nm
        assert (image.grid.crs, image.grid.transform) == ("EPSG:32633", tuple(SMALL.transform)[:6])
        assert (image.date, image.scene) == ("2022-07-24", path.stem)


def test_a_folder_and_each_of_its_main_files_are_the_same_product(path, folder):
    expected = cube_of(path)
    for name in (folder, next(folder.glob("*-METADATA.xml")), next(folder.glob("*-SPECTRAL_IMAGE.tif"))):
        np.testing.assert_array_equal(cube_of(name), expected)


@pytest.mark.parametrize("layer", ["cloud", "cloud_shadow", "haze"])
def test_flagged_pixels_are_missing_where_asked(path, layer):
    flagged = flags()[layer][SMALL.cut] & CLEAR
    lost = np.isfinite(cube_of(path)) & ~np.isfinite(cube_of(path, layer))
    np.testing.assert_array_equal(lost, np.broadcast_to(flagged, lost.shape))


def test_gain_and_offset_of_the_metadata_are_applied(folder):
    expected = cube_of(folder)
    rewrite(folder, "<gainOfBand>0.0001<", "<gainOfBand>0.0002<")
    rewrite(folder, "<offsetOfBand>0<", "<offsetOfBand>-0.1<")
    np.testing.assert_array_equal(cube_of(folder), 2 * expected - 1000)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<wavelengthCenterOfBand>401.43<", "<wavelengthCenterOfBand>0<", "gives no wavelengths"),
        ("wavelengthWidthOfBand", "width", "no element wavelengthWidthOfBand"),
        ("<bandNumber>1</bandNumber>", "<bandNumber>1</bandNumber><!--", "not the metadata of a DESIS product"),
    ],
)
def test_metadata_that_say_something_else_are_one_line(folder, old, new, message):
    rewrite(folder, old, new)
    with pytest.raises(SourceError, match=message) as caught, open_image(folder):
        pass
    assert "METADATA.xml" in str(caught.value) and "\n" not in str(caught.value)


def test_radiance_is_refused_by_its_level_or_its_gains(folder):
    metadata = next(folder.glob("*-METADATA.xml"))
    text = metadata.read_text()
    metadata.write_text(text.replace("<gainOfBand>0.0001<", "<gainOfBand>0.0007<", 1))
    with (
        pytest.raises(SourceError, match=r"bands differ in gain or offset .*: order the L2A product"),
        open_image(folder),
    ):
        pass
    metadata.write_text(text)
    for path in [*folder.iterdir()]:
        path.rename(path.with_name(path.name.replace("-L2A-", "-L1C-")))
    with pytest.raises(SourceError, match="DESIS L1C product holds radiance, not reflectance"), open_image(folder):
        pass


def test_quality_layers_of_another_product_are_one_line(folder):
    path = next(folder.glob("*-QL_QUALITY-2.tif"))
    with rasterio.open(path) as file:
        profile = file.profile | {"height": 30}
    with rasterio.open(path, "w", **profile):
        pass
    with (
        pytest.raises(SourceError, match=r"QL_QUALITY-2\.tif: the quality layers of another product"),
        open_image(folder),
    ):
        pass

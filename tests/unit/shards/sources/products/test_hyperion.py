"""EO-1 Hyperion L1T products as USGS documents them: one file a band, radiance that is said to be radiance."""

import shutil

import numpy as np
import pytest
import rasterio
from support.products import SMALL, make_product

from shards.console import get_logger
from shards.errors import SourceError, TileError
from shards.sensors.sensor import NODATA, get_sensor
from shards.sources.image import note_once
from shards.sources.images import open_image
from tools.sample_ground import swath_edge

EO1 = get_sensor("eo1")


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    return make_product("eo1", tmp_path_factory.mktemp("eo1"))


@pytest.fixture
def copy(product, tmp_path):
    return shutil.copytree(product, tmp_path / product.name)


def test_the_calibrated_bands_are_read_as_stored(product):
    with open_image(product) as image:
        bands, values = image.select(EO1), image.read()
        assert len(bands) == 198 and image.wavelength_nm == EO1.wavelength_nm
        assert (image.date, image.scene, image.grid.crs) == ("2022-07-24", product.name, "EPSG:32633")
        assert image.grid.transform == tuple(SMALL.transform)[:6]
    with open_image(next(product.glob("*_B040_L1T.TIF"))) as band:
        stored = band.read()[0]
    outside = swath_edge(SMALL.size)
    np.testing.assert_array_equal(values[32], np.where(outside, NODATA, stored))
    assert (values[:, outside] == NODATA).all() and not (values[:, ~outside] == NODATA).any()


def test_a_zip_and_the_metadata_file_are_the_same_product(product, tmp_path):
    archive = shutil.make_archive(str(tmp_path / product.name), "zip", product.parent)
    with open_image(product) as image:
        expected = image.read([5, 150])
    for path in (next(product.glob("*_MTL_L1T.TXT")), archive):
        with open_image(path) as image:
            np.testing.assert_array_equal(image.read([5, 150]), expected)


def test_radiance_is_refused_where_reflectance_is_meant(product):
    with open_image(product) as image, pytest.raises(TileError, match="holds radiance, while enmap means reflectance"):
        image.select(get_sensor("enmap"))


def test_radiance_is_said_in_the_log(product, caplog, monkeypatch):
    note_once.cache_clear()
    monkeypatch.setattr(get_logger("").parent, "propagate", True)
    with open_image(product) as image:
        image.select(EO1)
    assert "radiance x 40 (VNIR) and x 80 (SWIR), not reflectance" in caplog.text


def test_a_missing_band_and_another_scale_are_one_line(copy):
    metadata = next(copy.glob("*_MTL_L1T.TXT"))
    text = metadata.read_text()
    metadata.write_text(text.replace("80.000000", "100.0"))
    with pytest.raises(SourceError, match=r"SCALING_FACTOR_SWIR is 100\.0, expected 80"), open_image(copy):
        pass
    metadata.write_text(text)
    next(copy.glob("*_B090_L1T.TIF")).unlink()
    with pytest.raises(SourceError, match=r"1 of 198 calibrated bands are missing, e\.g\. band 90"), open_image(copy):
        pass


def test_bands_of_other_places_are_one_line(copy, tmp_path):
    other = make_product("eo1", tmp_path / "other", SMALL.__class__(size=40, offset=(10, 20)))
    shutil.copy(next(other.glob("*_B090_L1T.TIF")), next(copy.glob("*_B090_L1T.TIF")))
    with pytest.raises(SourceError, match="its bands have other sizes or places"), open_image(copy):
        pass


def test_values_at_the_end_of_int16_are_saturated_and_missing_where_asked(copy):
    with rasterio.open(next(copy.glob("*_B040_L1T.TIF")), "r+") as file:
        values = file.read(1)
        values[30:34, 20:30] = 32767
        file.write(values, 1)
    with open_image(copy) as image:
        plain = image.read()
        image.mask(("saturation",))
        masked = image.read()
    assert (plain[32, 30:34, 20:30] == 32767).all()
    assert (masked[32, 30:34, 20:30] == NODATA).all()
    assert (masked != plain).sum() == 40

"""ENVI files of other spectrometers: reflectance in floats, bad bands, rotated grids; real ones go through whole."""

import re

import numpy as np
import pytest
from rasterio.transform import Affine
from support.products import SMALL, cube_of, make_product, packed

from shards.__main__ import main
from shards.errors import TileError
from shards.read.reader import ShardReader
from shards.sensors.sensor import NODATA
from shards.sources.images import open_image
from shards.sources.scene_sensor import sensor_of_image
from tools.sample_ground import reflectance, swath_edge, swath_grid, swath_pixels
from tools.sample_rasters import envi_bands

MOST_DN = 0.501


@pytest.fixture
def path(tmp_path):
    return make_product("envi", tmp_path)


def test_reflectance_in_floats_is_rounded_to_digital_numbers(path):
    found = cube_of(path)
    with open_image(path) as image:
        good = np.array(image.good)
        np.testing.assert_allclose(image.wavelength_nm, envi_bands()[0], atol=0.0051)
    wanted = 10000 * reflectance(SMALL, *envi_bands(), *swath_pixels(SMALL))
    assert 300 < good.sum() < 425 and np.isnan(found[~good]).all()
    np.testing.assert_array_equal(np.isfinite(found[good]).all(0), ~swath_edge(SMALL.size))
    assert np.nanmax(np.abs(found - wanted)) <= MOST_DN


def test_a_rotated_grid_places_each_pixel(path):
    row, column = swath_grid(SMALL)
    with open_image(path) as image:
        place = Affine(*image.grid.transform)
    for at in [(0, 0), (0, 39), (39, 0), (20, 7)]:
        right, down = column[at] - SMALL.offset[0] + 0.5, row[at] - SMALL.offset[1] + 0.5
        assert place @ (at[1] + 0.5, at[0] + 0.5) == pytest.approx(SMALL.transform @ (right, down), abs=0.1)


def test_radiance_in_floats_is_refused(path):
    values = np.fromfile(path, "<f4")
    np.where(values > -9999, 40 * values, values).astype("<f4").tofile(path)
    with open_image(path) as image, pytest.raises(TileError, match=r"is not a whole number: .*reflectance"):
        image.read()


@pytest.mark.parametrize("key", ["data units", "units"])
def test_units_of_radiance_in_the_header_are_refused(path, key):
    header = path.with_name(f"{path.name}.hdr")
    header.write_text(f"{header.read_text()}{key} = {{uW / (cm^2 sr nm)}}\n")
    with (
        open_image(path) as image,
        pytest.raises(TileError, match=r"holds radiance \(uW .*while scene means"),
    ):
        image.select(sensor_of_image("scene", image))


def test_values_beyond_int16_are_missing_in_reflectance(path):
    values = np.memmap(path, "<f4", "r+", shape=(40, 425, 40))
    values[20, 30, 30] = 18.5
    values.flush()
    found = cube_of(path)
    assert np.isnan(found[30, 20, 30]) and np.isfinite(found[30, 20, 31])


def pack(source, dest):
    assert main(["pack", str(source), str(dest), "--sensor", str(source), "--workers", "1"]) == 0
    reader = ShardReader(dest)
    tile = np.empty((1, *reader.tile_shape), np.int16)
    reader.read([0], tile)
    return tile[0], reader.manifest, next(iter(packed(dest).values()))


def test_real_aviris_ng_on_a_rotated_grid_goes_through_whole(scenes, tmp_path):
    source = next((scenes / "aviris_ng").glob("ang20150422t163638*.img"))
    tile, manifest, described = pack(source, tmp_path / "shards")
    assert tile.shape == (373, 10, 10) and described["crs"] == "EPSG:32612"
    assert described["transform"][1] != 0 and -125 < described["lon"] < -100 and 30 < described["lat"] < 45
    stored = np.fromfile(source, "<f4").reshape(10, 10, 432)
    with open_image(source) as image:
        kept = np.flatnonzero(image.good)
        np.testing.assert_allclose(manifest.wavelength_nm, np.array(image.wavelength_nm)[kept])
    wanted = 10000 * stored[..., kept].transpose(2, 0, 1).astype(float)
    is_fill = (stored == np.float32(-0.005)).all(-1)  # outside of the swath; the header doesn't declare it
    assert is_fill.sum() == 60 and (tile[:, is_fill] == NODATA).all()
    assert np.abs(tile - wanted)[:, ~is_fill].max() <= MOST_DN


def test_a_real_cut_of_aviris_ng_beyond_its_swath_is_one_line(scenes, tmp_path, capsys):
    source = next((scenes / "aviris_ng").glob("ang20140912t192359*.img"))
    assert main(["pack", str(source), str(tmp_path / "shards"), "--sensor", str(source), "--workers", "1"]) == 2
    assert capsys.readouterr().err.endswith("they contain no tile: none of 1 tiles has a measured pixel\n")


def test_undeclared_fill_is_missing_and_other_negative_values_are_not(path):
    values = np.memmap(path, "<f4", "r+", shape=(40, 425, 40))
    values[20, :, 30] = -0.005
    values[21, :300, 30] = -0.005
    values.flush()
    header = path.with_name(f"{path.name}.hdr")
    declared = re.sub("data ignore value = .*\n", "", header.read_text())
    header.write_text(declared)
    with open_image(path) as image:
        good, found = np.array(image.good), image.read()
    assert (found[:, 20, 30] == NODATA).all()
    assert (found[good & (np.arange(425) < 300), 21, 30] == -50).all()


def test_a_real_cut_of_emit_goes_through_whole(emit, tmp_path):
    source = emit / "emit20250324t221005_jpl_unmix_ex"
    tile, manifest, _ = pack(source, tmp_path / "shards")
    stored = np.fromfile(source, "<f4").reshape(10, 285, 10).transpose(1, 0, 2)
    with open_image(source) as image:
        kept = np.flatnonzero(image.good)
    assert tile.shape == (244, 10, 10) and len(manifest.wavelength_nm) == 244
    assert np.abs(tile - 10000 * stored[kept].astype(float)).max() <= MOST_DN

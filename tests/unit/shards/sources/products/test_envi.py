"""ENVI files of other spectrometers: reflectance in floats, bad bands, rotated grids; real ones go through whole."""

import numpy as np
import pytest
from rasterio.transform import Affine
from support.products import SMALL, cube_of, make_product, packed

from shards.__main__ import main
from shards.errors import TileError
from shards.read.reader import ShardReader
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


@pytest.mark.parametrize(("name", "zone"), [("ang20140912t192359", 13), ("ang20150422t163638", 12)])
def test_real_aviris_ng_on_a_rotated_grid_goes_through_whole(scenes, tmp_path, name, zone):
    source = next((scenes / "aviris_ng").glob(f"{name}*.img"))
    tile, manifest, described = pack(source, tmp_path / "shards")
    assert tile.shape == (373, 10, 10) and described["crs"] == f"EPSG:{32600 + zone}"
    assert described["transform"][1] != 0 and -125 < described["lon"] < -100 and 30 < described["lat"] < 45
    stored = np.fromfile(source, "<f4").reshape(10, 10, 432)
    with open_image(source) as image:
        kept = np.flatnonzero(image.good)
        np.testing.assert_allclose(manifest.wavelength_nm, np.array(image.wavelength_nm)[kept])
    assert np.abs(tile - 10000 * stored[..., kept].transpose(2, 0, 1).astype(float)).max() <= MOST_DN


def test_a_real_cut_of_emit_goes_through_whole(emit, tmp_path):
    source = emit / "emit20250324t221005_jpl_unmix_ex"
    tile, manifest, _ = pack(source, tmp_path / "shards")
    stored = np.fromfile(source, "<f4").reshape(10, 285, 10).transpose(1, 0, 2)
    with open_image(source) as image:
        kept = np.flatnonzero(image.good)
    assert tile.shape == (244, 10, 10) and len(manifest.wavelength_nm) == 244
    assert np.abs(tile - 10000 * stored[kept].astype(float)).max() <= MOST_DN

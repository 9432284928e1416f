"""The bands of a scene as the sensor of a dataset: sorted, without bad ones, or one line that says why not."""

import numpy as np
import pytest
import rasterio
from support.products import make_product
from support.rasters import cube, write
from support.tiles import write_tile

from shards.__main__ import main
from shards.errors import ConfigError
from shards.sensors.sensor import get_sensor
from shards.sources.scene_sensor import find_sensor


def test_bands_are_sorted_and_bad_ones_are_left_out(tmp_path):
    path = make_product("prisma", tmp_path)
    sensor = find_sensor(str(path))
    assert sensor.name == path.stem and not sensor.is_registered
    assert np.all(np.diff(sensor.wavelength_nm) > 0) and len(sensor.product_wavelength_nm) == 234
    assert 150 < sensor.num_bands < 234
    assert not [center for center in sensor.wavelength_nm if 1345 < center < 1400]  # no light, no measurement


def test_widths_are_estimated_where_a_scene_gives_none(tmp_path):
    path = write_tile(tmp_path / "a.tif", cube(4), wavelengths=[700, 400, 500, 520])
    sensor = find_sensor(str(path))
    assert sensor.wavelength_nm == (400, 500, 520, 700) and sensor.fwhm_nm == (100, 20, 20, 180)


def test_names_and_tables_are_what_they_were(tmp_path):
    assert find_sensor("desis") == get_sensor("desis")
    table = tmp_path / "bands.txt"
    table.write_text("wavelength_nm,fwhm_nm\n500,5\n510,5\n")
    assert find_sensor(str(table)).wavelength_nm == (500, 510)
    with pytest.raises(ConfigError, match="unknown sensor 'absent'"):
        find_sensor("absent")


def test_a_scene_without_wavelengths_or_good_bands_is_one_line(tmp_path, capsys):
    path = write(tmp_path / "a.tif", cube(3))
    assert main(["pack", str(path), str(tmp_path / "shards"), "--sensor", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--sensor: {path}: gives no wavelengths: name a band table (CSV) instead" in line
    bad = write_tile(tmp_path / "b.tif", cube(2), wavelengths=[500, 600])
    with rasterio.open(bad, "r+") as file:
        file.update_tags(1, bbl="0")
        file.update_tags(2, bbl="0")
    with pytest.raises(ConfigError, match="all of its bands are bad ones"):
        find_sensor(str(bad))

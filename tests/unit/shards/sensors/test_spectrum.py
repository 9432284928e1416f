"""What follows from band centers: colors, gaps and widths of any sensor, not only of those that see light."""

import numpy as np
import pytest

from shards.sensors.rgb import stretch, stretch_limits
from shards.sensors.sensor import get_sensor
from shards.sensors.spectrum import gaps, rgb_positions, to_nanometers, widths_by_spacing


@pytest.mark.parametrize(
    ("centers", "colors"),
    [
        (np.arange(400, 1000, 5.0), (640, 555, 470)),
        (np.arange(1000, 2500, 10.0), (2250, 1750, 1250)),  # shortwave infrared
        (np.linspace(7500, 12000, 31), (11250, 9750, 8250)),  # thermal
        (np.arange(2490, 990, -10.0), (2240, 1740, 1240)),  # from the long end
        (np.array([700.0, 900.0]), (900, 900, 700)),
        (np.array([550.0]), (550, 550, 550)),
    ],
    ids=["visible", "shortwave", "thermal", "descending", "two bands", "one band"],
)
def test_pictures_show_colors_or_three_bands_over_the_range(centers, colors):
    assert [centers[band] for band in rgb_positions(centers)] == pytest.approx(colors, abs=11)


@pytest.mark.parametrize("name", ["desis", "eo1", "hyperview"])
def test_sensors_without_left_out_bands_have_no_gap(name):
    sensor = get_sensor(name)
    order = np.argsort(sensor.wavelength_nm)
    assert not len(gaps(np.asarray(sensor.wavelength_nm)[order], np.asarray(sensor.fwhm_nm)[order]))


def test_the_gaps_of_water_vapor_are_found():
    enmap = get_sensor("enmap")
    assert gaps(enmap.wavelength_nm, enmap.fwhm_nm).tolist() == [126, 145]


@pytest.mark.parametrize(
    ("centers", "width", "found"),
    [
        ([400.0, 500.0, 600.0, 700.0], 100.0, []),  # wide bands beside each other
        ([400.0, 500.0, 600.0, 700.0], 10.0, []),  # narrow ones, evenly
        ([400.0, 410.0, 420.0, 460.0, 470.0], 10.0, [3]),
        ([400.0, 410.0, 420.0, 460.0, 470.0], 45.0, []),  # bands reach across
        ([400.0, 900.0], 10.0, []),
        ([400.0], 10.0, []),
    ],
)
def test_a_gap_is_wider_than_the_usual_step_and_than_its_bands(centers, width, found):
    assert gaps(centers, [width] * len(centers)).tolist() == found


def test_micrometers_become_nanometers_and_nanometers_stay():
    np.testing.assert_allclose(to_nanometers(np.array([0.4, 2.5])), [400, 2500])
    np.testing.assert_allclose(to_nanometers(np.array([8.0, 14.0])), [8000, 14000])
    np.testing.assert_array_equal(to_nanometers(np.array([400.0, 2500.0])), [400, 2500])


def test_widths_are_the_distance_to_the_nearer_neighbor_in_any_order():
    np.testing.assert_allclose(widths_by_spacing(np.array([440.0, 400.0, 410.0, 430.0])), [10, 10, 10, 10])
    np.testing.assert_allclose(widths_by_spacing(np.array([400.0, 410.0, 460.0])), [10, 10, 50])


@pytest.mark.filterwarnings("error")
def test_one_stretch_for_all_pictures():
    image = np.linspace(0, 1, 300).reshape(10, 10, 3)
    bright = stretch(image)
    assert (bright.min(), bright.max()) == (0, 1)
    assert np.all(np.diff(bright.ravel()) >= 0)
    image[0, 0, 1] = np.nan
    assert (stretch(image, missing=0.35)[0, 0] == 0.35).all()
    assert stretch_limits(np.full((2, 2, 3), np.nan)) == (0, 1)
    assert (stretch(np.full((2, 2, 3), np.nan)) == 1).all()
    assert (stretch(np.full((2, 2, 3), 5.0)) == 0).all()
    np.testing.assert_allclose(stretch(image * 1e4), stretch(image))

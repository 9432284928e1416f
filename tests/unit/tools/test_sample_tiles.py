"""The pixels of the synthetic sample: dates, materials, noise and light as documented."""

import numpy as np
import pytest

from tools.sample_spectra import NM, endmembers
from tools.sample_tiles import Place, SampleOptions, Visit, plan_visits, render, sensor_noise, terrain_light

VEGETATION = (0, 1, 2)
WATER = 5


def band(wavelength_nm: float) -> int:
    return int(np.abs(NM - wavelength_nm).argmin())


@pytest.mark.parametrize("seed", range(3))
def test_a_quarter_has_two_dates_and_a_tenth_a_margin(seed):
    visits = plan_visits(SampleOptions(seed=seed))
    assert sum(len(dates) == 2 for dates in visits) == 10
    assert sum(visit.margin for dates in visits for visit in dates) == 5
    for first, *later in visits:
        assert all(one.scene > first.scene and one.season > first.season for one in later)


def test_materials_absorb_where_they_should():
    mean = endmembers(0.2, np.zeros((6, 3))).mean(1)

    def depth(index: int, center: float, left: float, right: float) -> float:
        shoulders = np.interp(center, [left, right], [mean[index][band(left)], mean[index][band(right)]])
        return float(1 - mean[index][band(center)] / shoulders)

    assert all(depth(index, 1190, 1080, 1270) > 0.02 for index in VEGETATION)  # liquid water
    assert depth(3, 2205, 2130, 2270) > 0.05  # clay
    assert depth(4, 2340, 2260, 2420) > 0.01  # carbonate
    assert (mean[WATER][NM > 900] < 0.01).all()


def test_noise_is_as_documented():
    rng = np.random.default_rng(0)
    noise = sensor_noise(rng, np.full((202, 64, 64), 0.3, dtype=np.float32))
    ratio = 0.3 / noise.std(axis=(1, 2))
    assert 300 < ratio[band(495)] < 400
    assert 150 < ratio[band(2200)] < 200
    dark = sensor_noise(rng, np.zeros((202, 64, 64), dtype=np.float32)).std()
    assert 0.3 * noise.std() < dark < 0.8 * noise.std()


def test_stripes_run_down_the_columns():
    noise = sensor_noise(np.random.default_rng(0), np.full((202, 64, 64), 0.3, dtype=np.float32))
    assert noise.mean(1).std() > 2 * noise.mean(2).std()


def test_slopes_towards_the_sun_are_brighter_and_more_so_when_it_stands_low():
    row = np.mgrid[0:32, 0:32][0].astype(np.float32)
    assert (terrain_light(np.random.default_rng(0), np.zeros_like(row), 0.0) == 1).all()
    summer, autumn = (terrain_light(np.random.default_rng(0), -3.0 * row, season).mean() for season in (0.0, 0.9))
    assert 1 < summer < autumn  # falls to the south, where the sun is


def test_tiles_are_lit_by_their_terrain():
    options = {"parcels": np.zeros((32, 32), int), "classes": np.array([3]), "region": np.zeros((6, 3))}
    traits = np.full((2, 32, 32), 0.5, dtype=np.float32)
    hill = 200 * np.cos(np.mgrid[0:32, 0:32][0] / 32 * np.pi).astype(np.float32)
    flat, lit = (
        render(np.random.default_rng(0), Place(traits=traits, height=height, **options), Visit(1, 0.0, False))[0]
        for height in (0 * hill, hill)
    )
    assert lit[band(1650)].std() > 3 * flat[band(1650)].std()

"""Positions of tiles, and distances between them."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import from_origin

from finetune.data.items import Item
from finetune.data.positions import EARTH_RADIUS_KM, lonlats, nearest_km

DEGREES = st.tuples(st.floats(-180, 180), st.floats(-90, 90))


def _item(name: str, **options: object) -> Item:
    return Item(name, "place", "", "", lambda: np.zeros(0), lambda: np.zeros(0), **options)


def test_positions_are_those_of_the_file_or_of_the_shards_and_may_be_unknown(tmp_path: Path):
    profile = {"driver": "GTiff", "width": 10, "height": 10, "count": 1, "dtype": "int16", "crs": "EPSG:32633"}
    with rasterio.open(tmp_path / "a.tif", "w", transform=from_origin(499850, 150, 30, 30), **profile):
        pass
    (tmp_path / "b.npy").write_bytes(b"nothing")
    items = [_item("a", file=tmp_path / "a.tif"), _item("b", file=tmp_path / "b.npy"), _item("c", lonlat=(3.0, 4.0))]
    found = lonlats([*items, _item("d")], threads=2)
    np.testing.assert_allclose(found, [[15, 0], [np.nan, np.nan], [3, 4], [np.nan, np.nan]], atol=1e-6)


def test_distances_are_along_the_great_circle_to_the_nearest_tile_that_is_known():
    tiles = np.array([[0.0, 0.0], [179.9, 0.0], [0.0, np.nan]])
    others = np.array([[0.0, 1.0], [90.0, 0.0], [-179.9, 0.0], [np.nan, np.nan]])
    degree = np.radians(1) * EARTH_RADIUS_KM
    np.testing.assert_allclose(nearest_km(tiles, others), [degree, 0.2 * degree, np.nan])
    assert np.isnan(nearest_km(tiles, others[3:])).all()


@given(DEGREES, DEGREES)
def test_distances_are_those_of_the_haversine_formula(first, second):
    (lon, lat), (other_lon, other_lat) = np.radians([first, second])
    across = np.cos(lat) * np.cos(other_lat) * np.sin((lon - other_lon) / 2) ** 2
    expected = 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(min(np.sin((lat - other_lat) / 2) ** 2 + across, 1)))
    assert nearest_km(np.array([first]), np.array([second]))[0] == pytest.approx(expected, abs=1e-3)

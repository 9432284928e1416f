"""Tiles as other sensors would see them: right values, packed with the band table beside them."""

from pathlib import Path

import numpy as np
from support.datasets import read_all
from support.tiles import NODATA, write_archive

from finetune.encoders.band_sets import band_set
from shards.format.manifest import read_manifest
from shards.pack.build import pack
from shards.pack.scan import PackConfig
from shards.sensors.sensor import get_sensor
from tools.sample_sensors import main, see

ENMAP = get_sensor("enmap")


def test_the_same_places_are_packed_through_other_bands(tmp_path: Path):
    values = write_archive(tmp_path / "tiles")
    assert main([str(tmp_path / "tiles"), str(tmp_path), "--sensors", "sentinel2", "desis"]) == 0
    for name in ("sentinel2", "desis"):
        pack(tmp_path / name, tmp_path / f"{name}-shards", PackConfig(sensor=str(tmp_path / f"{name}.csv")))
        bands, stored = band_set(name, ENMAP), read_all(tmp_path / f"{name}-shards")
        manifest = read_manifest(tmp_path / f"{name}-shards")
        np.testing.assert_allclose(manifest.wavelength_nm, bands.wavelength_nm, atol=1e-4)
        assert manifest.sensor == name
        assert stored.keys() == values.keys()
        for key, tile in values.items():
            np.testing.assert_array_equal(stored[key], see(tile, bands))


def test_a_band_is_the_weighted_mean_of_those_under_its_response():
    bands = band_set("prisma", ENMAP)
    tile = np.random.default_rng(0).integers(0, 5000, (ENMAP.num_bands, 4, 4)).astype(np.int16)
    exact = np.einsum("nc,chw->nhw", bands.response, tile)
    assert np.abs(see(tile, bands) - exact).max() <= 0.5


def test_a_pixel_that_lacks_a_band_is_missing_where_the_band_counts():
    bands = band_set("sentinel2", ENMAP)
    tile = np.full((ENMAP.num_bands, 2, 2), 1000, np.int16)
    dead = int(np.abs(np.asarray(ENMAP.wavelength_nm) - 560.0).argmin())
    tile[dead, 0, 0] = NODATA
    seen = see(tile, bands)
    lost = bands.response[:, dead] > 0
    assert lost.any() and not lost.all()
    assert (seen[lost, 0, 0] == NODATA).all()
    assert (seen[~lost] == 1000).all() and (seen[:, 1, 1] == 1000).all()

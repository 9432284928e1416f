"""`open_zarr` in dask and xarray: windows over many tiles are read when they are computed, and nothing else is."""

from pathlib import Path

import numpy as np
import pytest
from support.tiles import NODATA, spectra, write_tile

import shards
from shards.files.storage import LocalStorage
from shards.pack.build import pack
from shards.pack.scan import PackConfig
from shards.read.reader import ShardReader

da = pytest.importorskip("dask.array", reason="dask is not installed: pip install dask xarray")
xr = pytest.importorskip("xarray", reason="xarray is not installed: pip install dask xarray")

ROWS, COLUMNS, SIZE = 3, 4, 8


@pytest.fixture(scope="module", params=["compact", '{"id": "bounded_predictor", "max_error": "3"}'])
def cut(request, tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A scene cut into 3 x 4 tiles in shards, and its values as they are stored."""
    folder = tmp_path_factory.mktemp("lazy")
    scene = spectra(5, COLUMNS * SIZE)[:, : ROWS * SIZE]
    write_tile(folder / "scene.tif", scene, nodata=NODATA)
    pack(folder / "scene.tif", folder / "shards", PackConfig(size=SIZE, tiles_per_shard=3, codec=request.param))
    tiles = shards.open_dataset(folder / "shards")
    for row, location in enumerate(tiles.table["location"]):
        y, x = (SIZE * int(part) for part in location.decode().rsplit("-", 2)[1:])
        scene[:, y : y + SIZE, x : x + SIZE] = tiles[row]
    return folder / "shards", scene


@pytest.fixture
def reads(monkeypatch) -> list[tuple[str, int]]:
    """Names of the shards that are read from, with the bytes of each read."""
    made: list[tuple[str, int]] = []
    read_into = LocalStorage.read_into

    def counted(self, name, offset, buffer):
        made.append((name, buffer.nbytes))
        read_into(self, name, offset, buffer)

    monkeypatch.setattr(LocalStorage, "read_into", counted)
    return made


def _mosaic(folder: Path):
    """Return the scene as a dask array (bands, y, x), as docs/shards.md does."""
    tiles = da.from_zarr(shards.open_zarr(folder))
    row_of = {key.decode(): row for row, key in enumerate(shards.open_dataset(folder).table["location"])}
    return da.block([[tiles[row_of[f"scene-{y}-{x}"]] for x in range(COLUMNS)] for y in range(ROWS)])


def test_a_window_over_neighboring_tiles_reads_those_alone(cut, reads):
    folder, scene = cut
    mosaic = _mosaic(folder)
    assert (mosaic.shape, mosaic.dtype) == (scene.shape, np.int16)
    assert reads == []
    window = mosaic[:, 5:11, 6:18]  # 2 x 3 tiles
    assert reads == []
    np.testing.assert_array_equal(window.compute(), scene[:, 5:11, 6:18])
    table = ShardReader(folder).table
    inside = [name.decode() in {f"scene-{y}-{x}" for y in (0, 1) for x in (0, 1, 2)} for name in table["location"]]
    assert sum(size for _, size in reads) == table["length"][inside].sum()
    assert len(reads) == 6


def test_each_band_is_reduced_tile_by_tile(cut, reads):
    folder, scene = cut
    tiles = da.from_zarr(shards.open_zarr(folder))
    valid = da.ma.masked_equal(tiles, NODATA)
    means = valid.mean(axis=(0, 2, 3))
    assert reads == []
    expected = np.ma.masked_equal(scene, NODATA).mean(axis=(1, 2))
    np.testing.assert_allclose(np.ma.getdata(means.compute()), np.ma.getdata(expected), rtol=1e-6)
    assert sum(size for _, size in reads) == ShardReader(folder).table["length"].sum()
    assert len(reads) == ROWS * COLUMNS
    reads.clear()
    tiles[3:5, 100].max().compute()
    assert len(reads) == 2  # a tile is the smallest unit of a read: all of its bands are decoded


def test_an_array_has_names_and_coordinates_in_xarray(cut, reads):
    folder, scene = cut
    array, table = shards.open_zarr(folder), shards.open_dataset(folder).table
    tiles = xr.DataArray(
        da.from_zarr(array),
        dims=array.metadata.dimension_names,
        coords={
            "band": array.attrs["wavelength_nm"],
            "key": ("tile", table["key"].astype(str)),
            "location": ("tile", table["location"].astype(str)),
        },
        attrs={"scale": array.attrs["scale"]},
    )
    assert reads == []
    one = tiles.set_xindex("location").sel(location="scene-1-2").sel(band=660, method="nearest")
    assert reads == []
    band = int(np.abs(np.asarray(array.attrs["wavelength_nm"]) - 660).argmin())
    np.testing.assert_array_equal(one.values, scene[band, 8:16, 16:24])
    assert len(reads) == 1
    reflectance = tiles.where(tiles != array.fill_value) / tiles.scale
    spectrum = reflectance.mean(("tile", "y", "x")).sel(band=slice(500, 600))
    values = np.where(scene == NODATA, np.nan, scene / tiles.scale)
    kept = (np.asarray(tiles.band) >= 500) & (np.asarray(tiles.band) <= 600)
    np.testing.assert_allclose(spectrum.values, np.nanmean(values, axis=(1, 2))[kept], rtol=1e-5)

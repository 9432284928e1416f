"""Several datasets read as one: rows numbered through, smaller tiles padded, substitutes of the same dataset."""

import numpy as np
import pytest
from support.tiles import spectra, write_archive, write_tile

from shards.errors import ShardError
from shards.pack.build import PackConfig, pack
from shards.read.mixture import MixtureReader
from shards.read.quarantine import Quarantine
from shards.read.reader import ShardReader
from shards.sensors.sensor import NODATA

NM = [500.0 + 10 * band for band in range(80)]
SENSOR = "wavelength_nm,fwhm_nm\n" + "".join(f"{nm},12\n" for nm in NM)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two datasets: ten tiles of 8 px and 202 bands, and three of 6 px and 80 bands; and their values by key."""
    folder = tmp_path_factory.mktemp("mixture")
    values = [write_archive(folder / "large", size=8), {}]
    pack(folder / "large", folder / "large-shards", PackConfig(tiles_per_shard=3))
    for number in range(3):
        values[1][f"field-{number}_00000"] = tile = spectra(number, 6, bands=80)
        write_tile(folder / "small" / f"field-{number}.tif", tile, NODATA, NM)
    (folder / "camera.csv").write_text(SENSOR)
    pack(folder / "small", folder / "small-shards", PackConfig(tiles_per_shard=2, sensor=str(folder / "camera.csv")))
    return [folder / "large-shards", folder / "small-shards"], values


@pytest.fixture(params=[1, 3])
def reader(folders, request):
    reader = MixtureReader([ShardReader(folder) for folder in folders[0]], ["large", "small"], request.param)
    yield reader
    reader.close()


def _read(reader, rows, shape=None, quarantine=None):
    out = np.full((len(rows), *(shape or reader.tile_shape)), 7, dtype=np.int16)
    return reader.read(rows, out, quarantine), out


def test_rows_of_all_sources_are_numbered_through(reader):
    assert len(reader) == 13
    assert reader.tile_shape == (202, 8, 8)
    assert [reader.locate(row) for row in (0, 9, 10, 12)] == [(0, 0), (0, 9), (1, 0), (1, 2)]
    assert reader.first_shards == [0, 3]
    assert reader.key(10).startswith("small/")


def test_tiles_lie_in_the_corner_and_the_rest_is_missing(folders, reader):
    rows, out = _read(reader, [12, 0, 11, 5])
    assert rows == [12, 0, 11, 5]
    for row, tile in zip(rows, out, strict=True):
        source, own = reader.locate(row)
        expected = folders[1][source][reader.readers[source].key(own)]
        bands, height, width = expected.shape
        np.testing.assert_array_equal(tile[:bands, :height, :width], expected)
        tile[:bands, :height, :width] = NODATA
        assert (tile == NODATA).all()


def test_tiles_of_one_source_are_read_at_their_own_size(folders, reader):
    _, out = _read(reader, [10, 11], (202, 6, 6))
    np.testing.assert_array_equal(out[0, :80], folders[1][1][reader.readers[1].key(0)])
    assert (out[:, 80:] == NODATA).all()
    with pytest.raises(ValueError, match="does not fit"):
        _read(reader, [0], (202, 6, 6))
    with pytest.raises(ValueError, match="do not fit"):
        reader.read([0], np.empty((1, 202, 8, 8), np.int32))


def test_no_two_sources_share_a_location(reader):
    ids = reader.location_ids(np.arange(13))
    assert set(ids[:10].tolist()).isdisjoint(ids[10:].tolist())
    np.testing.assert_array_equal(ids[:10], reader.readers[0].location_ids(np.arange(10)))


@pytest.mark.parametrize("row", [3, 11])
def test_a_damaged_tile_is_replaced_by_one_of_its_source(folders, tmp_path, row):
    readers = [ShardReader(folder) for folder in folders[0]]
    reader = MixtureReader(readers, ["large", "small"])
    source, own = reader.locate(row)
    readers[source].table = readers[source].table.copy()
    readers[source].table["checksum"][own] ^= 1
    quarantine = Quarantine(np.arange(13), "d", 5, tmp_path, 0, first_rows=reader.first_rows)
    used, _ = _read(reader, [row] * 8, quarantine=quarantine)
    assert row not in used
    assert {reader.locate(one)[0] for one in used} == {source}
    assert quarantine.rows == [row]
    with pytest.raises(ShardError, match="fails its checksum"):
        _read(reader, [row])


def test_copies_of_all_sources_are_made_within_one_quota(folders, tmp_path):
    reader = MixtureReader([ShardReader(folder) for folder in folders[0]], ["large", "small"])
    reader.stage(tmp_path, 10**6)
    quotas = [part._storage.quota_bytes for part in reader.readers]
    assert 0.99e6 < sum(quotas) <= 10**6 and quotas[0] > quotas[1]
    reader.prefetch([3, 1, 4])
    for part, names in zip(
        reader.readers, (["shard-000001.tar"], ["shard-000000.tar", "shard-000001.tar"]), strict=True
    ):
        assert part._storage._needed == frozenset(names)
    reader.close()
    assert reader.counters["staged"] <= 3

"""The shards through zarr's own API and through a stock WebDataset pipeline: the same tiles, no copy."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from support.tiles import NODATA, spectra, write_archive, write_tile

import shards
from shards.config import REPOSITORY
from shards.errors import ShardError
from shards.pack.build import pack
from shards.pack.index import index_tars
from shards.pack.scan import PackConfig
from shards.read.reader import ShardReader
from shards.read.zarr_store import RowPredictorCodec, ShardStore, SpectralPredictorCodec


@pytest.fixture(scope="module", params=["raw", "fast", "compact", "smallest"])
def packed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"zarr-{request.param}")
    values = write_archive(folder / "source")
    pack(folder / "source", folder / "shards", PackConfig(tiles_per_shard=3, codec=request.param))
    return folder / "shards", values


def test_an_array_of_all_tiles_opens_without_a_copy(packed):
    folder, values = packed
    before = sorted(folder.iterdir())
    array, reader = shards.open_zarr(folder), ShardReader(folder)
    assert isinstance(array, zarr.Array)
    assert (array.shape, array.dtype, array.chunks) == ((10, 202, 8, 8), np.int16, (1, 202, 8, 8))
    assert array.fill_value == NODATA
    assert array.metadata.dimension_names == ("tile", "band", "y", "x")
    assert array.attrs["wavelength_nm"] == reader.manifest.wavelength_nm
    for row in range(10):
        np.testing.assert_array_equal(array[row], values[reader.key(row)])
    np.testing.assert_array_equal(array[2:9:3, 43, 1:5], np.stack([values[reader.key(r)][43, 1:5] for r in (2, 5, 8)]))
    np.testing.assert_array_equal(array.oindex[[7, 1], 5], np.stack([values[reader.key(r)][5] for r in (7, 1)]))
    assert sorted(folder.iterdir()) == before


def test_a_slice_reads_its_own_tiles_alone(packed, monkeypatch):
    rows, read = [], ShardReader.read_encoded
    monkeypatch.setattr(ShardReader, "read_encoded", lambda self, row: rows.append(row) or read(self, row))
    _ = shards.open_zarr(packed[0])[3:5, 100]
    assert sorted(rows) == [3, 4]


def test_damage_is_an_error_and_writing_is_refused(packed, tmp_path):
    folder = Path(shutil.copytree(packed[0], tmp_path / "shards"))
    reader = ShardReader(folder)
    with open(folder / "shard-000000.tar", "r+b") as file:
        file.seek(int(reader.table["offset"][0]) + 100)
        file.write(b"\xff\x00")
    with pytest.raises(ShardError, match=r"shard-000000\.tar: tile .* fails its checksum"):
        _ = shards.open_zarr(folder)[0]
    with pytest.raises((ShardError, ValueError)):
        shards.open_zarr(folder)[0] = 1


def test_the_store_lists_what_it_holds(packed):
    import asyncio

    async def names(stream):
        return [name async for name in stream]

    store = ShardStore(ShardReader(packed[0]))
    assert asyncio.run(names(store.list_dir(""))) == ["zarr.json", "c"]
    assert len(asyncio.run(names(store.list()))) == 11
    assert not asyncio.run(store.exists("c/10/0/0/0"))


@pytest.mark.parametrize("codec", [SpectralPredictorCodec(), RowPredictorCodec(blocks=True)])
def test_arrays_are_written_with_a_codec_and_read_by_another_process(tmp_path, codec):
    tiles = np.stack([spectra(seed, 8) for seed in range(3)])
    array = zarr.create_array(
        tmp_path / "tiles.zarr",
        shape=tiles.shape,
        dtype="int16",
        chunks=(1, 202, 8, 8),
        serializer=codec,
        compressors=None,
        fill_value=NODATA,
    )
    array[:] = tiles
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "tiles.zarr", mode="r")[:], tiles)
    code = f"import zarr; print(int(zarr.open_array({str(tmp_path / 'tiles.zarr')!r}, mode='r')[2].astype('i8').sum()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert int(done.stdout) == int(tiles[2].astype(np.int64).sum())


def test_chunks_that_are_no_tiles_are_refused(tmp_path):
    with pytest.raises(ValueError, match="int16 chunks"):
        zarr.create_array(
            tmp_path / "a.zarr", shape=(4, 5), dtype="int16", chunks=(2, 5), serializer=SpectralPredictorCodec()
        )


def test_importing_shards_loads_neither_torch_nor_webdataset_nor_zarr():
    heavy = "{'torch', 'webdataset', 'zarr'}"
    code = f"import sys, shards, shards.read.reader, shards.order.plan; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", ["npy", "npy bands last", "tif"])
def test_indexed_tars_of_others_open_too(tmp_path, kind):
    tiles = {f"{number:07d}": spectra(number, 8) for number in range(3)}
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for key, tile in tiles.items():
            if kind == "tif":
                path = write_tile(tmp_path / "tif" / f"{key}.tif", tile, nodata=NODATA)
            else:
                path = tmp_path / f"{key}.npy"
                np.save(path, tile if kind == "npy" else tile.transpose(1, 2, 0))
            archive.add(path, path.name)
    index_tars(tmp_path, "enmap", workers=1)
    array, reader = shards.open_zarr(tmp_path), ShardReader(tmp_path)
    for row in range(3):
        np.testing.assert_array_equal(array[row], tiles[reader.key(row)])
    assert array.metadata.codecs[0].to_dict()["configuration"]["codec"] == reader.manifest.codec

"""A device undoes the prediction of tiles bit for bit as the CPU does, whatever the tiles and their codecs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support.planes import unpacked
from support.tiles import NODATA, spectra, write_archive, write_tile

from pretrain.data.restore import copy_used, restore_tiles, used_rows
from shards.format.bounded import BoundedPredictor
from shards.format.codec import RawTile, SpectralPredictor
from shards.format.planes import BOUND, COLUMNS, VALUES
from shards.format.row_predictor import RowPredictor
from shards.pack.build import PackConfig, pack
from shards.read.mixture import MixtureReader
from shards.read.quarantine import Quarantine
from shards.read.reader import ShardReader
from shards.sensors.sensor import get_sensor
from shards.sources.geotiff import read_tile
from shards.sources.layouts import find_tiles

CODECS = [
    SpectralPredictor(pack_low=False),
    SpectralPredictor(pack_low=True, blocks=True),
    BoundedPredictor("3"),
    BoundedPredictor("noise/2", blocks=True),
    BoundedPredictor("1000"),
    RawTile(),
    RowPredictor(pack_low=True),  # decoded on the host
]
few = settings(max_examples=40, database=None)
values = st.one_of(
    st.integers(-32768, 32767), st.sampled_from([NODATA, -32767, 32767, 0, 1, -1]), st.integers(-500, 500)
)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """Folders of shards: each codec for tiles of 202 bands; fewer bands; fewer pixels."""
    folder, folders = tmp_path_factory.mktemp("planes"), []
    write_archive(folder / "large")
    blocks = '{"id": "bounded_predictor", "max_error": "3", "blocks": true}'
    for number, codec in enumerate(("compact", "raw", "zstd", blocks, "smallest")):
        folders.append(folder / f"shards-{number}")
        pack(folder / "large", folders[-1], PackConfig(tiles_per_shard=3, codec=codec))
    nm = [500.0 + 10 * band for band in range(80)]
    (folder / "camera.csv").write_text("wavelength_nm,fwhm_nm\n" + "".join(f"{each},12\n" for each in nm))
    for size in (8, 6):
        for number in range(3):
            write_tile(folder / f"{size}" / f"field-{number}.tif", spectra(number, size, 80), NODATA, nm)
        folders.append(folder / f"shards-of-{size}")
        pack(folder / f"{size}", folders[-1], PackConfig(tiles_per_shard=3, sensor=str(folder / "camera.csv")))
    return folders


@few
@given(st.data(), st.tuples(st.integers(1, 8), st.integers(1, 9), st.integers(1, 9)))
def test_any_tiles_of_any_codecs_come_back(data, shape):
    codecs = data.draw(st.lists(st.sampled_from(CODECS), min_size=1, max_size=3))
    tiles = [data.draw(arrays.arrays(np.int16, shape, elements=values)) for _ in codecs]
    planes, bands, decoded = unpacked(codecs, tiles)
    assert torch.equal(restore_tiles(planes, bands), decoded)


def test_noise_and_extremes_come_back():
    noise = np.random.default_rng(0).integers(-32768, 32768, (30, 24, 40)).astype(np.int16)
    extremes = np.where(noise > 0, np.int16(32767), np.int16(-32768))
    for tile in (noise, extremes, np.full_like(noise, NODATA), np.zeros_like(noise)):
        planes, bands, decoded = unpacked(CODECS, [tile] * len(CODECS))
        assert torch.equal(restore_tiles(planes, bands), decoded)


ALL = pytest.mark.nightly


@pytest.mark.parametrize(
    ("folder", "count"),
    [
        ("enmap_potsdam", 3),
        pytest.param("enmap_potsdam", None, marks=ALL),
        pytest.param("spectral_earth_sample", None, marks=ALL),
    ],
)
def test_real_tiles_come_back(folder, count, request):
    path, sensor = request.getfixturevalue(folder), get_sensor("enmap")
    tiles = [read_tile(path / tile.path, sensor).values for tile in find_tiles(path, "enmap")[:count]]
    for codec in (CODECS[1], CODECS[3]):
        planes, bands, decoded = unpacked([codec] * len(tiles), tiles)
        assert torch.equal(restore_tiles(planes, bands), decoded)


def test_the_used_bytes_suffice(mixture):
    reader = MixtureReader([ShardReader(folder) for folder in mixture], list("abcdefg"))
    shape = (len(reader), *reader.tile_shape)
    planes, bands = np.empty(shape, np.int16), np.zeros((*shape[:2], COLUMNS), np.int32)
    reader.read_planes(range(len(reader)), planes, bands)
    copies = torch.full(shape, 0x5A5A, dtype=torch.int16)
    copy_used(torch.from_numpy(planes), bands, copies)
    expected = restore_tiles(torch.from_numpy(planes), torch.from_numpy(bands))
    assert torch.equal(restore_tiles(copies, torch.from_numpy(bands)), expected)
    unused = (404 - used_rows(bands)).sum() * 64 // 2
    assert (copies == 0x5A5A).sum() >= unused > 0
    reader.close()


def test_planes_of_smooth_tiles_are_smaller_than_their_values():
    band, row, column = np.mgrid[0:202, 0:24, 0:24]
    tile = (2000 + 10 * band + 40 * row + column).astype(np.int16)
    _, bands, _ = unpacked([SpectralPredictor(True), RawTile()], [tile, tile])
    assert used_rows(bands.numpy()).tolist() == [203, 404]  # the first band has high bytes


def _compare(reader: MixtureReader | ShardReader, rows: np.ndarray, quarantines=(None, None)) -> None:
    shape = (len(rows), *reader.tile_shape)
    expected, planes = np.empty(shape, np.int16), np.full(shape, 7, np.int16)
    bands = np.zeros((*shape[:2], COLUMNS), np.int32)
    assert reader.read(rows, expected, quarantines[0]) == reader.read_planes(rows, planes, bands, quarantines[1])
    restored = restore_tiles(torch.from_numpy(planes), torch.from_numpy(bands))
    np.testing.assert_array_equal(restored.numpy(), expected)


def test_tiles_predicted_from_the_row_above_are_decoded_on_the_host(mixture):
    reader = ShardReader(mixture[4])
    planes, bands = np.empty((1, *reader.tile_shape), np.int16), np.zeros((1, 202, COLUMNS), np.int32)
    reader.read_planes([0], planes, bands)
    assert (bands[..., BOUND] == VALUES).all()
    expected = np.empty_like(planes)
    reader.read([0], expected)
    np.testing.assert_array_equal(planes, expected)
    reader.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_sources_of_other_codecs_bands_and_sizes_are_restored_in_one_batch(mixture, threads):
    reader = MixtureReader([ShardReader(folder) for folder in mixture], list("abcdefg"), threads)
    _compare(reader, np.random.default_rng(0).permutation(len(reader)))
    reader.close()


def test_a_damaged_tile_is_replaced_by_the_same_one(mixture, tmp_path):
    for number in (0, 3):
        folder = Path(shutil.copytree(mixture[number], tmp_path / f"shards-{number}"))
        reader = ShardReader(folder, threads=2)
        with open(folder / reader.manifest.shards[0].name, "r+b") as file:
            file.seek(int(reader.table["offset"][1]) + 50)
            file.write(b"\xff\x00\xff")
        quarantines = []
        for name in ("host", "device"):
            (tmp_path / f"{name}-{number}").mkdir()
            quarantines.append(Quarantine(np.arange(10), "d", 5, tmp_path / f"{name}-{number}", 0))
        _compare(reader, np.arange(10), quarantines)
        assert [quarantine.rows for quarantine in quarantines] == [[1], [1]]
        reader.close()

"""`pack`: the tar that comes out, the same bytes after anything, and what is refused."""

import os
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from support.commands import error_lines
from support.datasets import assert_reads, keys_of, stamps
from support.tiles import ARCHIVE, NODATA, folder_bytes, spectra, write_tile

from shards.__main__ import main
from shards.format.manifest import MANIFEST, ShardIndex, read_json, read_manifest
from shards.pack.build import pack
from shards.pack.listing import ListedTile, cut_shards
from shards.pack.scan import PackConfig
from shards.read.reader import ShardReader
from shards.sensors.sensor import get_sensor
from shards.sources.geotiff import read_tile
from shards.sources.layouts import find_tiles
from shards.sources.tile_names import SourceTile
from shards.webdataset import decoder

CONFIG = PackConfig(tiles_per_shard=3)


def _members(dest):
    names = []
    for path in sorted(dest.glob("*.tar")):
        with tarfile.open(path) as tar:
            names.append([member.name for member in tar.getmembers()])
    return names


def test_each_sample_is_a_tile_and_its_json_side_by_side_and_nothing_else(packed, archive):
    keys = []
    for names in _members(packed):
        assert [name.split(".")[0] for name in names[::2]] == [name.split(".")[0] for name in names[1::2]]
        assert {name.split(".", 1)[1] for name in names[::2]} == {"tile"}
        assert {name.split(".", 1)[1] for name in names[1::2]} == {"json"}
        keys += [name.removesuffix(".tile") for name in names[::2]]
    assert sorted(keys) == sorted(archive[1])
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys)


def test_members_carry_no_time_and_no_owner(packed):
    for path in packed.glob("*.tar"):
        with tarfile.open(path) as tar:
            assert {(member.mtime, member.uid, member.gid, member.uname) for member in tar} == {(0, 0, 0, "")}


def test_a_stock_webdataset_pipeline_yields_exactly_the_tiles(packed, archive, monkeypatch):
    import webdataset

    for name in ("WORLD_SIZE", "RANK", "WORKER", "NUM_WORKERS"):
        monkeypatch.delenv(name, raising=False)
    urls = [str(path) for path in sorted(packed.glob("*.tar"))]
    dataset = webdataset.WebDataset(urls, shardshuffle=False).decode(decoder(read_manifest(packed)))
    samples = {sample["__key__"]: sample for sample in dataset}
    assert samples.keys() == archive[1].keys()
    for key, sample in samples.items():
        np.testing.assert_array_equal(sample["tile"], archive[1][key])
        location, timestamp = key.split("_")
        description = sample["json"]
        assert (description["location"], description["timestamp"]) == (location, timestamp)
        assert (description["shape"], description["dtype"], description["sensor"]) == ([202, 8, 8], "int16", "enmap")
        assert description["source"] == f"enmap/{location}/{timestamp}.tif"
        assert description["crs"] == "EPSG:32633"
        assert description["transform"] == [30.0, 0.0, 366015.0, 0.0, -30.0, 5809965.0]


def test_timestamps_of_a_location_are_adjacent_and_in_order(packed):
    order = [name.removesuffix(".tile") for names in _members(packed) for name in names[::2]]
    locations = [key.split("_")[0] for key in order]
    starts = [place for i, place in enumerate(locations) if i == 0 or place != locations[i - 1]]
    assert sorted(starts) == sorted(ARCHIVE)
    for location, timestamps in ARCHIVE.items():
        assert tuple(key.split("_")[1] for key in order if key.startswith(location)) == timestamps


def test_a_location_is_in_one_shard_alone(packed):
    shards = [{name.split("_")[0] for name in names} for names in _members(packed)]
    assert sum(map(len, shards)) == len(set.union(*shards)) == len(ARCHIVE)


def _sources(counts):
    return [ListedTile(SourceTile(f"{i:07d}", f"{j:05d}", "")) for i, count in enumerate(counts) for j in range(count)]


def test_a_shard_closes_at_the_first_whole_location_that_reaches_its_size():
    tiles = _sources([1, 4, 2, 1, 1, 3, 2, 5, 1])
    for size in (1, 2, 3, 5, 100):
        cut = cut_shards(tiles, size, seed=0)
        assert sorted((tile for shard in cut for tile in shard), key=lambda tile: tile.source) == tiles
        assert all(len(shard) >= size for shard in cut[:-1])
        for shard in cut:
            last = shard[-1].source.location
            assert sum(tile.source.location != last for tile in shard) < size


def test_the_order_of_locations_is_fixed_by_the_seed_alone():
    tiles = _sources([1] * 50)
    first, again, other = (cut_shards(tiles, 7, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert [tile for shard in first for tile in shard] != tiles


def test_two_workers_write_the_same_bytes_as_one(packed, archive, tmp_path):
    pack(archive[0], tmp_path / "shards", CONFIG, workers=2)
    assert folder_bytes(tmp_path / "shards") == folder_bytes(packed)


def test_bad_tiles_are_set_aside_named_and_counted_and_too_many_are_no_dataset(archive, tmp_path, capfd):
    source, dest = Path(shutil.copytree(archive[0], tmp_path / "source")), tmp_path / "shards"
    os.truncate(source / "enmap/0004096/02207.tif", 9000)
    write_tile(source / "enmap/0150003/04411.tif", np.full((202, 8, 8), 30.25, np.float32))
    command = ["pack", str(source), str(dest), "--tiles-per-shard", "3", "--workers", "1"]

    assert main([*command, "--max-bad", "0.19"]) == 1
    (line,) = error_lines(capfd.readouterr().err)
    assert "2 of 10 tiles" in line
    assert str(source / "enmap/0004096/02207.tif") in line
    assert str(source / "enmap/0150003/04411.tif") in line
    assert not (dest / MANIFEST).exists()

    before = stamps(dest)
    assert main([*command, "--max-bad", "0.2"]) == 0
    named = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: set aside: ")]
    assert len(named) == 2
    assert any(str(source / "enmap/0150003/04411.tif") in line and "is not a whole number" in line for line in named)
    assert {name: stamp for name, stamp in stamps(dest).items() if name in before} == before
    assert (read_manifest(dest).tiles, read_manifest(dest).rejected) == (8, 2)
    reader = ShardReader(dest)
    assert set(keys_of(reader)) == archive[1].keys() - {"0004096_02207", "0150003_04411"}
    assert_reads(reader, archive[1])


def test_a_tile_of_another_size_is_set_aside_wherever_it_comes(archive, tmp_path):
    source = Path(shutil.copytree(archive[0], tmp_path / "source"))
    write_tile(source / "enmap/0000001/00001.tif", spectra(0, 16))
    result = pack(source, tmp_path / "shards", CONFIG, max_bad=0.1)
    assert result.manifest.tile_shape == [202, 8, 8]
    assert [(bad.path, bad.reason) for bad in result.rejected] == [
        (str(source / "enmap/0000001/00001.tif"), "16x16 px where 8x8 were expected")
    ]


@pytest.mark.parametrize("exists", [False, True])
def test_a_source_without_tiles_is_one_line_and_exit_code_2(tmp_path, capfd, exists):
    if exists:
        (tmp_path / "source").mkdir()
    assert main(["pack", str(tmp_path / "source"), str(tmp_path / "shards")]) == 2
    output = capfd.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    assert output.err.startswith(f"error: {tmp_path / 'source'}: ")
    assert not (tmp_path / "shards").exists()


def test_a_source_of_unreadable_files_alone_is_one_line_and_exit_code_2(tmp_path, capfd):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.tif").write_text("not found")
    assert main(["pack", str(tmp_path / "source"), str(tmp_path / "shards")]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_the_manifest_says_what_is_there(packed, archive):
    manifest, enmap = read_manifest(packed), get_sensor("enmap")
    assert (manifest.tiles, manifest.locations, manifest.rejected) == (10, len(ARCHIVE), 0)
    assert manifest.tile_shape == [202, 8, 8]
    assert tuple(manifest.wavelength_nm) == enmap.wavelength_nm
    assert tuple(manifest.fwhm_nm) == enmap.fwhm_nm
    assert [entry.name for entry in manifest.shards] == [path.name for path in sorted(packed.glob("*.tar"))]
    assert [entry.size for entry in manifest.shards] == [path.stat().st_size for path in sorted(packed.glob("*.tar"))]


def test_the_index_says_where_every_tile_lies_and_how_much_of_it_is_missing(packed, archive):
    for path in packed.glob("*.index.json"):
        index = read_json(path, ShardIndex)
        with tarfile.open(packed / index.shard) as tar:
            members = [member for member in tar if member.name.endswith(".tile")]
        assert index.tiles.key == [member.name.removesuffix(".tile") for member in members]
        assert index.tiles.offset == [member.offset_data for member in members]
        assert index.tiles.length == [member.size for member in members]
        missing = [(archive[1][key] == NODATA).any(0).mean() for key in index.tiles.key]
        np.testing.assert_allclose(index.tiles.nodata, missing)


def test_statistics_are_those_of_the_valid_pixels(packed, archive):
    tiles = np.stack(list(archive[1].values())).transpose(1, 0, 2, 3).reshape(202, -1)
    valid = [band[band != NODATA].astype(np.float64) for band in tiles]
    assert len({len(band) for band in valid}) > 1
    manifest = read_manifest(packed)
    np.testing.assert_allclose(manifest.mean, [band.mean() for band in valid], rtol=1e-12)
    np.testing.assert_allclose(manifest.std, [band.std() for band in valid], rtol=1e-12)
    assert manifest.sums.count == [len(band) for band in valid]
    assert manifest.sums.low == [int(band.min()) for band in valid]
    assert manifest.sums.high == [int(band.max()) for band in valid]
    for name, values in (("mu.npy", manifest.mean), ("sigma.npy", manifest.std)):
        stored = np.load(packed / name, allow_pickle=False)
        assert stored.dtype == np.float32
        np.testing.assert_array_equal(stored, np.asarray(values, np.float32))


def test_bands_without_a_valid_pixel_or_without_spread_have_usable_statistics(tmp_path):
    values = spectra(0, 4)
    values[10], values[20] = NODATA, 777
    write_tile(tmp_path / "source/a.tif", values, nodata=NODATA)
    manifest = pack(tmp_path / "source", tmp_path / "shards", CONFIG).manifest
    assert (manifest.mean[10], manifest.std[10]) == (0.0, 1.0)
    assert (manifest.mean[20], manifest.std[20]) == (777.0, 1.0)
    assert np.all(np.isfinite(manifest.mu)) and np.all(manifest.sigma > 0)


@pytest.mark.parametrize(
    ("folder", "tiles"), [pytest.param("spectral_earth_sample", 10, marks=pytest.mark.nightly), ("enmap_potsdam", 18)]
)
def test_real_tiles_come_out_as_they_went_in(request, tmp_path, folder, tiles):
    source, enmap = request.getfixturevalue(folder), get_sensor("enmap")
    pack(source, tmp_path / "shards", PackConfig(tiles_per_shard=4), workers=2)
    reader = ShardReader(tmp_path / "shards", threads=2)
    assert len(reader) == reader.manifest.tiles == tiles
    found = find_tiles(source, "enmap")
    assert_reads(reader, {tile.key: read_tile(source / tile.path, enmap).values for tile in found})

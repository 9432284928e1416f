"""`pack`: the tar that comes out, the same bytes after anything, and what is refused."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from support.tiles import ARCHIVE, NODATA, folder_bytes, spectra, write_archive, write_tile

from shards.__main__ import main
from shards.config import REPOSITORY
from shards.errors import ShardError
from shards.files.atomic import atomic_open
from shards.format.manifest import MANIFEST, ShardIndex, read_json, read_manifest
from shards.pack.build import Part, pack, pack_part
from shards.pack.listing import ListedTile, cut_shards
from shards.pack.scan import PackConfig
from shards.read.reader import ShardReader
from shards.sensors.sensor import get_sensor
from shards.sources.geotiff import read_tile
from shards.sources.layouts import find_tiles
from shards.sources.tile_names import SourceTile
from shards.webdataset import decoder

CONFIG = PackConfig(tiles_per_shard=3)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A source of ten tiles and its values by key. Tests that change it take a copy."""
    source = tmp_path_factory.mktemp("archive")
    return source, write_archive(source)


@pytest.fixture(scope="module")
def packed(archive, tmp_path_factory):
    """The archive in three shards. Tests that change it take a copy."""
    dest = tmp_path_factory.mktemp("packed") / "shards"
    assert pack(archive[0], dest, CONFIG).written == 3
    return dest


@pytest.fixture
def copy(packed, tmp_path):
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def _stamps(folder):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


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


def test_a_restart_writes_what_is_missing_and_sweeps_what_is_unfinished(packed, copy, archive):
    kept = _stamps(copy)["shard-000000.tar"]
    (copy / MANIFEST).unlink()
    (copy / "shard-000001.tar").unlink()
    (copy / "shard-000002.index.json").unlink()
    for leftover in ("shard-000001.tar.node.77.5.tmp", "shard-000002.index.json.node.77.5.tmp"):
        (copy / leftover).write_bytes(b"half")
    assert pack(archive[0], copy, CONFIG).written == 2
    assert _stamps(copy)["shard-000000.tar"] == kept
    assert folder_bytes(copy) == folder_bytes(packed)


def _lose_tar(folder):
    (folder / "shard-000001.tar").unlink()


def _lose_index(folder):
    (folder / "shard-000001.index.json").unlink()


def _cut_tar(folder):
    os.truncate(folder / "shard-000001.tar", 20000)


@pytest.mark.parametrize("damage", [_lose_tar, _lose_index, _cut_tar])
def test_packing_again_mends_a_finished_folder_that_lost_a_file(packed, copy, archive, damage):
    damage(copy)
    pack(archive[0], copy, CONFIG)
    assert folder_bytes(copy) == folder_bytes(packed)


def test_packing_again_rewrites_nothing(copy, archive):
    before = _stamps(copy)
    assert pack(archive[0], copy, CONFIG, workers=2).written == 0
    assert _stamps(copy) == before


def test_a_pack_killed_before_its_first_file_was_whole_continues(packed, archive, tmp_path):
    dest = tmp_path / "shards"
    dest.mkdir()
    (dest / "pack.json.77.tmp").write_bytes(b"{")
    pack(archive[0], dest, CONFIG)
    assert folder_bytes(dest) == folder_bytes(packed)


@pytest.mark.parametrize("change", [{"tiles_per_shard": 4}, {"seed": 1}, {"size": 16}])
def test_a_folder_packed_with_other_options_is_refused_and_left_alone(copy, archive, change):
    before = _stamps(copy)
    with pytest.raises(ShardError, match=re.escape(f"{copy}: was packed from other options")):
        pack(archive[0], copy, CONFIG.model_copy(update=change))
    assert _stamps(copy) == before


def _remove_tile(source):
    (source / "enmap/0000231/00003.tif").unlink()


def _change_tile(source):
    path = source / "enmap/0000231/00003.tif"
    size = path.stat().st_size
    write_tile(path, spectra(9, 8), nodata=NODATA)
    assert path.stat().st_size == size


@pytest.mark.parametrize("change", [_remove_tile, _change_tile])
def test_a_folder_packed_from_other_tiles_is_refused(copy, archive, tmp_path, change):
    source = Path(shutil.copytree(archive[0], tmp_path / "source"))
    change(source)
    with pytest.raises(ShardError, match="other tiles"):
        pack(source, copy, CONFIG)


def test_a_foreign_folder_is_refused_and_left_alone(archive, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ShardError, match="not empty and not begun by pack"):
        pack(archive[0], tmp_path, CONFIG)
    assert folder_bytes(tmp_path) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize(
    "text", ["", '{"format": 2, "opt', "[]", "{}", '{"format": 2, "options": {}, "generations": []}']
)
def test_a_damaged_record_of_the_options_is_refused(copy, archive, text):
    (copy / "pack.json").write_text(text)
    with pytest.raises(ShardError, match=re.escape(str(copy))):
        pack(archive[0], copy, CONFIG)


def test_a_file_takes_its_name_by_rename_once_it_is_whole(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"old")
    with atomic_open(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        inode = os.fstat(file.fileno()).st_ino
    assert folder_bytes(tmp_path) == {"a.tar": b"new"}
    assert path.stat().st_ino == inode


def test_a_file_that_fails_half_way_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_open(tmp_path / "a.tar") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert folder_bytes(tmp_path) == {"a.tar": b"old"}


def _error_lines(text):
    return [line for line in text.splitlines() if line.startswith("error:")]


def test_bad_tiles_are_set_aside_named_and_counted_and_too_many_are_no_dataset(archive, tmp_path, capfd):
    source, dest = Path(shutil.copytree(archive[0], tmp_path / "source")), tmp_path / "shards"
    os.truncate(source / "enmap/0004096/02207.tif", 9000)
    write_tile(source / "enmap/0150003/04411.tif", np.full((202, 8, 8), 0.25, np.float32))
    command = ["pack", str(source), str(dest), "--tiles-per-shard", "3", "--workers", "1"]

    assert main([*command, "--max-bad", "0.19"]) == 1
    (line,) = _error_lines(capfd.readouterr().err)
    assert "2 of 10 tiles" in line
    assert str(source / "enmap/0004096/02207.tif") in line
    assert str(source / "enmap/0150003/04411.tif") in line
    assert not (dest / MANIFEST).exists()

    before = _stamps(dest)
    assert main([*command, "--max-bad", "0.2"]) == 0
    named = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: set aside: ")]
    assert len(named) == 2
    assert any(str(source / "enmap/0150003/04411.tif") in line and "is no whole number" in line for line in named)
    assert {name: stamp for name, stamp in _stamps(dest).items() if name in before} == before
    assert (read_manifest(dest).tiles, read_manifest(dest).rejected) == (8, 2)
    reader = ShardReader(dest)
    assert set(_keys(reader)) == archive[1].keys() - {"0004096_02207", "0150003_04411"}
    _assert_reads(reader, archive[1])


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


def _keys(reader):
    return [reader.key(row) for row in range(len(reader))]


def _assert_reads(reader, values):
    out = np.empty((len(reader), *reader.tile_shape), np.int16)
    reader.read(range(len(reader)), out)
    for key, tile in zip(_keys(reader), out, strict=True):
        np.testing.assert_array_equal(tile, values[key])


@pytest.mark.parametrize(("folder", "tiles"), [("spectral_earth_sample", 10), ("enmap_potsdam", 18)])
def test_real_tiles_come_out_as_they_went_in(request, tmp_path, folder, tiles):
    source, enmap = request.getfixturevalue(folder), get_sensor("enmap")
    pack(source, tmp_path / "shards", PackConfig(tiles_per_shard=4), workers=2)
    reader = ShardReader(tmp_path / "shards", threads=2)
    assert len(reader) == reader.manifest.tiles == tiles
    found = find_tiles(source, "enmap")
    _assert_reads(reader, {tile.key: read_tile(source / tile.path, enmap).values for tile in found})


@pytest.fixture(scope="module")
def slow_archive(tmp_path_factory):
    """Enough tiles of 64 px that a pack can be interrupted in the middle."""
    source = tmp_path_factory.mktemp("slow")
    write_archive(source, 64, {f"{i:07d}": ("00001", "00002") for i in range(9)})
    return source


def _start(source, dest):
    options = ["--tiles-per-shard", "2", "--workers", "2"]
    return subprocess.Popen(
        [sys.executable, "-m", "shards", "pack", str(source), str(dest), *options],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.005)
    return found


def _end_group(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _running_in_group(group):
    """Processes of a group that are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state != "Z":
                found.append(int(path.parent.name))
    return found


def test_kill_9_at_any_moment_and_a_rerun_give_the_bytes_of_an_uninterrupted_run(slow_archive, tmp_path):
    dest, rng, unfinished = tmp_path / "killed", random.Random(0), 0
    for finished in (0, 1, 4):
        process = _start(slow_archive, dest)
        try:
            assert _wait_for(lambda dest=dest: any(dest.glob("*.tar*")), 20)
            _wait_for(lambda want=finished: len(list(dest.glob("*.index.json"))) >= want, 20)
            time.sleep(rng.uniform(0, 0.1))
        finally:
            _end_group(process)
        unfinished += not (dest / MANIFEST).exists()
    assert unfinished
    for folder in (dest, tmp_path / "whole"):
        pack(slow_archive, folder, PackConfig(tiles_per_shard=2))
    assert folder_bytes(dest) == folder_bytes(tmp_path / "whole")


@pytest.mark.nightly
def test_kill_9_at_fifty_random_moments_gives_the_bytes_of_an_uninterrupted_run(slow_archive, tmp_path):
    """A third of the kills come while pack is starting or scanning, the others at any time of a whole run."""
    rng, unfinished, kills = random.Random(1), 0, 0
    pack(slow_archive, tmp_path / "whole", PackConfig(tiles_per_shard=2))
    while kills < 50:
        dest = tmp_path / f"killed-{kills}"
        for _ in range(rng.randint(1, 4)):
            process = _start(slow_archive, dest)
            try:
                if rng.random() < 0.67:
                    _wait_for(lambda dest=dest: any(dest.glob("*.tar*")), 20)
                time.sleep(rng.uniform(0, 1.2))
            finally:
                _end_group(process)
            kills += 1
            unfinished += not (dest / MANIFEST).exists()
        pack(slow_archive, dest, PackConfig(tiles_per_shard=2), workers=2)
        assert folder_bytes(dest) == folder_bytes(tmp_path / "whole")
        shutil.rmtree(dest)
    assert unfinished > 25


def test_a_full_disk_is_one_line_and_the_next_run_finishes(slow_archive, tmp_path):
    """A limit on file sizes stands for the full disk: writing ends in an OSError in the middle of a shard."""
    dest = tmp_path / "shards"
    command = [sys.executable, "-m", "shards", "pack", str(slow_archive), str(dest), "--tiles-per-shard", "2"]
    limited = f"ulimit -f 1000; exec {' '.join(command)} --workers 1"
    done = subprocess.run(["bash", "-c", limited], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = _error_lines(done.stderr)
    assert "File too large" in line and "finished shards are kept" in line
    assert "Traceback" not in done.stderr
    assert not list(dest.glob("*.tar")) and not list(dest.glob("*.tmp"))
    for folder in (dest, tmp_path / "whole"):
        pack(slow_archive, folder, PackConfig(tiles_per_shard=2))
    assert folder_bytes(dest) == folder_bytes(tmp_path / "whole")


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_parts_at_the_same_time_and_a_merge_make_the_same_bytes(archive, packed, tmp_path, parts):
    dest = tmp_path / "shards"
    command = [sys.executable, "-m", "shards", "pack", str(archive[0]), str(dest), "--tiles-per-shard", "3"]
    running = [
        subprocess.Popen([*command, "--part", f"{number + 1}/{parts}", "--workers", "1"], cwd=REPOSITORY)
        for number in range(min(parts, 3))
    ]
    assert [process.wait() for process in running] == [0] * len(running)
    for number in range(3, parts):
        assert main([*command[3:], "--part", f"{number + 1}/{parts}", "--workers", "1"]) == 0
    assert not (dest / MANIFEST).exists()
    assert main(["merge", str(dest), "--workers", "1"]) == 0
    assert folder_bytes(dest) == folder_bytes(packed)


def test_a_merge_before_all_parts_are_done_names_what_is_missing(archive, tmp_path, capfd):
    pack_part(archive[0], tmp_path / "shards", CONFIG, Part(1, 2))
    assert main(["merge", str(tmp_path / "shards"), "--workers", "1"]) == 2
    (line,) = _error_lines(capfd.readouterr().err)
    assert "1 shards are not written yet, e.g. shard-000001.tar" in line


def test_append_adds_new_shards_and_leaves_the_old_ones_alone(archive, copy, tmp_path):
    before, old = _stamps(copy), read_manifest(copy)
    more = write_archive(tmp_path / "more", scenes={"0000017": ("09999",), "7777777": ("00001", "00002")})
    write_archive(tmp_path / "more", scenes={"0000231": ("00003",)})  # is there already
    result = pack(tmp_path / "more", copy, CONFIG, append=True)
    assert (result.written, result.manifest.tiles, result.manifest.generations) == (1, 13, 2)
    assert result.manifest.content_hash != old.content_hash
    assert {name: stamp for name, stamp in _stamps(copy).items() if name.startswith("shard-00000[012]")} == {
        name: stamp for name, stamp in before.items() if name.startswith("shard-00000[012]")
    }
    reader = ShardReader(copy)
    _assert_reads(reader, archive[1] | more)
    grown = reader.table[reader.table["location"] == b"0000017"]
    assert len(set(grown["place"])) == 1 and len(grown) == 3
    assert pack(tmp_path / "more", copy, CONFIG, append=True).written == 0
    with pytest.raises(ShardError, match="nothing to append to"):
        pack(tmp_path / "more", tmp_path / "new", CONFIG, append=True)


def test_an_append_that_was_killed_is_finished_by_the_same_command(copy, tmp_path):
    write_archive(tmp_path / "more", scenes={f"{i:07d}": ("00001",) for i in range(8)})
    whole = Path(shutil.copytree(copy, tmp_path / "whole"))
    pack(tmp_path / "more", whole, CONFIG, append=True)
    pack_part(tmp_path / "more", copy, CONFIG, Part(1, 2), append=True)  # killed before the other half
    assert len(ShardReader(copy)) == 10  # readers still see what was there before
    pack(tmp_path / "more", copy, CONFIG, append=True)
    assert folder_bytes(copy) == folder_bytes(whole)


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(archive, tmp_path, capsys):
    assert main(["pack", str(archive[0]), str(tmp_path / "shards"), "--dry-run", "--tiles-per-shard", "3"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("10 tiles of 6 locations -> 3 shards, 0.00 GB")
    assert "compact" in text
    assert not (tmp_path / "shards").exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see other processes")
def test_workers_end_with_the_process_that_started_them(slow_archive, tmp_path):
    process = _start(slow_archive, tmp_path / "shards")
    try:
        assert _wait_for(lambda: any((tmp_path / "shards").glob("*.tar*")), 60)
        process.kill()
        process.wait()
        _wait_for(lambda: not _running_in_group(process.pid), 2)
        assert _running_in_group(process.pid) == []
    finally:
        _end_group(process)


def test_a_killed_worker_is_one_line_and_exit_code_1(slow_archive, tmp_path):
    dest = tmp_path / "shards"
    process = _start(slow_archive, dest)
    try:
        unfinished = _wait_for(lambda: list(dest.glob("*.tar.*.tmp")), 60)
        os.kill(int(unfinished[0].name.split(".")[-3]), signal.SIGKILL)
        stderr = process.communicate(timeout=120)[1]
    finally:
        _end_group(process)
    assert process.returncode == 1
    assert len(_error_lines(stderr)) == 1
    assert "Traceback" not in stderr

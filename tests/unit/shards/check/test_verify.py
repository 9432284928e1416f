"""`verify`: nothing to say of a sound folder; every damage is a line that names the file, and never a crash."""

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from support.tiles import NODATA, spectra, write_archive, write_tile

from shards.__main__ import main
from shards.errors import ShardError
from shards.format.manifest import ShardIndex, read_json, to_json
from shards.pack.build import pack
from shards.pack.listing import ListedTile, read_list, write_list
from shards.pack.merge import merge_shards
from shards.pack.record import read_record, write_record
from shards.pack.scan import Labels, PackConfig
from shards.read.reader import ShardReader
from shards.sources.tile_names import SourceTile


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Ten tiles with label tiles in three shards, and their values by key."""
    folder = tmp_path_factory.mktemp("verify")
    values = write_archive(folder / "source")
    for key in values:
        location, timestamp = key.split("_")
        write_tile(folder / "labels/enmap" / location / f"{timestamp}.tif", np.ones((8, 8), np.uint8))
    pack(folder / "source", folder / "shards", PackConfig(tiles_per_shard=3), labels=Labels(folder / "labels"))
    return folder, values


@pytest.fixture
def copy(packed, tmp_path):
    return Path(shutil.copytree(packed[0] / "shards", tmp_path / "shards"))


def _verify(folder, capfd, *options):
    """Exit code, problem lines and everything else that was printed."""
    code = main(["verify", str(folder), "--workers", "1", *map(str, options)])
    output = capfd.readouterr()
    lines = [line for line in output.err.splitlines() if line.startswith(("problem: ", "error: "))]
    assert "Traceback" not in output.err
    return code, lines, output.out + output.err


def test_a_sound_folder_has_no_problems(packed, capfd):
    source = packed[0] / "source"
    code, lines, text = _verify(packed[0] / "shards", capfd, "--source", source, "--labels", packed[0] / "labels")
    assert (code, lines) == (0, [])
    assert f"10 of 10 tiles in 3 shards read, 10 compared with {source}" in text and "no problems" in text


def test_two_workers_see_the_same(copy, capfd):
    with open(copy / "shard-000001.tar", "r+b") as file:
        file.seek(700)
        file.write(b"\xff\x00\xff")
    one = _verify(copy, capfd)
    assert main(["verify", str(copy), "--workers", "2"]) == 1
    two = [line for line in capfd.readouterr().err.splitlines() if line.startswith("problem: ")]
    assert sorted(two) == sorted(one[1]) != []


def test_a_sample_reads_a_share_and_says_so(packed, capfd):
    code, lines, text = _verify(packed[0] / "shards", capfd, "--sample", "0.5")
    assert (code, lines) == (0, [])
    assert "of 10 tiles" in text and "10 of 10" not in text and "a sample" in text


def _flip(path, position, bit):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


FILES = [
    "manifest.json",
    "tiles-000.npy",
    "mu.npy",
    "sigma.npy",
    "shard-000001.index.json",
    "pack.json",
    "sources-000.tsv",
]


def find_missed(folder, values, flips, seed, capfd):
    """Flip bits and truncate at random places; the places that neither `verify` nor a reader noticed."""
    rng, missed = np.random.default_rng(seed), []
    for number in range(flips):
        path = folder / (FILES[number // 2 % len(FILES)] if number % 2 else "shard-000000.tar")
        intact, cut = path.read_bytes(), number % 5 == 4
        position = int(rng.integers(len(intact)))
        if cut:
            path.write_bytes(intact[:position])
        else:
            _flip(path, position, int(rng.integers(8)))
        code, lines, _ = _verify(folder, capfd)
        if not (code == 1 and any(path.name in line for line in lines)):
            missed.append(f"{path.name} byte {position} {'cut' if cut else 'flipped'}: {code} {lines}")
        if wrong := _read_wrong(folder, values):
            missed.append(f"{path.name} byte {position}: a reader gave {wrong}")
        path.write_bytes(intact)
    return missed


def _read_wrong(folder, values):
    """Keys of tiles that a reader returned with wrong values; an error line is as good as the right tile."""
    wrong = []
    try:
        reader = ShardReader(folder)
    except ShardError as error:
        return [] if len(str(error).splitlines()) == 1 else ["an error of several lines"]
    out = np.empty((1, *reader.tile_shape), np.int16)
    for row in range(len(reader)):
        try:
            reader.read([row], out)
        except ShardError:
            continue
        if not np.array_equal(out[0], values.get(reader.key(row))):
            wrong.append(reader.key(row))
    reader.close()
    return wrong


def test_random_flips_and_truncations_are_all_found(copy, packed, capfd):
    assert find_missed(copy, packed[1], 20, 11, capfd) == []


@pytest.mark.nightly
def test_five_hundred_random_flips_and_truncations_are_all_found(copy, packed, capfd):
    assert find_missed(copy, packed[1], 500, 12, capfd) == []


def test_a_source_that_changed_after_packing_is_named(packed, tmp_path, capfd):
    source = Path(shutil.copytree(packed[0] / "source", tmp_path / "source"))
    write_tile(source / "enmap/0000231/00003.tif", spectra(77, 8), nodata=NODATA)
    (source / "enmap/0150003/04411.tif").unlink()
    code, lines, _ = _verify(packed[0] / "shards", capfd, "--source", source)
    assert code == 1
    assert any("0000231_00003" in line and "differs from its source" in line for line in lines)
    assert any("0150003_04411" in line and "can't be read" in line for line in lines)
    assert len(lines) == 2


def test_a_label_tile_that_changed_after_packing_is_named(packed, tmp_path, capfd):
    labels = Path(shutil.copytree(packed[0] / "labels", tmp_path / "labels"))
    write_tile(labels / "enmap/0000231/00003.tif", np.full((8, 8), 2, np.uint8))
    code, lines, _ = _verify(packed[0] / "shards", capfd, "--labels", labels)
    assert code == 1 and len(lines) == 1
    assert "label tile '0000231_00003'" in lines[0] and "differs from its source" in lines[0]


def _archive(folder, path):
    with tarfile.open(path, "w:gz") as file:
        file.add(folder, "spectral_earth")
    return path


def test_tiles_of_an_archive_are_compared_with_a_second_reading_of_it(tmp_path, capfd):
    source, dest = tmp_path / "source", tmp_path / "shards"
    write_archive(source)
    os.truncate(source / "enmap/0004096/02207.tif", 9000)
    path = _archive(source, tmp_path / "part_1.tar.gz")
    pack(path, dest, PackConfig(size=8, tiles_per_shard=3), max_bad=0.1)
    code, lines, text = _verify(dest, capfd, "--source", path)
    assert (code, lines) == (0, []) and f"9 compared with {path}" in text

    write_tile(source / "enmap/0004096/02207.tif", spectra(1, 8), nodata=NODATA)
    write_tile(source / "enmap/0000231/00003.tif", spectra(2, 8), nodata=NODATA)
    (source / "enmap/0150003/04411.tif").rename(source / "enmap/0150003/04412.tif")
    _archive(source, path)
    code, lines, _ = _verify(dest, capfd, "--source", path)
    assert code == 1
    expected = {"0004096/02207.tif": "can be used now", "'0000231_00003' at byte": "differs from its source"}
    expected |= {"0150003/04412.tif": "was not packed", "'0150003_04411'": "is no longer in it"}
    for name, what in expected.items():
        assert any(name in line and what in line for line in lines), name
    assert len(lines) == len(expected)

    path.write_bytes(path.read_bytes()[:3000])
    code, lines, _ = _verify(dest, capfd, "--source", path)
    assert code == 1 and "part_1.tar.gz: ends early or is damaged" in lines[0]
    code, lines, text = _verify(dest, capfd, "--source", source / "enmap/0000017")
    assert code == 1 and "no tile could be compared with it" in lines[-1]
    assert "warning: part_1.tar.gz: not in" in text
    code, lines, _ = _verify(dest, capfd, "--source", tmp_path / "none")
    assert code == 2 and len(lines) == 1


def test_a_file_that_was_set_aside_and_is_whole_now_is_named(tmp_path, capfd):
    source, dest = tmp_path / "source", tmp_path / "shards"
    write_archive(source)
    bad = source / "enmap/0004096/02207.tif"
    whole = bad.read_bytes()
    os.truncate(bad, 9000)
    pack(source, dest, PackConfig(tiles_per_shard=1), max_bad=0.1)
    assert _verify(dest, capfd, "--source", source)[:2] == (0, [])
    bad.write_bytes(whole)
    code, lines, _ = _verify(dest, capfd, "--source", source)
    assert code == 1 and len(lines) == 1
    assert str(bad) in lines[0] and "was set aside when packing" in lines[0]


def test_a_listed_tile_that_is_neither_stored_nor_set_aside_is_named(copy, capfd):
    record = read_record(copy)
    tiles = [*read_list(copy, record.generations[0]), ListedTile(SourceTile("7777777", "00001", "lost.tif"))]
    name, digest = write_list(copy, 0, tiles)
    listed = record.generations[0].model_copy(update={"list_name": name, "list_sha256": digest})
    write_record(copy, record.model_copy(update={"generations": [listed]}))
    code, lines, _ = _verify(copy, capfd)
    assert code == 1 and len(lines) == 1
    assert "tile '7777777_00001' (lost.tif) is neither stored nor set aside" in lines[0]


@pytest.mark.parametrize(
    ("column", "value", "where"),
    [
        ("lon", 1.5, "'lon' is not what the index says"),
        ("offset", 1024, "the index says byte 1024"),
        ("checksum", 7, "fails its checksum"),
        ("mask_checksum", 7, "label tile"),
        ("count", 63, "its sums differ from those of the tiles"),
    ],
)
def test_an_index_that_is_whole_but_wrong_is_named(copy, capfd, column, value, where):
    path = copy / "shard-000001.index.json"
    index = read_json(path, ShardIndex)
    values = getattr(index.sums if column == "count" else index.tiles, column)
    values[0] = value
    path.write_text(to_json(index.sealed()))
    merge_shards(copy, 0.0, 0)  # table and manifest take it over
    code, lines, _ = _verify(copy, capfd)
    assert code == 1
    assert all("shard-000001" in line for line in lines) and any(where in line for line in lines)


def test_names_that_need_long_tar_headers_are_read(tmp_path, capfd):
    write_tile(tmp_path / "source" / ("place" * 30 + ".tif"), spectra(0, 8), nodata=NODATA)
    pack(tmp_path / "source", tmp_path / "shards", PackConfig())
    code, lines, text = _verify(tmp_path / "shards", capfd, "--source", tmp_path / "source")
    assert (code, lines) == (0, []) and "1 compared with" in text


def test_statistics_of_another_dataset_are_named(copy, capfd):
    np.save(copy / "mu.npy", np.zeros(202, np.float32))
    code, lines, _ = _verify(copy, capfd)
    assert code == 1
    assert lines == [f"problem: {copy / 'mu.npy'}: not the manifest's statistics"]


def test_leftovers_and_strangers_are_notes_not_problems(copy, capfd):
    (copy / "shard-000009.tar.node.1.2.tmp").write_bytes(b"half")
    (copy / "other.tar").write_bytes(b"")
    code, lines, text = _verify(copy, capfd)
    assert (code, lines) == (0, [])
    assert text.count("warning: ") == 2


def test_a_missing_shard_and_a_missing_folder(copy, tmp_path, capfd):
    (copy / "shard-000002.tar").unlink()
    code, lines, _ = _verify(copy, capfd)
    assert code == 1 and any("shard-000002.tar: missing" in line for line in lines)
    code, lines, _ = _verify(tmp_path / "none", capfd)
    assert code == 2 and len(lines) == 1

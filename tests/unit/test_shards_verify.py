"""`verify`: nothing to say of a sound folder; every damage is a line that names the file, and never a crash."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.tiles import NODATA, spectra, write_archive, write_tile

from shards.__main__ import main
from shards.build import pack
from shards.errors import ShardError
from shards.reader import ShardReader
from shards.scan import Labels, PackConfig


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
    assert "10 of 10 tiles in 3 shards read" in text and "no problems" in text


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


FILES = ["manifest.json", "tiles-000.npy", "mu.npy", "sigma.npy", "shard-000000.tar", "shard-000001.index.json"]


def find_missed(folder, values, flips, seed, capfd):
    """Flip bits and truncate at random places; the places that neither `verify` nor a reader noticed."""
    rng, missed = np.random.default_rng(seed), []
    for number in range(flips):
        path = folder / FILES[number % len(FILES)] if number % 2 else folder / "shard-000000.tar"
        intact, cut = path.read_bytes(), number % 5 == 4
        position = int(rng.integers(len(intact)))
        if cut:
            path.write_bytes(intact[:position])
        else:
            _flip(path, position, int(rng.integers(8)))
        code, lines, _ = _verify(folder, capfd)
        if not (code in (1, 2) and lines and any(path.name in line for line in lines)):
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
    assert find_missed(copy, packed[1], 50, 11, capfd) == []


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
    assert text.count("note: ") == 2


def test_a_missing_shard_and_a_missing_folder(copy, tmp_path, capfd):
    (copy / "shard-000002.tar").unlink()
    code, lines, _ = _verify(copy, capfd)
    assert code == 1 and any("shard-000002.tar: missing" in line for line in lines)
    code, lines, _ = _verify(tmp_path / "none", capfd)
    assert code == 2 and len(lines) == 1

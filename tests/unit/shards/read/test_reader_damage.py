"""Damaged, missing and foreign files of a shard folder: refused or named, never read as something else."""

import hashlib
import json
import os
import re

import numpy as np
import pytest
from support.datasets import keys_of, read_rows, refusal

from shards.errors import ShardError
from shards.format.manifest import MANIFEST
from shards.read.reader import ShardReader

SHARD, INDEX, TABLE = "shard-000001.tar", "shard-000001.index.json", "tiles-000.npy"


@pytest.mark.parametrize("length", [0, 512, 20000, -1])
def test_a_truncated_tar_is_refused_when_the_folder_is_opened(copy, length):
    tar = copy / SHARD
    os.truncate(tar, length if length >= 0 else tar.stat().st_size - 1)
    assert refusal(lambda: ShardReader(copy)).startswith(f"{tar}: ")


def test_a_missing_tar_is_refused_when_the_folder_is_opened(copy):
    (copy / SHARD).unlink()
    assert refusal(lambda: ShardReader(copy)).startswith(f"{copy / SHARD}: missing")


@pytest.mark.parametrize("threads", [1, 4])
def test_a_tar_that_is_cut_while_it_is_read_names_the_tile(copy, opened, threads):
    reader = opened(copy, threads)
    os.truncate(copy / SHARD, 20000)
    row = next(row for row in range(10) if reader.key(row) in json.loads((copy / INDEX).read_text())["tiles"]["key"])
    message = refusal(lambda: read_rows(reader, [row]))
    assert str(copy / SHARD) in message and "cut short" in message


def test_a_tar_that_vanishes_before_it_is_read_is_named(copy, opened):
    reader = opened(copy)
    (copy / SHARD).unlink()
    assert str(copy / SHARD) in refusal(lambda: read_rows(reader, range(10)))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_flipped_bit_in_a_tile_names_the_tile(copy, opened, threads, where):
    index = json.loads((copy / INDEX).read_text())["tiles"]
    key, begin, length = (index[name][1] for name in ("key", "offset", "length"))
    position = begin + {"first": 0, "middle": length // 2, "last": length - 1}[where]
    with open(copy / SHARD, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))
    reader = opened(copy, threads)
    message = refusal(lambda: read_rows(reader, range(10)))
    assert message.startswith(f"{copy / SHARD}: tile '{key}' at byte {begin} fails its checksum")
    intact = [row for row in range(10) if reader.key(row) != key]
    read_rows(reader, intact)


@pytest.mark.parametrize("name", [TABLE, MANIFEST])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_description_is_refused(copy, name, share):
    path = copy / name
    os.truncate(path, int(path.stat().st_size * share))
    assert refusal(lambda: ShardReader(copy)).startswith(f"{path}: ")


@pytest.mark.parametrize("name", [TABLE, MANIFEST])
def test_a_missing_description_is_refused(copy, name):
    (copy / name).unlink()
    assert refusal(lambda: ShardReader(copy)).startswith(f"{copy / name}: missing")


def test_a_missing_folder_is_refused_and_the_command_that_makes_it_named(tmp_path):
    message = refusal(lambda: ShardReader(tmp_path / "absent"))
    assert str(tmp_path / "absent") in message
    assert "python -m shards pack" in message


@pytest.mark.parametrize("name", [MANIFEST])
@pytest.mark.parametrize("text", ["[]", "null", "{}", '"tiles"', '{"format": 1}', "\xff\xfe"])
def test_a_description_that_says_something_else_is_refused(copy, name, text):
    (copy / name).write_bytes(text.encode("latin-1"))
    assert refusal(lambda: ShardReader(copy)).startswith(f"{copy / name}: ")


def _edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")


@pytest.mark.parametrize("name", [MANIFEST])
@pytest.mark.parametrize("number", [0, 1, "2", None])
def test_another_format_number_is_refused_and_named(copy, name, number):
    _edit(copy / name, lambda data: data.update(format=number))
    message = refusal(lambda: ShardReader(copy))
    assert message.startswith(f"{copy / name}: format {number}, but this version reads 2")


@pytest.mark.parametrize("name", [MANIFEST])
@pytest.mark.parametrize("key", ["format", "sums"])
def test_a_description_without_a_key_is_refused(copy, name, key):
    _edit(copy / name, lambda data: data.pop(key))
    message = refusal(lambda: ShardReader(copy))
    assert message.startswith(f"{copy / name}: ")
    assert key in message


def test_the_table_of_another_pack_is_refused(copy):
    data = bytearray((copy / TABLE).read_bytes())
    data[-3] ^= 1
    (copy / TABLE).write_bytes(data)
    assert refusal(lambda: ShardReader(copy)).startswith(f"{copy / TABLE}: ")


def _more_tiles(data):
    data["shards"][0]["tiles"] += 1


def _fewer_tiles(data):
    data["shards"][0]["tiles"] -= 1


def _another_shape(data):
    data["tile_shape"] = [202, 9, 9]


def _flat_shape(data):
    data["tile_shape"] = [202, 64]


def _another_codec(data):
    data["codec"]["id"] = "blosk"


def _no_compressor(data):
    del data["codec"]["pack_low"]


def _another_hash(data):
    data["content_hash"] = hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize(
    "change",
    [_more_tiles, _fewer_tiles, _another_shape, _flat_shape, _another_codec, _no_compressor, _another_hash],
)
def test_a_manifest_that_contradicts_its_shards_is_refused(copy, change):
    _edit(copy / MANIFEST, change)
    message = refusal(lambda: read_rows(ShardReader(copy), range(10)))
    assert str(copy) in message


def _tile_regions(folder):
    for path in sorted(folder.glob("*.index.json")):
        index = json.loads(path.read_text())
        for begin, length in zip(index["tiles"]["offset"], index["tiles"]["length"], strict=True):
            yield folder / index["shard"], begin, length


def _key_regions(path):
    """Each top-level key of a JSON file with its value: long lists shall not draw all the damage."""
    text = path.read_bytes()
    begins = [match.start() for match in re.finditer(rb'^ "', text, re.MULTILINE)]
    return [(path, begin, end - begin) for begin, end in zip(begins, [*begins[1:], len(text)], strict=True)]


def _regions(folder, what):
    if what == "tiles":
        return list(_tile_regions(folder))
    if what == "table":
        return [(folder / TABLE, 0, (folder / TABLE).stat().st_size)]
    return _key_regions(folder / MANIFEST)


def _outcome(folder, values, intact):
    """None where the damage was found or changed nothing; what happened otherwise."""
    try:
        reader = ShardReader(folder)
        try:
            tiles = read_rows(reader, range(len(reader)))
        finally:
            reader.close()
    except ShardError as error:
        return None if len(str(error).splitlines()) == 1 else "more than one line"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if set(keys_of(reader)) != values.keys():
        return "other keys"
    if any(not np.array_equal(tile, values[key]) for key, tile in zip(keys_of(reader), tiles, strict=True)):
        return "wrong tile"
    if reader.manifest != intact.manifest or reader.table.tobytes() != intact.table.tobytes():
        return "another description"
    return None


@pytest.mark.parametrize(("what", "count"), [("tiles", 40), ("table", 40), ("manifest", 200)])
def test_a_random_wrong_byte_is_found_or_changes_nothing(copy, packed, opened, what, count):
    rng, unharmed = np.random.default_rng(7), opened(copy)
    regions, bad = _regions(copy, what), []
    for _ in range(count):
        path, begin, length = regions[rng.integers(len(regions))]
        position = begin + int(rng.integers(length))
        intact = path.read_bytes()
        old = intact[position]
        likely = b"0123456789" if 48 <= old <= 57 else bytes(range(256))
        new = int(rng.choice([byte for byte in likely if byte != old]))
        path.write_bytes(intact[:position] + bytes([new]) + intact[position + 1 :])
        if outcome := _outcome(copy, packed[1], unharmed):
            line = intact[:position].count(b"\n") + 1
            bad.append(f"{path.name}:{line} byte {position} {old:#x} -> {new:#x}: {outcome}")
        path.write_bytes(intact)
    assert bad == []

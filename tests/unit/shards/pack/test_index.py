"""`index`: tars that WebDataset wrote are read like our own, and not a byte of them is changed."""

import hashlib
import io
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from support.datasets import read_all
from support.deliveries import write_tar
from support.tiles import NODATA, write_archive

from shards.__main__ import main
from shards.pack.build import pack
from shards.pack.scan import PackConfig
from shards.read.reader import ShardReader
from shards.sources.descriptions import read_description


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    return folder, write_archive(folder)


def _write_tars(folder, source, values, kind, described=True):
    """Three tars by WebDataset's own writer."""
    folder.mkdir()
    keys = sorted(values)
    for number in range(3):
        with webdataset.TarWriter(str(folder / f"data-{number}.tar")) as writer:
            for key in keys[number::3]:
                location, timestamp = key.split("_")
                sample = {"__key__": key}
                if kind == "tif":
                    sample["tif"] = (source / "enmap" / location / f"{timestamp}.tif").read_bytes()
                else:
                    buffer = io.BytesIO()
                    np.save(buffer, values[key].transpose(1, 2, 0) if kind == "hwc" else values[key])
                    sample["npy"] = buffer.getvalue()
                if described:
                    sample["json"] = {"location": location, "timestamp": timestamp, "date": "2022-07-24"}
                writer.write(sample)
    return folder


def _hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


@pytest.mark.parametrize("kind", ["npy", "hwc", "tif"])
@pytest.mark.parametrize("described", [True, False])
def test_tars_of_webdataset_are_read_like_our_own(source, tmp_path, capsys, kind, described):
    folder = _write_tars(tmp_path / "tars", *source, kind, described)
    before = _hashes(folder)
    assert main(["index", str(folder), "--workers", "1"]) == 0
    assert "indexed 10 tiles" in capsys.readouterr().out
    reader, found = ShardReader(folder), read_all(folder)
    assert found.keys() == source[1].keys()
    for key, tile in source[1].items():
        np.testing.assert_array_equal(found[key], tile)
    assert len(np.unique(reader.table["location_id"])) == (6 if described else 10)
    assert _hashes(folder) == before
    straight = pack(source[0], tmp_path / "own", PackConfig()).manifest
    assert reader.manifest.sums == straight.sums
    assert main(["verify", str(folder), "--workers", "1"]) == 0


@pytest.mark.parametrize("codec", ["compact", pytest.param("smallest", marks=pytest.mark.nightly)])
def test_our_own_tars_are_indexed_again_when_the_indexes_are_lost(source, tmp_path, codec):
    pack(source[0], tmp_path / "own", PackConfig(tiles_per_shard=3, codec=codec))
    bare = tmp_path / "bare"
    bare.mkdir()
    for tar in (tmp_path / "own").glob("*.tar"):
        shutil.copy(tar, bare)
    assert main(["index", str(bare), "--workers", "2"]) == 0
    ours, bare_reader = ShardReader(tmp_path / "own"), ShardReader(bare)
    assert ours.table.tobytes() == bare_reader.table.tobytes()
    assert ours.manifest.content_hash == bare_reader.manifest.content_hash


def test_a_second_run_reads_only_what_is_new(source, tmp_path, capsys):
    folder = _write_tars(tmp_path / "tars", *source, "npy")
    main(["index", str(folder), "--workers", "1"])
    (folder / "data-1.index.json").unlink()
    capsys.readouterr()
    main(["index", str(folder), "--workers", "1"])
    assert "(1 read now" in capsys.readouterr().out


def _error(folder, capsys):
    assert main(["index", str(folder), "--workers", "1"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_what_cannot_be_indexed_is_one_line(source, tmp_path, capsys):
    folder = _write_tars(tmp_path / "tars", *source, "npy")
    shutil.copy(folder / "data-0.tar", folder / "data-9.tar")
    assert "is in data-0.tar and in data-9.tar" in _error(folder, capsys)
    (folder / "data-9.tar").unlink()
    os.truncate(folder / "data-2.tar", 60_000)
    assert str(folder / "data-2.tar") in _error(folder, capsys)
    (folder / "data-2.tar").unlink()
    (folder / "b.tar.gz").write_bytes(b"")
    assert "compressed tars" in _error(folder, capsys)
    (tmp_path / "empty").mkdir()
    assert "no .tar files" in _error(tmp_path / "empty", capsys)


def test_a_member_that_is_no_tile_is_set_aside(source, tmp_path, capsys):
    folder = _write_tars(tmp_path / "tars", *source, "npy")
    with webdataset.TarWriter(str(folder / "data-3.tar")) as writer:
        buffer = io.BytesIO()
        np.save(buffer, np.full((202, 4, 4), NODATA, np.int16))
        writer.write({"__key__": "small", "npy": buffer.getvalue()})
    assert main(["index", str(folder), "--workers", "1"]) == 0
    output = capsys.readouterr()
    assert "set aside: data-3.tar!small.npy: holds a tile of (202, 4, 4)" in output.err
    assert "indexed 10 tiles" in output.out


# ---- what the JSON of others says ----


@pytest.mark.parametrize("nothing", [None, "", "null", "None", "nan", float("nan")])
@pytest.mark.parametrize("name", ["location", "timestamp", "scene", "split", "date"])
def test_a_field_that_says_nothing_is_unknown(name, nothing):
    assert read_description(json.dumps({name: nothing}).encode())[0] == {}


@pytest.mark.parametrize(
    ("told", "known"),
    [
        ({"location": 17, "scene": "S", "split": "train"}, {"location": "17", "scene": "S", "split": "train"}),
        ({"date": "2022-07-24T23:30:00-05:00"}, {"date": "2022-07-25"}),
        ({"date": "2022-07-24T10:15:30.5Z"}, {"date": "2022-07-24"}),
        ({"date": "20220724"}, {"date": "2022-07-24"}),
        ({"lon": "13.5", "lat": -52}, {"lon": 13.5, "lat": -52.0}),
        ({"lon": -180, "lat": 90, "cloud": 0, "snow": "1"}, {"lon": -180.0, "lat": 90.0, "cloud": 0.0, "snow": 1.0}),
    ],
)
def test_what_is_possible_is_taken(told, known):
    assert read_description(json.dumps(told).encode()) == (known, {})


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ({"lon": 181, "lat": 50}, "lon"),
        ({"lon": 13, "lat": -90.5}, "lat"),
        ({"lon": "east", "lat": 50}, "lon"),
        ({"lon": float("inf"), "lat": 50}, "lon"),
        ({"lon": True, "lat": 50}, "lon"),
        ({"lon": [13], "lat": 50}, "lon"),
        ({"date": "24.07.2022"}, "date"),
        ({"date": "2022-13-01"}, "date"),
        ({"date": 1658620800}, "date"),
        ({"cloud": 37}, "cloud"),
        ({"cloud": -0.1}, "cloud"),
        ({"haze": 10**400}, "haze"),
        ({"location": {"lat": 1}}, "location"),
        ({"location": "a\ud800"}, "location"),
        ({"scene": "a\0"}, "scene"),
        ([1, 2], "JSON"),
        ("text", "JSON"),
        (None, "JSON"),
    ],
)
def test_what_cannot_be_true_is_unknown_and_told(told, wrong):
    known, reasons = read_description(json.dumps(told).encode())
    assert known == {} and list(reasons) == [wrong] and len(reasons[wrong].splitlines()) == 1


@settings(max_examples=60)
@given(
    st.binary(max_size=40)
    | st.recursive(st.none() | st.text() | st.floats() | st.integers(), st.lists).map(
        lambda value: json.dumps({"lon": value, "date": value, "location": value, "cloud": value}).encode()
    )
)
def test_any_json_is_read_or_told(data):
    known, _ = read_description(data)
    assert all(isinstance(value, str | float) for value in known.values())
    json.dumps(known, allow_nan=False).encode()


def _npy(values):
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def test_fields_that_cannot_be_true_are_a_line_a_field(source, tmp_path, capsys):
    folder, tile = tmp_path / "tars", _npy(next(iter(source[1].values())))
    folder.mkdir()
    told = [{"lon": 999, "lat": 5}, {"lon": 13, "lat": 52, "location": None}, {"lon": 400, "lat": 0, "cloud": 50}]
    members = [("x.npy", tile), ("x.json", b"[1]")]
    for number, one in enumerate(told):
        members += [(f"{number}.npy", tile), (f"{number}.json", json.dumps(one).encode())]
    write_tar(folder / "a.tar", members)
    assert main(["index", str(folder), "--workers", "1"]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(notes) == 3
    assert any("a.tar: sample '0': field 'lon' 999" in line and "in 2 samples" in line for line in notes)
    table = ShardReader(folder).table
    assert dict(zip(table["key"].tolist(), table["location"].tolist(), strict=True))[b"1"] == b"1"
    assert np.isnan(table["lat"]).sum() == 3 and np.isnan(table["cloud"]).all()


@pytest.mark.parametrize("names", [["s_V01.04_0.npy", "s_V01.04_1.npy"], ["x.hsi.npy"], ["d.v1/a.b.tif"]])
def test_names_with_dots_are_told_with_the_rule(source, tmp_path, capsys, names):
    folder, tile = tmp_path / "tars", _npy(next(iter(source[1].values())))
    folder.mkdir()
    write_tar(folder / "a.tar", [(name, tile) for name in names])
    line = _error(folder, capsys)
    assert "splits names at the first dot" in line and names[0].rpartition("/")[2] in line
    better = line.rpartition("e.g. '")[2].rstrip("'")
    assert better.count(".") == 1 and better.endswith(names[0].rpartition(".")[2])


def test_links_repeated_names_and_hidden_members_mean_what_they_do_in_a_tar(source, tmp_path):
    folder, tiles = tmp_path / "tars", [_npy(tile) for tile in list(source[1].values())[:3]]
    folder.mkdir()
    link = ("y.npy", tarfile.LNKTYPE, "x.npy")
    write_tar(
        folder / "a.tar", [("x.npy", tiles[0]), link, ("x.npy", tiles[1]), ("._x.npy", b"\0"), ("./z.npy", tiles[2])]
    )
    (folder / "._a.tar").write_bytes(b"\0\5\x16\7")
    assert main(["index", str(folder), "--workers", "1"]) == 0
    found = read_all(folder)
    assert {key: _npy(tile) for key, tile in found.items()} == {"x": tiles[1], "y": tiles[0], "z": tiles[2]}
    assert main(["verify", str(folder), "--workers", "1"]) == 0

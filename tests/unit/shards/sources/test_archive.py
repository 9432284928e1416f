"""Tar archives as streams: the tiles of the unpacked folder, and no end of the archive that is none."""

import gzip
import os
import pickle
import tarfile

import numpy as np
import pytest
from support.tiles import NODATA, spectra, write_archive, write_tile

from shards.errors import SourceError, TileError
from shards.pack.build import PackConfig, pack
from shards.sensors.sensor import get_sensor
from shards.sources import archive as archive_module
from shards.sources.archive import Archive
from shards.sources.geotiff import read_tile
from shards.sources.layouts import find_tiles

ENMAP = get_sensor("enmap")
SIZE = 4
MODES = {"tiles.tar": "w", "tiles.tar.gz": "w:gz"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten tiles in SpectralEarth's layout."""
    folder = tmp_path_factory.mktemp("tiles")
    write_archive(folder, SIZE)
    return folder


def _tar(folder, path, root="spectral_earth"):
    with tarfile.open(path, MODES[f"tiles.{path.name.split('.', 1)[1]}"]) as file:
        file.add(folder, arcname=root)
    return path


def _open(path):
    return Archive(path, path.name, ENMAP, SIZE)


def _until_error(path, skip=()):
    """What came before the error, and the error's line."""
    found = []
    with pytest.raises(SourceError) as caught:
        found.extend(_open(path).tiles(skip))
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and len(line.splitlines()) == 1
    return found, line


@pytest.fixture
def plain(folder, tmp_path):
    return _tar(folder, tmp_path / "tiles.tar")


@pytest.fixture
def members(plain):
    with tarfile.open(plain) as file:
        return [member for member in file if member.isfile()]


@pytest.mark.parametrize("root", ["enmap", "spectral_earth", "."])
@pytest.mark.parametrize("name", MODES)
def test_members_are_the_tiles_of_the_unpacked_folder(folder, tmp_path, name, root):
    path = _tar(folder, tmp_path / name, root)
    found = {source.key: (source, tile) for source, tile in _open(path).tiles(())}
    for expected in find_tiles(folder, "enmap"):
        source, tile = found.pop(expected.key)
        assert (source.location, source.timestamp) == (expected.location, expected.timestamp)
        assert source.path == f"{name}!{expected.path if root == '.' else f'{root}/{expected.path}'}"
        np.testing.assert_array_equal(tile.values, read_tile(folder / expected.path, ENMAP).values)
    assert not found


def test_label_tiles_and_other_files_in_an_archive_are_no_tiles(tmp_path):
    folder = tmp_path / "enmap_cdl"
    values = write_archive(folder, SIZE)
    write_archive(folder, SIZE, sensor="cdl")
    (folder / "readme.txt").write_text("about")
    found = {source.key: source.path for source, _ in _open(_tar(folder, tmp_path / "a.tar", "enmap_cdl")).tiles(())}
    assert found.keys() == values.keys()
    assert all(path.startswith("a.tar!enmap_cdl/enmap/") for path in found.values())


def test_published_hyspecnet_archive_holds_the_patches_of_its_folder(request):
    from conftest import _folder

    layout = _folder("layouts") / "hyspecnet"
    path = layout / "hyspecnet-11k-01.tar.gz"
    found = {source.key: (source, tile) for source, tile in Archive(path, path.name, ENMAP, 32).tiles(())}
    expected = find_tiles(layout / "hyspecnet-11k", "enmap")
    assert sorted(found) == [tile.key for tile in expected] and len(expected) == 2
    for tile in expected:
        source, streamed = found[tile.key]
        assert (source.scene, source.date) == (tile.scene, "2022-11-03")
        np.testing.assert_array_equal(streamed.values, read_tile(layout / "hyspecnet-11k" / tile.path, ENMAP).values)


def test_tiles_that_are_there_already_are_not_decoded(plain, members, monkeypatch):
    keys = [source.key for source, _ in _open(plain).tiles(())]
    decoded = []
    read = archive_module.tile_of
    monkeypatch.setattr(archive_module, "tile_of", lambda raster, *rest: decoded.append(raster) or read(raster, *rest))
    assert [source.key for source, _ in _open(plain).tiles(set(keys[3:]))] == keys[:3]
    assert len(decoded) == 3 < len(members)


def test_a_damaged_or_odd_member_is_an_error_of_its_own(folder, tmp_path):
    values = write_archive(tmp_path / "source", SIZE)
    (tmp_path / "source/enmap/0000231/00003.tif").write_bytes(b"II*\0 no tile")
    write_tile(tmp_path / "source/enmap/0150003/04411.tif", spectra(0, SIZE + 1), nodata=NODATA)
    found = {source.key: tile for source, tile in _open(_tar(tmp_path / "source", tmp_path / "a.tar")).tiles(())}
    bad = {key: str(tile) for key, tile in found.items() if isinstance(tile, TileError)}
    assert found.keys() == values.keys() and bad.keys() == {"0000231_00003", "0150003_04411"}
    assert all(line.startswith("a.tar!spectral_earth/enmap/") and "\n" not in line for line in bad.values())
    assert "5x5 px where 4x4" in bad["0150003_04411"]


def test_a_whole_product_in_an_archive_is_told_apart_from_a_tile(tmp_path):
    product = "ENMAP01-____L2A-DT0000004950_20221103T162438Z_001_V010110_20221118T145147Z"
    for name in (product, f"{product}-Y01460273_X05670694"):
        write_tile(tmp_path / "source" / f"{name}-SPECTRAL_IMAGE.TIF", spectra(0, SIZE + 1, bands=224), nodata=NODATA)
    found = {source.key: str(tile) for source, tile in _open(_tar(tmp_path / "source", tmp_path / "a.tar")).tiles(())}
    whole, patch = (found[key] for key in sorted(found, key=len))
    assert whole.endswith("unpack it and pack its folder")
    assert patch.endswith("5x5 px where 4x4 were expected")


# ---- archives that end where they should not ----


@pytest.mark.parametrize("number", [1, 4, 9])
def test_a_damaged_header_is_no_end(plain, members, number):
    data = bytearray(plain.read_bytes())
    data[members[number].offset + 148] ^= 0xFF  # the header's checksum
    plain.write_bytes(data)
    found, line = _until_error(plain)
    assert len(found) == number
    assert f"last complete member: {members[number - 1].name.rsplit('/', 2)[0]}" in line


def test_a_second_archive_behind_the_first_is_no_end(plain):
    plain.write_bytes(plain.read_bytes() * 2)
    _until_error(plain)


@pytest.mark.parametrize("where", ["between members", "in a header", "in the data", "before the mark"])
def test_an_archive_that_is_cut_anywhere_gives_its_whole_members_and_an_error(plain, members, where):
    cut = {
        "between members": members[5].offset,
        "in a header": members[5].offset + 100,
        "in the data": members[5].offset_data + members[5].size // 2,
        "before the mark": members[-1].offset_data + -(-members[-1].size // 512) * 512,
    }[where]
    os.truncate(plain, cut)
    found, line = _until_error(plain)
    whole = [member for member in members if member.offset_data + member.size <= cut]
    assert len(found) == len(whole) >= 5
    assert not any(isinstance(tile, TileError) for _, tile in found)
    assert "last complete member: spectral_earth/enmap" in line


def test_a_packed_archive_that_is_cut_anywhere_is_an_error(folder, tmp_path):
    path = _tar(folder, tmp_path / "tiles.tar.gz")
    whole = path.read_bytes()
    counts = []
    for share in (0.0, 0.01, 0.4, 0.9, 0.9999):
        path.write_bytes(whole[: int(share * len(whole))])
        counts.append(len(_until_error(path)[0]))
    assert counts == sorted(counts) and counts[0] == 0 < counts[-1]


@pytest.mark.parametrize("damage", ["checksum", "garbage behind", "bytes"])
def test_a_packed_archive_with_wrong_bytes_is_an_error_even_where_all_tiles_are_known(folder, tmp_path, damage):
    path = _tar(folder, tmp_path / "tiles.tar.gz")
    keys = {source.key for source, _ in _open(path).tiles(())}
    data = bytearray(path.read_bytes())
    if damage == "checksum":
        data[-8] ^= 1
    elif damage == "garbage behind":
        data += b"not packed"
    else:
        data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    _until_error(path, skip=keys)


@pytest.mark.parametrize("content", [b"", b"<html>401 Unauthorized</html>", b"\x1f\x8b"])
def test_a_file_that_is_no_archive_is_an_error(tmp_path, content):
    path = tmp_path / "part_1.tar.gz"
    path.write_bytes(content)
    assert _until_error(path)[0] == []


def test_zeros_behind_the_end_are_no_damage(plain, members, tmp_path):
    padded = tmp_path / "padded.tar"
    padded.write_bytes(plain.read_bytes() + bytes(1 << 20))
    packed = tmp_path / "padded.tar.gz"
    packed.write_bytes(gzip.compress(padded.read_bytes()))
    assert len(list(_open(padded).tiles(()))) == len(list(_open(packed).tiles(()))) == len(members)


# ---- what pack needs of a bundle ----


def test_an_archive_travels_to_another_process(plain):
    archive = pickle.loads(pickle.dumps(_open(plain)))
    assert len(list(archive.tiles(()))) == 10


def test_a_fingerprint_changes_with_the_file(plain):
    archive = _open(plain)
    before = archive.fingerprint()
    assert archive.fingerprint() == before
    os.utime(plain, (1, 1))
    touched = archive.fingerprint()
    plain.write_bytes(plain.read_bytes() + bytes(512))
    os.utime(plain, (1, 1))
    assert len({before, touched, archive.fingerprint()}) == 3


def test_archives_without_tiles_are_refused_and_leave_the_folder_free(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "readme.txt").write_text("no tile")
    with tarfile.open(source / "a.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "readme.txt", "readme.txt")
    for _ in range(2):
        with pytest.raises(SourceError, match=r"a\.tar\.gz: they contain no tile"):
            pack(source, tmp_path / "shards", PackConfig())

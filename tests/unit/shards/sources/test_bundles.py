"""Deliveries as they come: tars with links and repeated names, zips in archives, scenes, all of it side by side."""

import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support.datasets import read_all
from support.deliveries import SIZE, pixels, write_envi, write_tar
from support.tiles import NODATA, spectra, write_tile

from shards.__main__ import main
from shards.errors import SourceError, TileError
from shards.pack.build import pack
from shards.pack.scan import PackConfig
from shards.read.reader import ShardReader
from shards.sensors.sensor import get_sensor
from shards.sources import inputs
from shards.sources.archive import Archive
from shards.sources.bundles import TileOptions
from shards.sources.limits import SceneLimits

ENMAP = get_sensor("enmap")
CONFIG = PackConfig(size=SIZE)


def _found(path):
    """The last tile of each key, as text where it is an error."""
    archive = Archive(path, path.name, ENMAP, SIZE)
    return {source.path.partition("!")[2]: tile for source, tile in archive.tiles(())}


def _assert_tiles(found, wanted):
    assert found.keys() == wanted.keys()
    for name, letter in wanted.items():
        np.testing.assert_array_equal(found[name].values, pixels(letter))


# ---- links and repeated names in tars ----


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_hard_link_is_a_file_of_its_own_with_the_content_of_the_member(tiles, tmp_path, mode):
    path = write_tar(tmp_path / "a.tar.gz", [("x.tif", tiles["a"]), ("y.tif", tarfile.LNKTYPE, "x.tif")], mode)
    _assert_tiles(_found(path), {"x.tif": "a", "y.tif": "a"})


def test_a_hard_link_has_the_content_that_its_target_had_by_then(tiles, tmp_path):
    members = [("x.tif", tiles["a"]), ("y.tif", tarfile.LNKTYPE, "x.tif"), ("x.tif", tiles["b"])]
    _assert_tiles(_found(write_tar(tmp_path / "a.tar", members)), {"x.tif": "b", "y.tif": "a"})


def test_a_later_member_replaces_an_earlier_one(tiles, tmp_path):
    members = [("./x.tif", tiles["a"]), ("y.tif", tiles["b"]), ("x.tif", tiles["c"])]
    path = write_tar(tmp_path / "a.tar", members)
    _assert_tiles(_found(path), {"x.tif": "c", "y.tif": "b"})
    pack(path, tmp_path / "shards", CONFIG)
    assert {key: tile.tolist() for key, tile in read_all(tmp_path / "shards").items()} == {
        "x_00000": pixels("c").tolist(),
        "y_00000": pixels("b").tolist(),
    }
    assert main(["verify", str(tmp_path / "shards"), "--source", str(path), "--workers", "1"]) == 0


@pytest.mark.parametrize("good_last", [True, False])
def test_of_a_whole_and_a_damaged_member_of_one_name_the_later_counts(tiles, tmp_path, good_last):
    members = [("y.tif", tiles["b"]), ("x.tif", b"II*\0 no tile"), ("x.tif", tiles["a"])]
    path = write_tar(tmp_path / "a.tar", members if good_last else [members[0], members[2], members[1]])
    result = pack(path, tmp_path / "shards", CONFIG, max_bad=0.6)
    assert (result.manifest.tiles, len(result.rejected)) == ((2, 0) if good_last else (1, 1))


def test_a_symbolic_link_is_another_name_of_one_tile(tiles, tmp_path):
    members = [
        ("v1/x.tif", tiles["a"]),
        ("latest", tarfile.SYMTYPE, "v1"),
        ("v2/x.tif", tarfile.SYMTYPE, "../v1/x.tif"),
    ]
    _assert_tiles(_found(write_tar(tmp_path / "a.tar", members)), {"v1/x.tif": "a"})


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_to_what_is_no_tile_by_name_is_the_tile(tiles, tmp_path, kind):
    members = [(".blobs/1", tiles["a"]), ("x.tif", kind, ".blobs/1"), ("y.tif", tiles["b"])]
    _assert_tiles(_found(write_tar(tmp_path / "a.tar", members)), {"x.tif": "a", "y.tif": "b"})


def test_a_link_to_nothing_is_set_aside_with_its_target(tiles, tmp_path):
    members = [("x.tif", tiles["a"]), ("y.tif", tarfile.SYMTYPE, "/data/y.tif"), ("z.tif", tarfile.SYMTYPE, "z.tif")]
    found = _found(write_tar(tmp_path / "a.tar", members))
    assert "a link to /data/y.tif, which is not in the archive" in str(found["y.tif"])
    assert isinstance(found["z.tif"], TileError) and len(found) == 3


def test_names_of_any_script_in_an_archive_have_keys_of_their_own(tiles, tmp_path):
    names = ["上海.tif", "北京.tif", "a b.tif", "a-b.tif", "dir/._a.tif", "__MACOSX/x.tif"]
    path = write_tar(tmp_path / "a.tar", [(name, tiles["a"]) for name in names])
    pack(path, tmp_path / "shards", CONFIG)
    assert len(read_all(tmp_path / "shards")) == 4


@pytest.mark.parametrize("ending", ["bz2", "xz"])
def test_other_compressions_are_read(tiles, tmp_path, ending):
    path = write_tar(tmp_path / f"a.tar.{ending}", [("x.tif", tiles["a"])], f"w:{ending}")
    pack(path, tmp_path / "shards", CONFIG)
    assert read_all(tmp_path / "shards").keys() == {"x_00000"}
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SourceError, match="download it again"):
        _found(path)


def test_a_zip_of_tiles_is_an_archive(tiles, tmp_path):
    path = tmp_path / "tiles.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, letter in {"d/x.tif": "a", "d/y.tif": "b", "__MACOSX/d/._x.tif": "c", "readme.txt": "c"}.items():
            file.writestr(name, tiles[letter])
    pack(path, tmp_path / "shards", CONFIG)
    assert read_all(tmp_path / "shards").keys() == {"d-x_00000", "d-y_00000"}
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF  # in the first member
    path.write_bytes(data)
    found = _found(path)
    assert "damaged" in str(found["d/x.tif"]) and not isinstance(found["d/y.tif"], TileError)


def test_envi_files_in_an_archive_are_tiles(tmp_path):
    write_envi(tmp_path / "envi" / "x.dat", spectra(0, SIZE))
    write_envi(tmp_path / "envi" / "x2", spectra(1, SIZE))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "envi", "envi")
    _assert_tiles(_found(tmp_path / "a.tar.gz"), {"envi/x.dat": "a", "envi/x2": "b"})


# ---- products in archives ----


def _zipped(product, name=""):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for member in product.iterdir():
            file.write(member, f"{name or product.name}/{member.name}")
    return buffer.getvalue()


def test_a_delivery_of_zipped_products_is_packed_as_it_came_or_unpacked(product, tmp_path):
    inner = f"dims_op_oc_1/ENMAP.HSI.L2A/{product.name}.ZIP"
    outer = write_tar(
        tmp_path / "dims_op_oc_1.tar.gz", [("dims_op_oc_1/readme.txt", b"x"), (inner, _zipped(product))], "w:gz"
    )
    (tmp_path / "unpacked" / inner).parent.mkdir(parents=True)
    (tmp_path / "unpacked" / inner).write_bytes(_zipped(product))
    config = PackConfig(size=32, limits=SceneLimits(cloud=None))
    found = []
    for number, source in enumerate([outer, tmp_path / "unpacked", product]):
        dest = tmp_path / f"shards-{number}"
        pack(source, dest, config)
        found.append({key: tile.tobytes() for key, tile in read_all(dest).items()})
        assert not list(dest.glob("spool*"))
        assert main(["verify", str(dest), "--source", str(source), "--workers", "1"]) == 0
    assert found[0] == found[1] == found[2] and len(found[0]) > 4


@pytest.mark.parametrize("damage", ["cut", "no zip", "no metadata"])
def test_a_damaged_product_in_an_archive_is_named_with_the_archive(product, tmp_path, capfd, damage):
    data = {"cut": _zipped(product)[:-300], "no zip": b"<html>", "no metadata": b""}[damage]
    if damage == "no metadata":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr(f"{product.name}-METADATA.XML", "<level_X/>")
        data = buffer.getvalue()
    outer = write_tar(tmp_path / "dims.tar.gz", [("d/p.ZIP", data)], "w:gz")
    assert main(["pack", str(outer), str(tmp_path / "shards"), "--workers", "1"]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert f"{outer}!d/p.ZIP" in line and "unpack dims.tar.gz" in line and "tmp:" not in line
    assert not list((tmp_path / "shards").glob("spool-*/*.tmp"))


def test_tiles_archives_and_products_side_by_side_are_packed_together(product, tiles, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(product, source / "2022" / product.name)
    size = 32
    for number in range(3):
        write_tile(source / f"t{number}.tif", spectra(number, size), nodata=NODATA)
    data = write_tile(tmp_path / "u.tif", spectra(9, size), nodata=NODATA).read_bytes()
    write_tar(source / "more.tar", [("u.tif", data)])
    result = pack(source, tmp_path / "shards", PackConfig(limits=SceneLimits(cloud=None)), workers=2)
    assert result.manifest.tile_shape == [202, size, size]  # of the plain tiles
    found = read_all(tmp_path / "shards")
    assert {"t0_00000", "t1_00000", "t2_00000", "u_00000"} < found.keys() and len(found) > 8
    np.testing.assert_array_equal(found["t2_00000"], spectra(2, size))
    assert main(["verify", str(tmp_path / "shards"), "--source", str(source), "--workers", "1"]) == 0


# ---- plain scenes ----


@pytest.mark.parametrize(("name", "driver"), [("mosaic.tif", "GTiff"), ("mosaic.dat", "ENVI"), ("mosaic.bin", "ENVI")])
@pytest.mark.parametrize("alone", [True, False])
def test_a_scene_is_cut_into_tiles_at_their_true_places(mosaic, tmp_path, capsys, name, driver, alone):
    path = write_envi(tmp_path / "source" / name, mosaic, driver)
    if name.endswith(".bin"):
        os.rename(path.with_suffix(".hdr"), f"{path}.hdr")
    source, dest = path if alone else path.parent, tmp_path / "shards"
    assert main(["pack", str(source), str(dest), "--size", "6", "--workers", "1"]) == 0
    assert f"{19 * 14 - 6 * 36} px at the rims of scenes excluded" in capsys.readouterr().out
    found = read_all(dest)
    assert found.keys() == {f"mosaic-{row}-{column}_00000" for row in range(3) for column in range(2)}
    np.testing.assert_array_equal(found["mosaic-2-1_00000"], mosaic[:, 12:18, 6:12])
    table = ShardReader(dest).table
    assert len(np.unique(table["lat"])) >= 3 and len(np.unique(table["lon"])) >= 2
    assert set(table["scene"]) == {b"mosaic"}
    assert main(["verify", str(dest), "--source", str(source), "--workers", "1"]) == 0


def test_a_lone_scene_needs_no_size(mosaic, tmp_path):
    path = write_envi(tmp_path / "mosaic.tif", mosaic, "GTiff")
    assert pack(path, tmp_path / "shards", PackConfig()).manifest.tile_shape == [202, 14, 14]


def test_a_tile_that_holds_nothing_is_left_out_and_told(mosaic, tmp_path, capsys):
    values = mosaic.copy()
    values[:, :6, :6] = NODATA
    path = write_envi(tmp_path / "mosaic.tif", values, "GTiff")
    assert main(["pack", str(path), str(tmp_path / "shards"), "--size", "6", "--workers", "1"]) == 0
    assert "packed 5 tiles" in (told := capsys.readouterr().out) and "1 excluded (no measured pixel)" in told


def test_scenes_tiles_and_smaller_rasters_beside_each_other(mosaic, tmp_path):
    write_envi(tmp_path / "source/mosaic.tif", mosaic, "GTiff")
    for name, size in (("tile", 6), ("small", 5)):
        write_tile(tmp_path / f"source/{name}.tif", spectra(1, size), nodata=NODATA)
    result = pack(tmp_path / "source", tmp_path / "shards", PackConfig(size=6), max_bad=0.2)
    assert result.manifest.tiles == 7 and "tile_00000" in read_all(tmp_path / "shards")
    assert [(Path(bad.path).name, bad.reason) for bad in result.rejected] == [
        ("small.tif", "5x5 px where 6x6 were expected")
    ]


def test_a_scene_with_other_bands_is_set_aside_with_the_reason(mosaic, tmp_path, capfd):
    path = write_envi(tmp_path / "rgb.tif", mosaic[:3], "GTiff")
    assert main(["pack", str(path), str(tmp_path / "shards"), "--size", "6", "--workers", "1"]) == 1
    assert "3 bands without wavelengths" in capfd.readouterr().err


def test_without_a_size_the_advice_is_to_give_one_and_it_works(mosaic, tmp_path, capfd):
    write_envi(tmp_path / "source/mosaic.tif", mosaic, "GTiff")
    command = ["pack", str(tmp_path / "source"), str(tmp_path / "shards"), "--workers", "1"]
    assert main(command) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith("cut them into tiles, e.g. with --size 14") and "19x14 px" in line
    assert main([*command, "--size", "14"]) == 0


def test_headers_of_all_files_are_read_only_where_a_probe_is_a_scene(tmp_path, monkeypatch):
    for number in range(80):
        write_tile(tmp_path / f"t{number}.tif", spectra(0, SIZE, 2), nodata=NODATA)
    opened = []
    shape = inputs.raster_shape
    monkeypatch.setattr(inputs, "raster_shape", lambda path: opened.append(path) or shape(path))
    assert inputs.find_bundles(tmp_path, TileOptions(ENMAP, SIZE, cut=True)) == []
    assert len(opened) <= 40


# ---- limits and options ----

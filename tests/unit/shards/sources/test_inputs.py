"""Archives, products and tiles of a source: found at any depth, each once, nothing overlooked."""

import os
import zipfile

import pytest
from support.deliveries import touch
from support.tiles import ARCHIVE, archive_names

from shards.errors import SourceError
from shards.sensors.sensor import get_sensor
from shards.sources import walk
from shards.sources.bundles import TileOptions
from shards.sources.inputs import find_bundles

PRODUCT = "ENMAP01-____L2A-DT0000004950_20221103T162438Z_001_V010110_20221118T145147Z"

OTHER = PRODUCT.replace("_001_", "_002_")


def _bundles(source):
    return find_bundles(source, TileOptions(get_sensor("enmap"), 128))


def _zip(path, *names):
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, b"")


def test_archives_and_products_are_found_by_name_in_order(tmp_path):
    touch(tmp_path, "part_2.tar.gz", "part_1.TAR", "c.tgz", "notes.txt", "checksums/md5.txt")
    touch(tmp_path, f"{PRODUCT}/{PRODUCT}-METADATA.XML", f"{PRODUCT}/{PRODUCT}-SPECTRAL_IMAGE.TIF")
    _zip(tmp_path / "product.zip", f"{OTHER}/{OTHER}-METADATA.XML")
    _zip(tmp_path / "docs.zip", "readme.txt")
    names = [PRODUCT, "c.tgz", "part_1.TAR", "part_2.tar.gz", "product.zip"]
    assert [bundle.name for bundle in _bundles(tmp_path)] == names
    for name in names:
        assert [bundle.name for bundle in _bundles(tmp_path / name)] == [name]


def test_a_directory_of_tiles_holds_no_bundles_and_each_folder_is_listed_once(tmp_path, monkeypatch):
    touch(tmp_path, *archive_names(""))
    listed = []

    class Watched:
        def __getattr__(self, name):
            return getattr(os, name)

        def scandir(self, path):
            listed.append(str(path))
            return os.scandir(path)

    monkeypatch.setattr(walk, "os", Watched())
    assert _bundles(tmp_path) == []
    assert len(listed) == len(set(listed)) == len(ARCHIVE) + 1  # an archive has 415,000 of them


def test_products_archives_and_tiles_at_any_depth_are_bundles_of_one_source(tmp_path):
    touch(tmp_path, "x.tif", "more/y.TIFF", "2022/a/part_1.tar", f"2023/{PRODUCT}/{PRODUCT}-METADATA.XML")
    touch(tmp_path, f"2023/{PRODUCT}/{PRODUCT}-SPECTRAL_IMAGE.TIF", f"2023/{PRODUCT}/{PRODUCT}-QL_SWIR.TIF")
    _zip(tmp_path / "deep" / "product.ZIP", f"{OTHER}-METADATA.XML", f"{OTHER}-SPECTRAL_IMAGE.TIF")
    bundles = {bundle.name: bundle for bundle in _bundles(tmp_path)}
    assert bundles.keys() == {"2022/a/part_1.tar", f"2023/{PRODUCT}", "deep/product.ZIP", "plain tiles 1"}
    assert [tile.path for tile in bundles["plain tiles 1"].sources] == ["more/y.TIFF", "x.tif"]


def test_a_shard_folder_below_the_source_is_no_source(tmp_path):
    touch(tmp_path, "x.tif", "shards/pack.json", "shards/shard-000000.tar")
    assert _bundles(tmp_path) == []


def test_the_same_product_twice_is_named_before_it_is_read(tmp_path):
    touch(tmp_path, f"a/{PRODUCT}-METADATA.XML")
    _zip(tmp_path / "product.zip", f"{PRODUCT}/{PRODUCT}-METADATA.XML")
    with pytest.raises(SourceError, match=r"product\.zip and a are the same product .*: remove one"):
        _bundles(tmp_path)


def test_a_zip_that_broke_off_is_not_overlooked(tmp_path):
    touch(tmp_path, "part_1.tar")
    _zip(tmp_path / "product.zip", f"{PRODUCT}/{PRODUCT}-METADATA.XML", f"{PRODUCT}/{PRODUCT}-SPECTRAL_IMAGE.TIF")
    os.truncate(tmp_path / "product.zip", 200)
    for source in (tmp_path, tmp_path / "product.zip"):
        with pytest.raises(SourceError, match="not a readable zip file") as caught:
            _bundles(source)
        assert str(tmp_path / "product.zip") in str(caught.value)


def test_several_products_in_one_folder_or_zip_are_all_found(tmp_path):
    names = [f"{PRODUCT}-METADATA.XML", f"{OTHER}-METADATA.XML"]
    touch(tmp_path / "folder", *names)
    _zip(tmp_path / "both.zip", *(f"delivery/{name}" for name in names), "__MACOSX/._a-METADATA.XML")
    for source in (tmp_path / "folder", tmp_path / "both.zip"):
        assert [bundle.name for bundle in _bundles(source)] == [f"{source.name}!{name}" for name in (PRODUCT, OTHER)]


def test_other_sources_are_refused_or_hold_nothing(tmp_path):
    touch(tmp_path, "a.tif")
    _zip(tmp_path / "docs.zip", "readme.txt")
    for name in ("a.tif", "docs.zip"):
        with pytest.raises(SourceError, match="neither an archive"):
            _bundles(tmp_path / name)
    with pytest.raises(SourceError, match="no such directory"):
        _bundles(tmp_path / "absent")
    assert _bundles(tmp_path) == []

"""EnMAP products, archives and labeled tiles become shards: places, dates, restarts, and what is refused."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from support.datasets import keys_of, read_all
from support.scenes import ENMAP, SIZE, tiles_of
from support.tiles import NODATA, folder_bytes, spectra, write_archive, write_tile

from shards.__main__ import main
from shards.config import REPOSITORY
from shards.errors import ShardError, SourceError, TileError
from shards.format.manifest import read_manifest
from shards.pack.build import Part, merge, pack, pack_part
from shards.pack.scan import PackConfig
from shards.read.reader import ShardReader
from shards.sources.archive import Archive
from shards.sources.layouts import find_tiles
from shards.sources.limits import SceneLimits

CONFIG = PackConfig(size=SIZE, tiles_per_shard=5)


@pytest.fixture(scope="module")
def packed(products, tmp_path_factory):
    dest = tmp_path_factory.mktemp("packed") / "shards"
    assert main(["pack", str(products[0].parent), str(dest), "--size", "64", "--tiles-per-shard", "5"]) == 0
    return dest


def test_products_become_shards_with_their_places_dates_and_quality(products, packed):
    expected = {key: tile for path in products for key, (_, tile) in tiles_of(path, SceneLimits()).items()}
    values, reader = read_all(packed), ShardReader(packed)
    assert values.keys() == expected.keys()
    for key, tile in expected.items():
        np.testing.assert_array_equal(values[key], tile.values)
    rows = {reader.key(row): reader.table[row] for row in range(len(reader))}
    for key, tile in expected.items():
        assert rows[key]["cloud"] == pytest.approx(tile.quality["cloud"])
        assert str(rows[key]["date"]) == tile.date
        assert (rows[key]["lon"], rows[key]["lat"]) == pytest.approx(tile.center_lonlat(), abs=1e-4)
    assert 12 < reader.table["lon"].min() < 15 and 51 < reader.table["lat"].min() < 53
    assert len(np.unique(reader.table["location_id"])) < len(reader)  # some places twice
    assert not list(packed.glob("spool*"))


def test_parts_restarts_and_workers_make_the_same_bytes(products, packed, tmp_path):
    source = products[0].parent
    pack_part(source, tmp_path, CONFIG, Part(2, 2))
    with pytest.raises(ShardError, match="has not been read yet"):
        merge(tmp_path)
    mark = next((tmp_path / "spool-000").glob("*.done.json"))
    mark.unlink()  # as if it was killed just before it was done
    pack_part(source, tmp_path, CONFIG, Part(2, 2))
    pack_part(source, tmp_path, CONFIG, Part(1, 2))
    merge(tmp_path, workers=2)
    assert folder_bytes(tmp_path) == folder_bytes(packed)


def test_a_changed_product_is_noticed_at_a_restart(products, tmp_path):
    source = Path(shutil.copytree(products[0].parent, tmp_path / "source"))
    pack_part(source, tmp_path / "shards", CONFIG, Part(1, 2))
    os.utime(next(source.glob("*/*METADATA.XML")), (1, 1))
    with pytest.raises(ShardError, match="changed since pack began"):
        pack_part(source, tmp_path / "shards", CONFIG, Part(2, 2))


def _tar(folder, path, mode="w:gz"):
    with tarfile.open(path, mode) as file:
        file.add(folder, arcname="spectral_earth")
    return path


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("part_1.tar.gz", "w:gz"),
        pytest.param("part_1.tar", "w", marks=pytest.mark.nightly),
        pytest.param("part_1.tgz", "w:gz", marks=pytest.mark.nightly),
    ],
)
def test_an_archive_makes_the_same_dataset_as_its_tiles(tmp_path, name, mode):
    values = write_archive(tmp_path / "source")
    config = PackConfig(size=8, tiles_per_shard=3)
    straight = pack(tmp_path / "source", tmp_path / "straight", config).manifest
    result = pack(_tar(tmp_path / "source", tmp_path / name, mode), tmp_path / "shards", config, workers=2)
    found, reader = read_all(tmp_path / "shards"), ShardReader(tmp_path / "shards")
    assert found.keys() == values.keys()
    for key, tile in values.items():
        np.testing.assert_array_equal(found[key], tile)
    assert result.manifest.sums == straight.sums
    assert [entry.tiles for entry in result.manifest.shards] == [entry.tiles for entry in straight.shards]
    assert keys_of(reader) == keys_of(ShardReader(tmp_path / "straight"))


def test_an_archive_that_ends_early_is_one_line_that_names_the_last_whole_member(tmp_path, capfd):
    write_archive(tmp_path / "source", size=16)
    path = _tar(tmp_path / "source", tmp_path / "part_1.tar.gz")
    os.truncate(path, path.stat().st_size // 2)
    assert main(["pack", str(path), str(tmp_path / "shards"), "--size", "16", "--workers", "1"]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert str(path) in line and "last complete member: spectral_earth/enmap/" in line


def test_a_damaged_member_is_set_aside(tmp_path):
    values = write_archive(tmp_path / "source")
    (tmp_path / "source/enmap/0000231/00003.tif").write_bytes(b"II*\0 no tile")
    path = _tar(tmp_path / "source", tmp_path / "a.tar")
    found = list(Archive(path, path.name, ENMAP, 8).tiles(()))
    assert [source.key for source, tile in found if isinstance(tile, TileError)] == ["0000231_00003"]
    result = pack(path, tmp_path / "shards", PackConfig(size=8), max_bad=0.2)
    assert (result.manifest.tiles, len(result.rejected)) == (len(values) - 1, 1)
    assert "a.tar!spectral_earth/enmap/0000231/00003.tif" in result.rejected[0].path


def test_the_same_tile_in_two_archives_is_refused(tmp_path):
    write_archive(tmp_path / "source")
    (tmp_path / "tars").mkdir()
    for name in ("a.tar", "b.tar"):
        _tar(tmp_path / "source", tmp_path / "tars" / name, "w")
    with pytest.raises(ShardError, match="have the same sample key"):
        pack(tmp_path / "tars", tmp_path / "shards", PackConfig(size=8))


def test_hyspecnet_patches_are_places_with_scene_and_date(tmp_path):
    name = "ENMAP01-____L2A-DT0000004950_20221103T162438Z_001_V010110_20221118T145147Z-Y01460273_X05670694"
    folder = tmp_path / "patches" / "scene" / name
    write_tile(folder / f"{name}-SPECTRAL_IMAGE.TIF", spectra(0, 8, bands=224), nodata=NODATA)
    write_tile(folder / f"{name}-QL_PIXELMASK.TIF", spectra(0, 8, bands=1), nodata=NODATA)
    (tile,) = find_tiles(tmp_path, "enmap")
    assert tile.key == "DT0000004950-001-Y01460273-X05670694_20221103T162438Z"
    assert tile.date == "2022-11-03"
    assert tile.scene == name.rsplit("-", 1)[0]
    manifest = pack(tmp_path, tmp_path / "shards", PackConfig()).manifest
    assert (manifest.tiles, manifest.tile_shape) == (1, [202, 8, 8])


def test_a_pattern_chooses_the_tiles(tmp_path):
    for name in ("a/x_image.tif", "a/x_mask.tif", "b/c/y_image.tif", "z_image.tif"):
        write_tile(tmp_path / name, spectra(0, 4), nodata=NODATA)
    assert [tile.path for tile in find_tiles(tmp_path, "enmap", "**/*_image.tif")] == [
        "a/x_image.tif",
        "b/c/y_image.tif",
        "z_image.tif",
    ]
    with pytest.raises(SourceError, match="files like"):
        find_tiles(tmp_path, "enmap", "*.jp2")


def test_published_hyspecnet_files_are_read(request):
    from conftest import _folder

    folder = _folder("layouts") / "hyspecnet"
    config = PackConfig(size=32)
    straight = pack(folder / "hyspecnet-11k", request.getfixturevalue("tmp_path") / "a", config).manifest
    archive = pack(folder / "hyspecnet-11k-01.tar.gz", request.getfixturevalue("tmp_path") / "b", config).manifest
    assert straight.tiles == archive.tiles == 2
    assert straight.sums == archive.sums


def test_label_tiles_and_splits_travel_with_their_tiles(tmp_path, capfd):
    values = write_archive(tmp_path / "images")
    rng, masks = np.random.default_rng(0), {}
    for key in values:
        location, timestamp = key.split("_")
        masks[key] = rng.integers(0, 7, (8, 8)).astype(np.uint8)
        write_tile(tmp_path / "labels/enmap" / location / f"{timestamp}.tif", masks[key])
    command = ["pack", str(tmp_path / "images"), str(tmp_path / "shards"), "--labels", str(tmp_path / "labels")]
    assert main([*command, "--workers", "1"]) == 0
    reader = ShardReader(tmp_path / "shards")
    for row in range(len(reader)):
        np.testing.assert_array_equal(reader.read_mask(row), masks[reader.key(row)])
    assert set(reader.table["split"]) == {b"train", b"val", b"test"}
    with tarfile.open(next((tmp_path / "shards").glob("*.tar"))) as tar:
        names = tar.getnames()
        mask = np.load(io.BytesIO(tar.extractfile(names[2]).read()))
    assert [name.split(".", 1)[1] for name in names[:3]] == ["tile", "json", "mask.npy"]
    np.testing.assert_array_equal(mask, masks[names[2].split(".")[0]])
    assert read_manifest(tmp_path / "shards").tiles == len(values)
    (tmp_path / "labels/enmap").rename(tmp_path / "images/corine")  # as published: two folders side by side
    beside = ["--labels", str(tmp_path / "images/corine"), "--workers", "1"]
    assert main([*command[:2], str(tmp_path / "beside"), *beside]) == 0
    check = ["verify", str(tmp_path / "beside"), "--source", str(tmp_path / "images"), *beside]
    assert main(check) == 0
    (tmp_path / "images/corine").rename(tmp_path / "labels/enmap")
    (tmp_path / "labels/enmap/0000017/00003.tif").unlink()
    assert main([*command[:2], str(tmp_path / "other"), *command[3:]]) == 2
    assert "no label tile for this image" in capfd.readouterr().err


def _kill_while_packing(source, dest, seconds):
    command = [sys.executable, "-m", "shards", "pack", str(source), str(dest), "--size", "32", "--tiles-per-shard", "4"]
    process = subprocess.Popen(
        [*command, "--workers", "2"], cwd=REPOSITORY, stderr=subprocess.DEVNULL, start_new_session=True
    )
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.nightly
def test_kill_9_while_archives_are_read_gives_the_bytes_of_an_uninterrupted_run(tmp_path):
    scenes = {f"{number:07d}": ("00001", "00002") for number in range(40)}
    (tmp_path / "tars").mkdir()
    for part in range(2):
        some = {place: dates for number, (place, dates) in enumerate(scenes.items()) if number % 2 == part}
        write_archive(tmp_path / f"source-{part}", 32, some)
        _tar(tmp_path / f"source-{part}", tmp_path / "tars" / f"part_{part}.tar.gz")
    config = PackConfig(size=32, tiles_per_shard=4)
    pack(tmp_path / "tars", tmp_path / "whole", config)
    rng = np.random.default_rng(3)
    for number in range(8):
        dest = tmp_path / f"killed-{number}"
        for _ in range(3):
            _kill_while_packing(tmp_path / "tars", dest, float(rng.uniform(0.3, 3)))
        pack(tmp_path / "tars", dest, config)
        assert folder_bytes(dest) == folder_bytes(tmp_path / "whole")

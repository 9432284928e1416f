"""Options of pack for archives, products and scenes: limits, dry runs, and one line for those that do nothing."""

import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from support.datasets import read_all
from support.deliveries import SIZE, pixels, write_envi, write_tar
from support.tiles import spectra, write_tile

from shards.__main__ import main
from shards.pack.build import pack
from shards.pack.scan import PackConfig
from shards.sensors.sensor import get_sensor
from shards.sources.geotiff import read_tile

ENMAP = get_sensor("enmap")


def test_where_limits_leave_nothing_the_option_is_named_and_it_works(product, tmp_path, capfd):
    source = Path(shutil.copytree(product, tmp_path / product.name))
    with rasterio.open(next(source.glob("*CLOUD.TIF")), "r+") as file:
        file.write(np.ones((1, file.height, file.width), np.uint8))
    command = ["pack", str(source), str(tmp_path / "shards"), "--size", "64", "--workers", "1"]
    assert main(command) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert "by --max-cloud 0.1" in line
    assert main([*command, *line.rpartition("include them with ")[2].split()]) == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--splits", "."], "--splits has no effect without --labels"),
        (["--labels", "absent"], "absent: no such folder"),
        (["--labels", ".", "--splits", "absent"], "absent: no such folder"),
        (["--labels", ".", "--pattern", "*.tif"], "--pattern has no effect with --labels"),
        (["--max-cloud", "0.5"], "--max-cloud applies to tiles cut from products"),
        (["--max-nodata", "none", "--dry-run"], "--max-nodata applies to"),
        (["--part", "1/2", "--dry-run"], "--part has no effect with --dry-run"),
        (["--part", "1/2", "--max-bad", "0.5"], "--max-bad has no effect with --part"),
        (["--append"], "nothing to append to"),
        (["--append", "--dry-run"], "nothing"),
        (["--pattern", "*.jp2"], "expected files like '*.jp2'"),
        (["--size", "x"], "--size: 'x' is not a whole number above 0"),
        (["--size", "0"], "--size: '0' is not a whole number above 0"),
        (["--size", "-3"], "--size: '-3' is not a whole number above 0"),
        (["--workers", "1.5"], "--workers: '1.5' is not a whole number above 0"),
        (["--seed", "a"], "--seed: 'a' is not a whole number"),
        (["--part", "3/2"], "--part: '3/2' is not K/N with K from 1 to N"),
        (["--max-cloud", "nan"], "--max-cloud: 'nan' is neither a share from 0 to 1 nor 'none'"),
        (["--max-haze", "-1"], "--max-haze: '-1' is neither a share from 0 to 1 nor 'none'"),
        (["--max-bad", "2"], "--max-bad: '2' is not a share from 0 to 1"),
        (["--codec", "zip"], "unknown codec 'zip'"),
        (["--sise", "3"], "unrecognized arguments: --sise"),
    ],
)
def test_options_that_do_nothing_or_are_wrong_are_one_line(source, tmp_path, capfd, monkeypatch, options, told):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["pack", str(source), str(tmp_path / "shards"), *options])
    except SystemExit as exit:
        code = exit.code
    output = capfd.readouterr()
    assert (code, output.out) == (2, "")
    (line,) = output.err.splitlines()
    assert line.startswith("error: ") and told in line
    assert not (tmp_path / "shards").exists()


def test_a_pattern_is_for_folders(tiles, tmp_path, capfd):
    path = write_tar(tmp_path / "a.tar", [("x.tif", tiles["a"])])
    assert main(["pack", str(path), str(tmp_path / "shards"), "--pattern", "*.tif"]) == 2
    assert "--pattern chooses files of a folder" in capfd.readouterr().err


def test_a_dry_run_of_labeled_tiles_tells_their_splits(source, tmp_path, capsys):
    for path in source.glob("*.tif"):
        write_tile(tmp_path / "labels" / path.name, np.zeros((SIZE, SIZE), np.uint8))
    command = ["pack", str(source), str(tmp_path / "shards"), "--labels", str(tmp_path / "labels"), "--dry-run"]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("3 tiles with labels (1 train, 1 val, 1 test) of 3 locations")
    assert not (tmp_path / "shards").exists()


def test_a_dry_run_of_bundles_tells_what_would_be_read(source, tiles, tmp_path, capsys):
    write_tar(source / "x.tar", [("x.tif", tiles["a"])])
    assert main(["pack", str(source), str(tmp_path / "shards"), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("1 archive, 3 plain tiles (plain tiles 1, x.tar) -> tiles of 4x4 px")
    assert not (tmp_path / "shards").exists()


def test_what_collides_with_a_tile_that_was_packed_before_is_added_beside_it(source, tiles, tmp_path):
    os.rename(source / "a.tif", source / "a_1.tif")
    pack(source, tmp_path / "shards", PackConfig())
    (source / "a-1.tif").write_bytes(tiles["c"])
    pack(source, tmp_path / "shards", PackConfig(), append=True)
    found = read_all(tmp_path / "shards")
    assert len(found) == 4
    np.testing.assert_array_equal(found["a-1_00000"], pixels("a"))
    (other,) = found.keys() - {"a-1_00000", "b_00000", "c_00000"}
    np.testing.assert_array_equal(found[other], pixels("c"))


def test_a_link_that_leads_nowhere_is_set_aside(source, tmp_path):
    (source / "d.tif").symlink_to("gone.tif")
    result = pack(source, tmp_path / "shards", PackConfig(), max_bad=0.3)
    assert result.manifest.tiles == 3 and [Path(bad.path).name for bad in result.rejected] == ["d.tif"]


def test_envi_tiles_are_packed_beside_geotiffs(source, tmp_path):
    path = write_envi(source / "E.DAT", spectra(7, SIZE))
    pack(source, tmp_path / "shards", PackConfig())
    found = read_all(tmp_path / "shards")
    assert found.keys() == {"a_00000", "b_00000", "c_00000", "E_00000"}
    np.testing.assert_array_equal(found["E_00000"], read_tile(path, ENMAP).values)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
@pytest.mark.parametrize("driver", ["GTiff", "ENVI"])
def test_a_scene_in_an_archive_is_cut_too(mosaic, tmp_path, name, driver):
    path = write_envi(tmp_path / "d" / ("mosaic.tif" if driver == "GTiff" else "mosaic.bsq"), mosaic, driver)
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            for one in path.parent.iterdir():
                file.write(one, one.name)
    else:
        with tarfile.open(tmp_path / name, "w:gz") as tar:
            tar.add(path.parent, ".")
    dest = tmp_path / "shards"
    pack(tmp_path / name, dest, PackConfig(size=6))
    found = read_all(dest)
    assert len(found) == 6
    np.testing.assert_array_equal(found["mosaic-2-1_00000"], mosaic[:, 12:18, 6:12])
    assert main(["verify", str(dest), "--source", str(tmp_path / name), "--workers", "1"]) == 0

"""`python -m finetune tasks|check`: what a download holds, and what is wrong with it."""

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from rasterio.transform import Affine
from support.tiles import GRID, write_tile

from finetune.__main__ import main
from finetune.tasks import get_task, task_names
from tools.sample_tasks import make_task_sample


@pytest.fixture
def download(tmp_path):
    make_task_sample(tmp_path, get_task("enmap_cdl"), tiles=10, size=16)
    return tmp_path


def _check(download, capsys, *options: str) -> tuple[int, str]:
    code = main(["check", "enmap_cdl", str(download), "--splits", str(download / "splits" / "enmap_cdl"), *options])
    return code, capsys.readouterr().out


def test_tasks_are_listed(capsys):
    assert main(["tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == task_names()
    assert any(line.split()[:4] == ["enmap_corine", "multilabel", "enmap", "19"] for line in lines)


def test_a_good_download_is_counted(download, capsys):
    code, out = _check(download, capsys)
    assert code == 0
    assert "enmap_cdl: good, 10 tiles read" in out
    assert "note: train: 6 tiles, 1200 are published" in out
    (counts,) = [line.split() for line in out.splitlines() if line.startswith("not counted (px)")]
    (corn,) = [line.split() for line in out.splitlines() if line.startswith("corn (px)")]
    assert int(counts[-3].replace(",", "")) < 6 * 16 * 16
    assert len(corn) == 5


def test_what_is_wrong_is_named_and_ends_with_1(download, capsys):
    first, second = sorted((download / "enmap_cdl" / "cdl").glob("*/*.tif"))[:2]
    first.unlink()
    write_tile(second, np.ones((8, 8), np.uint8))
    code, out = _check(download, capsys)
    assert code == 1
    assert f"error: {first}: no label tile for this image" in out
    assert f"error: {second}: the labels are elsewhere: their center is" in out
    assert "NOT GOOD" in out


def test_unknown_codes_and_bands_are_named(download, capsys, tmp_path):
    images, labels = download / "enmap_cdl" / "enmap", download / "enmap_cdl" / "cdl"
    one = sorted(images.glob("*/*.tif"))[0]
    write_tile(one, np.zeros((5, 16, 16), np.int16))
    assert main(["check", "sample_materials", "--images", str(images), "--labels", str(labels)]) == 1
    out = capsys.readouterr().out
    assert "is not a class of task sample_materials: add it to its classes, or to 'ignore'" in out
    assert "5 bands without wavelengths: expected the 202 bands of enmap" in out


def test_misuse_is_code_2(download, capsys):
    assert main(["check", "enmap_cdl"]) == 2
    assert "give ROOT, or --images with --labels, or --shards" in capsys.readouterr().err
    assert main(["check", "no_such_task", str(download)]) == 2
    assert "unknown task 'no_such_task'" in capsys.readouterr().err


# ---- labels of one's own ----

TASK = """name: mine
description: two classes
classes:
  - {code: 1, name: Wheat, color: "#d7301f"}
  - {code: 2, name: Barley, color: "#969696"}
ignore: [0]
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "task.yaml").write_text(TASK)
    codes = np.repeat([[1] * 8, [2] * 8], 4, 0).astype(np.uint8)
    for number in range(5):
        write_tile(tmp_path / "images" / f"t{number}.tif", np.full((202, 8, 8), number, np.int16))
        write_tile(tmp_path / "labels" / f"t{number}.tif", codes)
    return tmp_path


def _check_own(own, capsys, *options: str, labels: str = "labels") -> tuple[int, str]:
    words = ["check", str(own / "task.yaml"), "--images", str(own / "images"), "--labels", str(own / labels)]
    code = main([*words, "--workers", "1", *options])
    told = capsys.readouterr()
    return code, told.out + "\n".join(line for line in told.err.splitlines() if line.startswith("error"))


def test_tiles_without_scenes_are_not_sent_to_scenes(own, capsys):
    code, out = _check_own(own, capsys)
    assert code == 0
    assert "data.group" not in out


@pytest.mark.parametrize(("value", "noted"), [(255, False), (2, True)])
def test_a_declared_value_is_not_counted_and_named_where_it_is_a_class(own, capsys, value, noted):
    for number in range(5):
        codes = np.repeat([[1] * 8, [2] * 8], 4, 0).astype(np.uint8)
        codes[0] = value
        write_tile(own / "labels" / f"t{number}.tif", codes, nodata=value)
    code, out = _check_own(own, capsys)
    assert (
        "note: train: label files declare a class code as nodata, so it doesn't count (120 px of 2)" in out
    ) == noted
    (counted,) = [line.split() for line in out.splitlines() if line.startswith("not counted")]
    assert counted[-3:] == (["120", "40", "40"] if noted else ["24", "8", "8"])
    assert code == 0
    assert "-32768" not in out


def test_a_split_without_any_label_is_a_problem(own, capsys):
    for number in range(5):
        write_tile(own / "labels" / f"t{number}.tif", np.zeros((8, 8), np.uint8), nodata=0)
    code, out = _check_own(own, capsys)
    assert code == 1
    assert "error: test: no label is one of the classes" in out


def test_finer_labels_are_refused_or_aligned(own, capsys):
    for number in range(5):
        codes = np.repeat([[1] * 24, [2] * 24], 12, 0).astype(np.uint8)
        path = write_tile(own / "labels" / f"t{number}.tif", codes)
        with rasterio.open(path, "r+") as file:
            file.transform = GRID @ Affine.scale(1 / 3)
    code, out = _check_own(own, capsys)
    assert code == 1
    assert (
        "label pixels of 0.3333 x 0.3333 image pixels: resample them with --align nearest (data.align=nearest)" in out
    )
    code, out = _check_own(own, capsys, "--align", "nearest")
    assert code == 0
    assert "mine: good, 5 tiles read" in out


def test_polygons_that_name_classes_are_labels(own, capsys):
    top = [GRID @ corner for corner in ((0, 0), (8, 0), (8, 4), (0, 4))]
    low = [GRID @ corner for corner in ((0, 4), (8, 4), (8, 8), (0, 8))]
    pyogrio.raw.write(
        own / "fields.gpkg",
        shapely.to_wkb(np.array([shapely.Polygon(top), shapely.Polygon(low)])),
        [np.array(["wheat", "BARLEY"], dtype=object)],
        ["crop"],
        geometry_type="Polygon",
        crs="EPSG:32633",
    )
    code, out = _check_own(own, capsys, labels="fields.gpkg")
    assert code == 2
    assert "choose the field that holds the class with --label-field (data.label_field): crop" in out
    code, out = _check_own(own, capsys, "--label-field", "crop", labels="fields.gpkg")
    assert code == 0
    (wheat,) = [line.split() for line in out.splitlines() if line.startswith("Wheat (px)")]
    assert wheat[-3:] == ["96", "32", "32"]

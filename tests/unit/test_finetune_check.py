"""`python -m finetune tasks|check`: what a download holds, and what is wrong with it."""

import numpy as np
import pytest
from support.tiles import write_tile

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
    assert f"error: {second}: labels of another place: their center is" in out
    assert "NOT GOOD" in out


def test_unknown_codes_and_bands_are_named(download, capsys, tmp_path):
    images, labels = download / "enmap_cdl" / "enmap", download / "enmap_cdl" / "cdl"
    one = sorted(images.glob("*/*.tif"))[0]
    write_tile(one, np.zeros((5, 16, 16), np.int16))
    assert main(["check", "sample_materials", "--images", str(images), "--labels", str(labels)]) == 1
    out = capsys.readouterr().out
    assert "is no class of sample_materials and not to be ignored" in out
    assert "5 bands and no wavelengths: expected the 202 bands of enmap" in out


def test_misuse_is_code_2(download, capsys):
    assert main(["check", "enmap_cdl"]) == 2
    assert "give ROOT, or --images with --labels, or --shards" in capsys.readouterr().err
    assert main(["check", "no_such_task", str(download)]) == 2
    assert "unknown task 'no_such_task'" in capsys.readouterr().err

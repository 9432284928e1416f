"""The synthetic sample: the promised files, the same bytes for the same seed, spectra that could be true."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

from finetune.tasks import get_task
from shards.errors import ForgeError
from shards.sensors.sensor import NODATA
from shards.sources.labels import read_label
from tools.sample_data import RECIPE, main, make_sample
from tools.sample_spectra import CLASSES, NM
from tools.sample_tiles import SampleError, SampleOptions

SMALL = SampleOptions(locations=10, size=32, seed=0)
VEGETATION = (0, 1, 2)
WATER = 5


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    dest = tmp_path_factory.mktemp("sample") / "small"
    make_sample(dest, SMALL)
    return dest


def tiles_of(dest: Path) -> list[str]:
    return sorted(str(path.relative_to(dest / "enmap")) for path in (dest / "enmap").glob("*/*.tif"))


def read(dest: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    with rasterio.open(dest / "enmap" / name) as file:
        return file.read(), read_label(dest / "labels" / name)


def labeled(dest: Path, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Spectra float32 (pixels, 202) and codes (pixels,) of all labeled pixels."""
    spectra, codes = [], []
    for name in names:
        tile, labels = read(dest, name)
        spectra.append(tile[:, labels > 0].T.astype(np.float32))
        codes.append(labels[labels > 0])
    return np.concatenate(spectra), np.concatenate(codes)


def digest(dest: Path) -> dict[str, str]:
    files = sorted(path for path in dest.rglob("*") if path.is_file())
    return {str(path.relative_to(dest)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def band(wavelength_nm: float) -> int:
    return int(np.abs(NM - wavelength_nm).argmin())


# ---- files ----


def test_tiles_are_laid_out_as_published(sample):
    names = tiles_of(sample)
    for name in names:
        location, scene = name.split("/")
        assert len(location) == 7 and location.isdigit()
        assert len(scene) == 9 and scene[:5].isdigit()
        with rasterio.open(sample / "enmap" / name) as file:
            assert (file.count, file.height, file.width) == (202, 32, 32)
            assert set(file.dtypes) == {"int16"}
            assert file.interleaving.value.lower() == "pixel"
            assert file.compression is None
            assert file.nodata is None
            assert file.crs.to_epsg() == 32633
            assert file.res == (30.0, 30.0)
            assert "synthetic" in file.tags()["TIFFTAG_IMAGEDESCRIPTION"]


def test_locations_lie_apart_and_dates_of_one_lie_together(sample):
    corners: dict[str, set[tuple[float, float]]] = {}
    for name in tiles_of(sample):
        with rasterio.open(sample / "enmap" / name) as image, rasterio.open(sample / "labels" / name) as mask:
            assert image.transform == mask.transform
            corners.setdefault(name.split("/")[0], set()).add((image.transform.c, image.transform.f))
    assert all(len(one) == 1 for one in corners.values())
    assert len({min(one) for one in corners.values()}) == SMALL.locations


def test_labels_lie_beside_the_tiles(sample):
    assert sorted(str(path.relative_to(sample / "labels")) for path in (sample / "labels").glob("*/*.tif")) == tiles_of(
        sample
    )
    for name in tiles_of(sample):
        with rasterio.open(sample / "labels" / name) as file:
            assert (file.count, file.height, file.width, file.dtypes[0]) == (1, 32, 32, "uint8")


def test_label_codes_are_the_tasks(sample):
    task = get_task("sample_materials")
    assert tuple(one.name for one in task.classes) == CLASSES
    assert task.synthetic
    found = {int(code) for name in tiles_of(sample) for code in np.unique(read(sample, name)[1])}
    assert found == {0} | {one.code for one in task.classes}


def test_splits_share_no_location_and_cover_all(sample):
    lines = {}
    for split in ("train", "val", "test"):
        text = (sample / "splits" / f"{split}.txt").read_text()
        assert text.endswith("\n")
        lines[split] = text.splitlines()
    assert sorted(name for names in lines.values() for name in names) == tiles_of(sample)
    locations = {split: {line.split("/")[0] for line in names} for split, names in lines.items()}
    assert {split: len(names) for split, names in locations.items()} == {"train": 6, "val": 2, "test": 2}
    assert len(set.union(*locations.values())) == SMALL.locations


def test_it_says_that_it_is_synthetic(sample):
    text = (sample / "README.txt").read_text()
    assert text.startswith("These tiles are synthetic.")
    assert all(f"{code} = {name}" in text for code, name in enumerate(CLASSES, start=1))
    assert json.loads((sample / "sample.json").read_text()) == {
        "recipe": RECIPE,
        "locations": 10,
        "size": 32,
        "seed": 0,
    }


# ---- dates and margins ----


def test_margin_is_empty_in_all_bands_and_unlabeled(sample):
    margins = 0
    for name in tiles_of(sample):
        tile, labels = read(sample, name)
        empty = tile == NODATA
        assert (empty.all(0) == empty.any(0)).all()
        assert (labels[empty[0]] == 0).all()
        assert tile[:, ~empty[0]].min() >= -500
        assert tile.max() <= 12000
        margins += bool(empty.any())
    assert margins == 1


def test_a_later_date_shows_the_same_place_in_another_season(sample):
    pairs = [sorted(path.iterdir()) for path in (sample / "enmap").iterdir() if len(list(path.iterdir())) == 2]
    assert pairs
    for early, late in pairs:
        (before, labels), (after, labels_later) = (
            read(sample, f"{one.parent.name}/{one.name}") for one in (early, late)
        )
        both = (labels > 0) & (labels_later > 0)
        assert (labels == labels_later)[both].mean() > 0.85
        measured = (before[0] != NODATA) & (after[0] != NODATA)
        assert np.abs(before[:, measured].astype(int) - after[:, measured]).mean() > 30


# ---- same and different ----


def test_same_seed_gives_the_same_bytes_and_another_does_not(sample, tmp_path):
    make_sample(tmp_path / "again", SMALL)
    assert digest(tmp_path / "again") == digest(sample)
    make_sample(tmp_path / "other", SampleOptions(locations=10, size=32, seed=1))
    other = digest(tmp_path / "other")
    assert not set(other.values()) & {value for name, value in digest(sample).items() if name.endswith(".tif")}


# ---- spectra ----


def test_vegetation_has_a_red_edge_and_water_is_dark(sample):
    spectra, codes = labeled(sample, tiles_of(sample))
    mean = {code: spectra[codes == code].mean(0) for code in range(1, 7)}
    for index in VEGETATION:
        assert mean[index + 1][band(860)] > 3 * mean[index + 1][band(670)]
    assert np.median(spectra[codes == WATER + 1][:, band(1650)]) < 200
    assert mean[WATER + 1][band(2200)] < 0.1 * mean[4][band(2200)]
    assert mean[4][band(1650)] > mean[4][band(670)] > mean[4][band(450)]  # soil rises
    assert np.quantile(spectra, 0.999) < 7000
    assert -100 < spectra.min() < 0


def test_classes_can_be_told_apart_but_not_by_brightness_alone(tmp_path):
    dest = tmp_path / "sample"
    make_sample(dest, SampleOptions(locations=20, size=32))
    splits = {name: (dest / "splits" / f"{name}.txt").read_text().split() for name in ("train", "test")}
    (known, codes), (unknown, truth) = labeled(dest, splits["train"]), labeled(dest, splits["test"])

    def accuracy(bands: list[int]) -> float:
        scale = known[:, bands].std(0)
        means = np.stack([known[codes == code][:, bands].mean(0) for code in range(1, 7)]) / scale
        distance = ((unknown[:, None, bands] / scale - means) ** 2).sum(-1)
        return float((distance.argmin(1) + 1 == truth).mean())

    assert 0.5 < accuracy(list(range(202))) < 0.97
    assert accuracy([band(860)]) < 0.6


# ---- what is there already ----


def test_same_sample_is_left_alone(sample, capsys):
    before = {path: path.stat().st_mtime_ns for path in sample.rglob("*")}
    assert main([str(sample), "--locations", "10", "--size", "32"]) == 0
    assert "already exists" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in sample.rglob("*")} == before


@pytest.mark.parametrize("content", [None, "", "not json", '{"locations": 10, "size": 32, "seed": 0}'])
def test_something_else_is_not_overwritten(tmp_path, capsys, content):
    dest = tmp_path / "mine"
    dest.mkdir()
    (dest / "thesis.txt").write_text("years of work")
    if content is not None:
        (dest / "sample.json").write_text(content)
    assert main([str(dest), "--locations", "10", "--size", "32"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and str(dest) in error
    assert (dest / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("options", [["--locations", "4"], ["--size", "8"], ["--seed", "-1"]])
def test_options_that_make_no_sample(tmp_path, capsys, options):
    assert main([str(tmp_path / "new"), *options]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_failure_half_way_leaves_nothing(tmp_path, monkeypatch, capsys):
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tools.sample_data._write_splits", full_disk)
    assert main([str(tmp_path / "new"), "--locations", "5", "--size", "16"]) == 1
    assert "error: No space left on device: free some space\n" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_errors_are_the_projects():
    assert issubclass(SampleError, ForgeError)
    assert SampleError.exit_code == 2
    assert SampleOptions() == SampleOptions(locations=40, size=128, seed=0)


def test_main_says_what_it_made(tmp_path, capsys):
    assert main([str(tmp_path / "new"), "--locations", "5", "--size", "16"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'new'}: 6 synthetic tiles of 5 locations, 6 labeled classes\n"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]

"""`pack --max-error`: smaller shards whose pixels are within the bound, checked at packing and by `verify --source`."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.datasets import read_all
from support.products import make_product
from support.tiles import NODATA, spectra, write_archive, write_tile

from shards import open_zarr
from shards.__main__ import main
from shards.errors import ShardError
from shards.format.bounded import BoundedPredictor
from shards.format.manifest import read_manifest
from shards.pack.build import pack
from shards.pack.scan import PackConfig
from shards.read.reader import ShardReader


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("max-error") / "source"
    write_archive(folder)
    return folder


def _run(capfd, *arguments: object) -> tuple[int, str]:
    code = main(list(map(str, arguments)))
    captured = capfd.readouterr()
    return code, captured.out + captured.err


@pytest.mark.parametrize(("bound", "means"), [("3", "3"), ("0.0003", "3"), ("noise/4", "noise/4")])
def test_every_pixel_is_within_the_bound(source, tmp_path, capfd, bound, means):
    code, text = _run(capfd, "pack", source, tmp_path / "shards", "--max-error", bound, "--workers", 1)
    assert code == 0, text
    manifest = read_manifest(tmp_path / "shards")
    assert manifest.codec == {"id": "bounded_predictor", "max_error": means}
    pack(source, tmp_path / "lossless", PackConfig())
    before, after = read_all(tmp_path / "lossless"), read_all(tmp_path / "shards")
    reader = ShardReader(tmp_path / "shards")
    for row in range(len(reader)):
        key = reader.key(row)
        bounds = BoundedPredictor(means).bounds(reader.read_encoded(row))
        error = np.abs(before[key].astype(int) - after[key])
        assert (error <= bounds[:, None, None]).all()
        np.testing.assert_array_equal(before[key] == NODATA, after[key] == NODATA)
        np.testing.assert_array_equal(open_zarr(tmp_path / "shards")[row], after[key])
    size, lossless = ((tmp_path / name / "shard-000000.tar").stat().st_size for name in ("shards", "lossless"))
    assert size < lossless
    code, text = _run(capfd, "verify", tmp_path / "shards", "--source", source, "--workers", 1)
    assert code == 0 and "no problems" in text


def test_the_sensor_of_a_scene_takes_a_bound_in_reflectance(tmp_path, capfd):
    scene = make_product("prisma", tmp_path / "product")
    options = ["--sensor", scene, "--size", 8, "--max-nodata", "none", "--workers", 1]
    code, text = _run(capfd, "pack", scene, tmp_path / "shards", *options, "--max-error", "0.0003")
    assert code == 0, text
    assert read_manifest(tmp_path / "shards").codec["max_error"] == "3"


def test_a_source_that_changed_by_more_than_the_bound_is_named(source, tmp_path, capfd):
    copy = Path(shutil.copytree(source, tmp_path / "source"))
    assert _run(capfd, "pack", copy, tmp_path / "shards", "--max-error", 3, "--workers", 1)[0] == 0
    write_tile(copy / "enmap/0000231/00003.tif", spectra(77, 8), nodata=NODATA)
    code, text = _run(capfd, "verify", tmp_path / "shards", "--source", copy, "--workers", 1)
    assert code == 1
    assert "0000231_00003" in text and "with a bound of 3" in text


def test_a_codec_that_breaks_its_promise_writes_no_shard(source, tmp_path, monkeypatch):
    monkeypatch.setattr(BoundedPredictor, "bounds", lambda self, data: np.zeros(202, np.int64))
    with pytest.raises(ShardError, match="breaks its bound: band"):
        pack(source, tmp_path / "shards", PackConfig(codec='{"id": "bounded_predictor", "max_error": "3"}'))
    assert not (tmp_path / "shards/manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--max-error", "noise"],
            "--max-error: 'noise': give digital numbers from 1 to 1000, or a share of the noise",
        ),
        (["--max-error", "0.00001"], "--max-error: '0.00001': less than one digital number"),
        (["--max-error", "3", "--codec", "fast"], "--max-error has a codec of its own: remove --codec fast"),
    ],
)
def test_an_invalid_bound_is_one_line(source, tmp_path, capfd, options, says):
    code, text = _run(capfd, "pack", source, tmp_path / "shards", *options)
    assert code == 2
    assert says in text and "Traceback" not in text

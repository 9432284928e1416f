"""`stats` against numpy on all pixels, in any parts and by any number of workers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.tiles import NODATA, spectra, write_archive, write_tile

from shards.__main__ import main
from shards.check.stats import PERCENTILES
from shards.pack.build import pack
from shards.pack.scan import PackConfig


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Eleven tiles, one band dead in all of them and one of a single value; the pixels as (bands, pixels)."""
    folder = tmp_path_factory.mktemp("stats")
    values = write_archive(folder / "source")
    for key in [*values, "0999999_00001"]:
        tile = values.get(key, spectra(5, 8)).copy()
        tile[10], tile[20] = NODATA, 777
        location, timestamp = key.split("_")
        write_tile(folder / "source/enmap" / location / f"{timestamp}.tif", tile, nodata=NODATA)
        values[key] = tile
    pack(folder / "source", folder / "shards", PackConfig(tiles_per_shard=3))
    return folder / "shards", np.concatenate([tile.reshape(202, -1) for tile in values.values()], axis=1)


@pytest.fixture
def copy(packed, tmp_path):
    return Path(shutil.copytree(packed[0], tmp_path / "shards"))


def _bands(folder):
    return json.loads((folder / "stats.json").read_text())["bands"]


def test_statistics_are_those_of_numpy_on_the_valid_pixels(copy, packed, capsys):
    assert main(["stats", str(copy), "--workers", "1"]) == 0
    bands = _bands(copy)
    for band, pixels in zip(bands, packed[1], strict=True):
        valid = pixels[pixels != NODATA].astype(np.float64)
        assert band["nodata"] == pytest.approx(1 - len(valid) / len(pixels))
        if not len(valid):
            assert band["mean"] is None and band["percentiles"]["50"] is None
            continue
        assert (band["low"], band["high"]) == (valid.min(), valid.max())
        assert band["mean"] == pytest.approx(valid.mean(), rel=1e-12)
        assert band["std"] == pytest.approx(valid.std(), rel=1e-12)
        ranks = np.percentile(valid, PERCENTILES, method="inverted_cdf")
        assert list(band["percentiles"].values()) == ranks.tolist()
    assert [number for number, band in enumerate(bands) if band["dead"]] == [10, 20]
    output = capsys.readouterr().out
    assert "2 dead bands (10, 20)" in output
    assert output.splitlines()[0].startswith("band")


def test_mu_and_sigma_are_written_as_published(copy):
    for name in ("mu.npy", "sigma.npy"):
        before = (copy / name).read_bytes()
        (copy / name).unlink()
        main(["stats", str(copy), "--workers", "1"])
        assert (copy / name).read_bytes() == before
        assert np.load(copy / name).dtype == np.float32


def test_parts_and_workers_make_the_same_numbers(copy):
    assert main(["stats", str(copy), "--workers", "2"]) == 0
    whole = (copy / "stats.json").read_bytes()
    (copy / "stats.json").unlink()
    for number in range(1, 6):  # more parts than there are shards
        assert main(["stats", str(copy), "--part", f"{number}/5", "--workers", "1"]) == 0
        assert not (copy / "stats.json").exists()
    assert main(["stats", str(copy)]) == 0
    assert (copy / "stats.json").read_bytes() == whole


def test_counts_that_are_not_those_of_the_manifest_are_refused(copy, capsys):
    main(["stats", str(copy), "--part", "1/1", "--workers", "1"])
    path = copy / "stats-part-00001-of-00001.npz"
    with np.load(path) as part:
        histogram, content = part["histogram"], part["content"]
    histogram[3, 40000] += 1
    np.savez(path, histogram=histogram, content=content)
    assert main(["stats", str(copy)]) == 2
    assert "statistics differ from the manifest's" in capsys.readouterr().err
    assert not (copy / "stats.json").exists()


def test_a_missing_part_or_one_of_other_shards_is_refused(copy, capsys):
    main(["stats", str(copy), "--part", "1/2", "--workers", "1"])
    assert main(["stats", str(copy)]) == 2
    assert "part 2 of 2 is missing" in capsys.readouterr().err
    path = copy / "stats-part-00001-of-00002.npz"
    path.write_bytes(path.read_bytes()[:100])
    shutil.copy(path, copy / "stats-part-00002-of-00002.npz")
    assert main(["stats", str(copy)]) == 2
    assert "can't be read" in capsys.readouterr().err

"""`estimate`: ratio, noise, size and time of packing, from a bounded sample, without writing anything."""

import json
import tarfile

import numpy as np
import pytest
from support.tiles import NODATA, write_tile

from shards.__main__ import main
from shards.pack.build import pack
from shards.pack.estimate import estimate
from shards.pack.scan import PackConfig
from shards.read.reader import ShardReader

NOISE = 12.0


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Ten tiles of smooth spectra with noise of a known deviation, twice as much in the upper half of the bands."""
    folder, rng = tmp_path_factory.mktemp("estimate") / "source", np.random.default_rng(0)
    for number in range(10):
        shape = 3000 + 900 * np.sin(np.linspace(0, 3, 202))[:, None, None] * rng.uniform(0.9, 1.1, (32, 32))
        sigma = np.where(np.arange(202) < 101, NOISE, 2 * NOISE)[:, None, None]
        write_tile(
            folder / f"enmap/{number:07d}/00001.tif", np.rint(shape + sigma * rng.normal(size=shape.shape)).astype("i2")
        )
    return folder


def _run(capfd, *arguments: object) -> tuple[int, str]:
    code = main(["estimate", *map(str, arguments), "--workers", "2"])
    captured = capfd.readouterr()
    return code, captured.out + captured.err


def test_sizes_shards_and_noise_are_those_of_packing(source, tmp_path, capfd):
    code, text = _run(capfd, source, "--tiles-per-shard", 3, "--tiles", 4, "--json")
    assert code == 0
    made = json.loads(text.splitlines()[-1])
    assert (made["tiles"], made["is_counted"], made["sampled"], made["shards"]) == (10, True, 4, 4)
    assert (made["shape"], made["workers"]) == ([202, 32, 32], 2)
    np.testing.assert_allclose(made["noise"][10:90], NOISE, rtol=0.2)
    np.testing.assert_allclose(made["noise"][110:], 2 * NOISE, rtol=0.2)
    names = [row["codec"] for row in made["codecs"]]
    assert names == ["compact", "smallest", "max error noise/4", "max error noise/2", "max error 3"]
    codecs = {"compact": "compact", "max error noise/2": '{"id": "bounded_predictor", "max_error": "noise/2"}'}
    for row in made["codecs"]:
        assert row["seconds"] > 0 and row["encode_mb_s"] > 0
        assert row["quartiles"][0] <= row["ratio"] * 1.001 and row["ratio"] <= row["quartiles"][2] * 1.001
        if row["codec"] in codecs:
            config = PackConfig(codec=codecs[row["codec"]])
            pack(source, tmp_path / row["codec"][-1], config)
            stored = ShardReader(tmp_path / row["codec"][-1]).table["length"].sum(dtype=int)
            assert stored == pytest.approx(row["nbytes"], rel=0.01)


def test_the_text_has_a_line_for_each_codec_and_the_noisiest_bands(source, capfd):
    code, text = _run(capfd, source, "--max-error", "0.0005", "--codec", "fast")
    assert code == 0
    for expected in ("10 tiles of [202, 32, 32] int16, 0.004 GB, in 1 shards", "fast   ", "max error 5   ", "most 2"):
        assert expected in text


def test_tiles_of_scenes_are_counted_and_spread_over_them(tmp_path):
    scene = np.full((202, 32, 48), 1000, np.int16)
    scene[:, :8, :16] = NODATA  # two tiles without a measured pixel
    write_tile(tmp_path / "scene.tif", scene, nodata=NODATA)
    made = estimate(tmp_path / "scene.tif", PackConfig(size=8), 24, 1, ("3",))
    assert (made.tiles, made.sampled, made.is_counted) == (22, 22, True)
    made = estimate(tmp_path / "scene.tif", PackConfig(size=8), 5, 1, ("3",))
    assert (made.sampled, made.is_counted) == (4, True)  # one of five is empty
    assert made.tiles == round(24 * 4 / 5)


def test_archives_are_sampled_at_their_start_and_not_read_through(source, tmp_path, capfd):
    with tarfile.open(tmp_path / "tiles.tar.gz", "w:gz") as archive:
        archive.add(source / "enmap", "enmap")
    code, text = _run(capfd, tmp_path / "tiles.tar.gz", "--size", 32, "--tiles", 3)
    assert code == 0, text
    assert "1,000 tiles (those in archives are not counted)" in text and "3 tiles sampled" in text


def test_misuse_is_one_line_and_nothing_is_written(source, tmp_path, capfd):
    (tmp_path / "enmap/0000001").mkdir(parents=True)
    write_tile(tmp_path / "enmap/0000001/00001.tif", np.full((3, 8, 8), NODATA, np.int16))
    before = sorted(source.rglob("*"))
    for arguments, says in (
        ([tmp_path], "none of the sampled tiles can be used"),
        ([tmp_path / "none"], "no such directory of tiles"),
        ([source, "--max-error", "noise"], "--max-error: 'noise': give digital numbers"),
        ([source, "--codec", "nonesuch"], "--codec nonesuch: unknown codec"),
        ([source, "--max-cloud", "0.1"], "--max-cloud applies to tiles cut from products"),
    ):
        code, text = _run(capfd, *arguments)
        assert code == 2 and says in text and len(text.splitlines()) == 1, text
    assert sorted(source.rglob("*")) == before

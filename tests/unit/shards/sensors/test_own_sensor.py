"""A band table of one's own is asked for where a dataset begins; afterwards what was stored counts."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from support.tiles import write_tile

from shards.__main__ import main
from shards.check.compare import source_sensor
from shards.errors import ConfigError, ShardError
from shards.format.manifest import content_hash, read_manifest, sensor_of
from shards.pack.build import PackConfig, Part, merge, pack, pack_part
from shards.read.reader import ShardReader, open_dataset
from shards.sensors.sensor import Sensor, get_sensor, sensor_of_bands

CENTERS = 1000 + 20.0 * np.arange(12)
KEPT = [0, 1, 2, 5, 6, 7, 8, 9, 10, 11]


def write_table(path: Path, centers: np.ndarray = CENTERS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{center},15,{int(band in KEPT)}" for band, center in enumerate(centers)]
    path.write_text("\n".join(["wavelength_nm,fwhm_nm,kept", *rows]) + "\n")
    return path


def values(seed: int, bands: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4000, (bands, 8, 8)).astype(np.int16)


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """Six tiles of all 12 bands without wavelengths, and the table that tells them."""
    for number in range(6):
        write_tile(tmp_path / "tiles" / f"t{number}.tif", values(number))
    write_table(tmp_path / "mine.csv")
    return tmp_path


def run(*arguments: object) -> int:
    return main([*map(str, arguments), *(["--workers", "1"] if arguments[0] != "inspect" else [])])


def test_everything_after_pack_does_without_the_table(lab, capsys):
    assert run("pack", lab / "tiles", lab / "shards", "--sensor", lab / "mine.csv") == 0
    (lab / "mine.csv").unlink()
    assert run("verify", lab / "shards", "--source", lab / "tiles") == 0
    assert "6 compared" in capsys.readouterr().out
    assert run("inspect", lab / "shards", "--tile", "0", "--picture", lab / "tile.png") == 0
    assert run("merge", lab / "shards") == 0
    stored = sensor_of(read_manifest(lab / "shards"))
    assert (stored.name, stored.wavelength_nm) == ("mine", tuple(CENTERS[KEPT]))
    assert source_sensor(lab / "shards", read_manifest(lab / "shards")).product_wavelength_nm == tuple(CENTERS)
    np.testing.assert_array_equal(open_dataset(lab / "shards")[0], _stored(lab / "shards", 0))


def _stored(folder: Path, row: int) -> np.ndarray:
    number = int(ShardReader(folder).key(row).split("_")[0][1:])
    return values(number)[KEPT]


def test_verify_finds_a_source_that_changed(lab, capsys):
    run("pack", lab / "tiles", lab / "shards", "--sensor", lab / "mine.csv")
    changed = values(0)
    changed[5, 0, 0] += 1
    write_tile(lab / "tiles" / "t0.tif", changed)
    assert run("verify", lab / "shards", "--source", lab / "tiles") == 1
    assert "differs from its source" in capsys.readouterr().err


def test_parts_restart_from_another_folder_and_the_merge_needs_no_table(lab, monkeypatch):
    monkeypatch.chdir(lab)
    config = PackConfig(sensor="mine.csv", tiles_per_shard=2)
    assert pack_part(Path("tiles"), Path("shards"), config, Part(1, 2)) == 2
    elsewhere = lab / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = PackConfig(sensor="../mine.csv", tiles_per_shard=2)
    assert pack_part(Path("../tiles"), Path("../shards"), config, Part(2, 2)) == 1
    (lab / "mine.csv").unlink()
    assert merge(Path("../shards"), source=Path("../tiles")).manifest.tiles == 6


def test_a_table_that_changed_is_no_restart(lab):
    pack(lab / "tiles", lab / "shards", PackConfig(sensor=str(lab / "mine.csv")))
    write_table(lab / "mine.csv", CENTERS + 1)
    with pytest.raises(ShardError, match=r"the bands of .*mine\.csv differ"):
        pack(lab / "tiles", lab / "shards", PackConfig(sensor=str(lab / "mine.csv")))
    with pytest.raises(ShardError, match="sensor: mine then, enmap now"):
        pack(lab / "tiles", lab / "shards", PackConfig())


def test_tiles_are_appended_by_the_same_bands(lab):
    config = PackConfig(sensor=str(lab / "mine.csv"))
    pack(lab / "tiles", lab / "shards", config)
    write_tile(lab / "tiles" / "t9.tif", values(9))
    moved = shutil.move(lab / "mine.csv", write_table(lab / "there" / "mine.csv"))
    result = pack(lab / "tiles", lab / "shards", PackConfig(sensor=str(moved)), append=True)
    assert (result.manifest.tiles, result.manifest.generations) == (7, 2)


def test_tables_of_one_name_and_other_bands_are_other_datasets(lab):
    first = pack(lab / "tiles", lab / "a", PackConfig(sensor=str(lab / "mine.csv"))).manifest
    other = write_table(lab / "other" / "mine.csv", CENTERS + 5)
    second = pack(lab / "tiles", lab / "b", PackConfig(sensor=str(other))).manifest
    assert [one.sha256 for one in first.shards] == [one.sha256 for one in second.shards]
    assert first.content_hash != second.content_hash


def test_the_registry_s_sensors_keep_their_hashes_and_records():
    enmap = get_sensor("enmap")
    assert enmap.identity == "enmap"
    assert sensor_of_bands("enmap", enmap.wavelength_nm, enmap.fwhm_nm) == enmap
    moved = sensor_of_bands("enmap", [nm + 0.2 for nm in enmap.wavelength_nm], enmap.fwhm_nm)
    assert moved.product_wavelength_nm == enmap.product_wavelength_nm and moved.identity != "enmap"
    assert content_hash([], {}, "enmap") == "289af66d9ae20e945fc97633ff3c149a388ece4eb38df1851e9887adaa413865"


def test_manifests_that_name_a_table_by_its_file_alone_stay_valid(lab, capsys):
    """As they were written before the bands counted."""
    from shards.files.atomic import write_atomic
    from shards.format.manifest import to_json

    pack(lab / "tiles", lab / "shards", PackConfig(sensor=str(lab / "mine.csv")))
    manifest = read_manifest(lab / "shards")
    old = manifest.model_copy(update={"content_hash": content_hash(manifest.shards, manifest.codec, "mine")})
    write_atomic(lab / "shards" / "manifest.json", to_json(old.sealed()))
    assert run("verify", lab / "shards") == 0


def test_bands_of_another_sensor_under_a_known_name_are_those_that_are_stored():
    sensor = sensor_of_bands("enmap", [400.0, 500.0, 650.0], [10.0] * 3, 2000.0)
    assert (sensor.wavelength_nm, sensor.product_wavelength_nm, sensor.scale) == (
        (400.0, 500.0, 650.0),
        (400.0, 500.0, 650.0),
        2000.0,
    )


def test_a_stored_sensor_is_read_back_whole_or_refused(lab):
    sensor = get_sensor(str(lab / "mine.csv"))
    assert Sensor.from_dict(sensor.to_dict()) == sensor
    for damage in ({"kept": [99]}, {"kept": []}, {"fwhm_nm": [1.0]}, {"product_wavelength_nm": None}, {"scale": "x"}):
        with pytest.raises(ConfigError, match="band table is damaged"):
            Sensor.from_dict(sensor.to_dict() | damage)


# ---- tars of others ----


def _tar(folder: Path, tiles: Path) -> Path:
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for path in sorted(tiles.glob("*.tif")):
            tar.add(path, path.name)
    return folder


def test_indexed_tars_of_geotiffs_do_without_the_table(lab, capsys):
    folder = _tar(lab / "tars", lab / "tiles")
    assert run("index", folder, "--sensor", lab / "mine.csv") == 0
    assert run("index", folder, "--sensor", lab / "mine.csv") == 0
    assert "(0 read now" in capsys.readouterr().out
    (lab / "mine.csv").unlink()
    np.testing.assert_array_equal(open_dataset(folder)[1], values(1)[KEPT])
    assert run("verify", folder) == 0
    assert run("index", folder, "--sensor", lab / "mine.csv") == 2
    assert "no such file" in capsys.readouterr().err


def test_tars_are_indexed_anew_for_other_bands(lab, capsys):
    folder = _tar(lab / "tars", lab / "tiles")
    run("index", folder, "--sensor", lab / "mine.csv")
    text = (lab / "mine.csv").read_text()
    (lab / "mine.csv").write_text(text.replace(",1\n", ",0\n", 1).replace(",0\n1080", ",1\n1080", 1))
    capsys.readouterr()
    assert run("index", folder, "--sensor", lab / "mine.csv") == 0
    assert "(1 read now" in capsys.readouterr().out
    assert run("verify", folder) == 0


def test_the_codec_of_a_registered_sensor_is_written_as_before(tmp_path):
    write_tile(tmp_path / "tiles" / "t0.tif", values(0, 202))
    folder = _tar(tmp_path / "tars", tmp_path / "tiles")
    assert run("index", folder) == 0
    assert read_manifest(folder).codec == {"id": "geotiff_tile", "sensor": "enmap"}

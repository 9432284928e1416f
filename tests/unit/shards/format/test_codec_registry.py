"""Codecs by name: the project's, those of plugins, compressors of numcodecs; all else is refused."""

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from numcodecs.abc import Codec
from support.processes import REPOSITORY
from support.registries import registered
from support.tiles import spectra, write_archive

from shards.__main__ import main
from shards.config import NamedConfig
from shards.errors import ConfigError, ShardError
from shards.format.codec_registry import CODECS, PRESETS, build_codec, codec_of
from shards.format.manifest import read_manifest
from shards.pack.build import PackConfig, pack
from shards.read.reader import ShardReader
from shards.read.zarr_store import open_zarr


class ShiftConfig(NamedConfig):
    """Options of `Shift`."""

    by: int = 1


class Shift(Codec):
    """A codec of somebody else's: every value plus a constant, modulo 2**16."""

    codec_id = "shift"

    def __init__(self, by: int = 1) -> None:
        self.by = np.int16(by)

    def encode(self, buf: np.ndarray) -> bytes:
        return (buf + self.by).tobytes()

    def decode(self, buf: bytes, out: object = None) -> np.ndarray:
        return np.frombuffer(buf, np.int16) - self.by

    def get_config(self) -> dict:
        return {"id": self.codec_id, "by": int(self.by)}


@pytest.fixture
def shift() -> Iterator[None]:
    with registered(CODECS, "shift", Shift, ShiftConfig):
        yield


@pytest.mark.parametrize("option", ["zstd", '{"id": "zstd", "level": 9}', '{"id": "shift", "by": 7}', "shift"])
def test_other_codecs_pack_and_read(tmp_path, shift, option):
    written = write_archive(tmp_path / "tiles")
    pack(tmp_path / "tiles", tmp_path / "shards", PackConfig(codec=option, tiles_per_shard=4))
    reader = ShardReader(tmp_path / "shards")
    array, values = open_zarr(tmp_path / "shards"), np.empty((1, 202, 8, 8), np.int16)
    for row in range(len(reader)):
        reader.read([row], values)
        np.testing.assert_array_equal(values[0], written[reader.key(row)])
        np.testing.assert_array_equal(array[row], values[0])
    assert read_manifest(tmp_path / "shards").codec == codec_of(option).get_config()
    assert main(["verify", str(tmp_path / "shards"), "--source", str(tmp_path / "tiles"), "--workers", "1"]) == 0


@pytest.mark.parametrize("option", ["zstd", "gzip", "shift"])
def test_what_other_codecs_do_not_decode_is_a_shard_error(shift, option):
    codec, tile = codec_of(option), spectra(0, 8)
    encoded = codec.encode(tile)
    np.testing.assert_array_equal(codec.decode(encoded, np.empty_like(tile)), tile)
    for damaged in (b"", encoded[:9], codec.encode(tile[:, :4])):
        with pytest.raises(ShardError):
            codec.decode(damaged, np.empty_like(tile))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"id": "nonesuch"},
            "unknown codec 'nonesuch': known are spectral_predictor, row_predictor, bounded_predictor",
        ),
        ({"id": "pickle"}, "unknown codec 'pickle'"),  # it would run what a manifest's author likes
        ({}, "'id' is missing"),
        ({"id": "spectral_predictor", "level": 3}, "can't build it: Extra inputs are not permitted"),
        ({"id": "zstd", "depth": 3}, "can't build it"),
    ],
)
def test_a_codec_that_is_not_known_is_refused(config, message):
    with pytest.raises(ShardError, match=message):
        build_codec(config)


@pytest.mark.parametrize("option", ["compakt", "{", '{"level": 3}'])
def test_an_option_that_names_no_codec_is_misuse(option):
    with pytest.raises(ConfigError, match=f"--codec .*presets are {', '.join(PRESETS)}"):
        codec_of(option)


def test_nothing_is_written_with_an_unknown_codec(tmp_path, capsys):
    write_archive(tmp_path / "tiles")
    assert main(["pack", str(tmp_path / "tiles"), str(tmp_path / "shards"), "--codec", "compakt"]) == 2
    assert "unknown codec 'compakt'" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()


PLUGIN = """
from numcodecs.abc import Codec
from shards.format.codec_registry import CODECS

@CODECS.register("plain_bytes")
class PlainBytes(Codec):
    codec_id = "plain_bytes"

    def encode(self, buf):
        return buf.tobytes()

    def decode(self, buf, out=None):
        return buf

    def get_config(self):
        return {"id": self.codec_id}
"""


def test_the_codec_of_a_plugin_packs_over_processes(tmp_path):
    write_archive(tmp_path / "tiles")
    (tmp_path / "lab_codec.py").write_text(PLUGIN)
    plugin = ["--plugins", str(tmp_path / "lab_codec.py"), "--workers", "2"]
    tiles, shards = str(tmp_path / "tiles"), str(tmp_path / "shards")
    packing = ["pack", tiles, shards, "--codec", "plain_bytes", "--tiles-per-shard", "4"]
    for command in (packing, ["verify", shards, "--source", tiles]):
        done = subprocess.run(
            [sys.executable, "-m", "shards", *command, *plugin],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr

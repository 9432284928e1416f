"""Prediction of whether reading keeps up with training: file system bandwidth, and cores for decoding."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pretrain.config.data import DataConfig
from shards.errors import ConfigError

Decode = Literal["host", "device"]

RATES = {"smallest": 210.0, "compact": 225.0, "fast": 528.0, "raw": 874.0}
"""Tiles/s that one core decodes, by preset: tools/bench_stream.py on one EPYC core (docs/shards.md)."""

PLANES_RATES = {"compact": 300.0, "fast": 850.0}
"""The same where the device undoes the prediction (``data.decode: device``), by ratios of one run of the same tool."""

SIZES = {"smallest": 2.40e6, "compact": 2.51e6, "fast": 3.34e6, "raw": 6.62e6}
"""Bytes of an encoded SpectralEarth tile of 202 bands and 128 x 128 pixels."""


@dataclass(frozen=True)
class Tiles:
    """How tiles are stored.

    Attributes:
        preset: codec preset.
        size: bytes of an encoded tile.
        per_core: tiles/s that a core decodes.
        source: description of the source of these values.
    """

    preset: str
    size: float
    per_core: float
    source: str


@dataclass(frozen=True)
class Need:
    """Reading requirements of a run.

    Attributes:
        gpu, node: bytes/s per GPU and per node.
        cores: cores of a node busy with decoding.
        fed: number of GPUs that a node's cores can feed.
        nodes: number of nodes from which the file system is too slow; None if it never is.
    """

    gpu: float
    node: float
    cores: float
    fed: float
    nodes: int | None


def known_tiles(shards: str, preset: str, stream: Path | None, decode: Decode = "host") -> tuple[Tiles, int]:
    """Return size, decoding speed and bands of tiles, from the run's manifest, else those of SpectralEarth.

    Args:
        shards, decode: data.shards and data.decode.
        preset: codec preset to assume if there is no manifest.
        stream: JSON output of tools/bench_stream.py on the machine that will decode.

    Raises:
        ConfigError: the stream file holds no such result.
    """
    size, bands, source = SIZES[preset], 202, f"assumed: {preset} tiles of SpectralEarth"
    manifest = Path(shards) / "manifest.json"
    if manifest.is_file():
        from shards.format.codec_registry import PRESETS
        from shards.format.manifest import read_manifest

        found = read_manifest(manifest.parent)
        bands, source = found.tile_shape[0], f"{shards}/manifest.json"
        size = sum(shard.size for shard in found.shards) / max(1, found.tiles)
        config = _without_blocks(found.codec)
        preset = next(
            (name for name, codec in PRESETS.items() if _without_blocks(codec.get_config()) == config), preset
        )
    on_device = decode == "device" and preset in PLANES_RATES
    if stream is not None:
        rate = _measured(stream, f"ours {preset}, 1 thread" + ", planes" * on_device)
    else:
        rate = PLANES_RATES[preset] if on_device else RATES[preset]
    return Tiles(preset, size, rate, source), bands


def _without_blocks(config: dict[str, Any]) -> dict[str, Any]:
    """Return a codec's config without the option that costs hardly any time."""
    return {key: value for key, value in config.items() if key != "blocks"}


def known_mixture(data: DataConfig, preset: str, stream: Path | None) -> tuple[Tiles, int]:
    """Return `known_tiles` over the sources of a run: means by weight, and the bands of the widest."""
    known = [known_tiles(source.shards, preset, stream, data.decode) for source in data.each]
    total = sum(source.weight for source in data.each)
    shares = [source.weight / total for source in data.each]
    tiles, bands = zip(*known, strict=True)
    size = sum(share * each.size for share, each in zip(shares, tiles, strict=True))
    seconds = sum(share / each.per_core for share, each in zip(shares, tiles, strict=True))
    presets, places = (", ".join(dict.fromkeys(getattr(each, name) for each in tiles)) for name in ("preset", "source"))
    return Tiles(presets, size, 1 / seconds, places), max(bands)


def reading(tiles: Tiles, tiles_per_s: float, gpus: int, cores: int, storage: float) -> Need:
    """Return the requirements of ``tiles_per_s`` per GPU, with ``gpus`` per node and ``storage`` bytes/s."""
    gpu, node = tiles_per_s * tiles.size, tiles_per_s * tiles.size * gpus
    fed = cores * tiles.per_core / tiles_per_s
    return Need(gpu, node, tiles_per_s * gpus / tiles.per_core, fed, int(storage // node) + 1)


def _measured(path: Path, name: str) -> float:
    """Return the tiles/s of a row of tools/bench_stream.py; raises ConfigError."""
    from shards.files.untrusted import read_json_value

    try:
        rows = read_json_value(path.read_bytes())
        rows = rows["rows"] if isinstance(rows, dict) else rows
        return next(float(row["tiles_per_s"]) for row in rows if row["name"] == name)
    except OSError as error:
        raise ConfigError(f"--stream {path}: can't read it: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, StopIteration):
        raise ConfigError(f"--stream {path}: no row '{name}'; give what tools/bench_stream.py --json writes") from None

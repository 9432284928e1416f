"""Layouts and kinds of files that a plugin registers are found in folders and archives, and packed."""

import re
import tarfile
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from support.registries import registered
from support.tiles import spectra, write_tile

from shards.errors import SourceError, TooManyBadTiles
from shards.pack.build import PackConfig, pack
from shards.read.reader import ShardReader
from shards.sensors.sensor import get_sensor
from shards.sources.bundles import TILE_SOURCES, Bundle, TileOptions, TileSource
from shards.sources.geotiff import IDENTITY, Tile
from shards.sources.inputs import find_inputs
from shards.sources.tile_names import TILE_LAYOUTS, SourceTile, TileLayout, tile_of_name


class SiteLayout(TileLayout):
    """``<site>/<date>/chip_<number>.tif``."""

    pattern = re.compile(r"(?P<site>\w+)/(?P<date>\d{4}-\d\d-\d\d)/chip_(?P<number>\d+)\.tif$")
    is_published = True

    def tile(self, path: str, match: re.Match[str], sensor: str, is_chosen: bool) -> SourceTile | None:
        return SourceTile(f"{match['site']}-{match['number']}", match["date"], path, date=match["date"])


@dataclass
class NpyStack(Bundle):
    """Tiles stacked in one array."""

    path: Path
    name: str
    filtered: dict[str, int] = field(default_factory=dict)
    kind = "stack"

    def fingerprint(self) -> str:
        return str(self.path.stat().st_size)

    def tiles(self, skip: Container[str], scratch: Path | None = None) -> Iterator[tuple[SourceTile, Tile]]:
        for number, values in enumerate(np.load(self.path)):
            tile = SourceTile(f"{Path(self.name).name[0]}-{number}", "00000", f"{self.name}!{number}")
            if tile.key not in skip:
                yield tile, Tile(values, None, IDENTITY)


class NpyStacks(TileSource):
    """``*.stack.npy``."""

    def claims(self, name: str) -> bool:
        return name.endswith(".stack.npy")

    def open(self, path: Path, name: str, options: TileOptions) -> list[Bundle]:
        return [NpyStack(path, name)]


@pytest.fixture
def plugin() -> Iterator[None]:
    with registered(TILE_LAYOUTS, "site", SiteLayout), registered(TILE_SOURCES, "npy_stack", NpyStacks):
        yield


def test_a_layout_of_a_plugin_comes_before_ours(tmp_path, plugin):
    tile = tile_of_name("delta/2021-06-03/chip_7.tif", "enmap")
    assert tile is not None and (tile.key, tile.date) == ("delta-7_2021-06-03", "2021-06-03")
    assert tile_of_name("other.tif", "enmap") == SourceTile("other", "00000", "other.tif")
    for site in ("a", "b"):  # the same acquisition of the same place
        write_tile(tmp_path / site / "delta" / "2021-06-03" / "chip_7.tif", spectra(0, 4))
    with pytest.raises(SourceError, match="have the same sample key 'delta-7_2021-06-03'"):
        find_inputs(tmp_path, get_sensor("enmap"))


def test_files_of_a_plugins_source_are_packed_from_folders_and_archives(tmp_path, plugin):
    stacks = {name: np.stack([spectra(seed, 8) for seed in seeds]) for name, seeds in (("a", (0, 1)), ("b", (2, 3)))}
    (tmp_path / "tiles").mkdir()
    np.save(tmp_path / "tiles" / "a.stack.npy", stacks["a"])
    np.save(tmp_path / "b.stack.npy", stacks["b"])
    with tarfile.open(tmp_path / "tiles" / "more.tar", "w") as archive:
        archive.add(tmp_path / "b.stack.npy", "inner/b.stack.npy")
    write_tile(tmp_path / "tiles" / "plain.tif", spectra(9, 8))
    pack(tmp_path / "tiles", tmp_path / "shards", PackConfig(size=8))
    reader, values = ShardReader(tmp_path / "shards"), np.empty((5, 202, 8, 8), np.int16)
    reader.read(range(5), values)
    found = {reader.key(row): values[row] for row in range(5)}
    for name, stack in stacks.items():
        for number, tile in enumerate(stack):
            np.testing.assert_array_equal(found[f"{name}-{number}_00000"], tile)


def test_tiles_of_a_plugin_with_another_shape_or_dtype_are_refused(tmp_path, plugin):
    (tmp_path / "tiles").mkdir()
    np.save(tmp_path / "tiles" / "a.stack.npy", np.stack([spectra(seed, 8) for seed in (0, 1)]))
    np.save(tmp_path / "tiles" / "b.stack.npy", np.stack([spectra(2, 16)]))
    np.save(tmp_path / "tiles" / "c.stack.npy", np.stack([spectra(3, 8).astype(np.float32)]))
    config = PackConfig(size=8)
    with pytest.raises(TooManyBadTiles, match=r"expected int16 of 202 bands x 8 x 8 px"):
        pack(tmp_path / "tiles", tmp_path / "shards", config)
    result = pack(tmp_path / "tiles", tmp_path / "shards", config, max_bad=0.5)
    rejected = {Path(one.path).name: one.reason for one in result.rejected}
    assert rejected.keys() == {"b.stack.npy!0", "c.stack.npy!0"}
    assert rejected["b.stack.npy!0"].startswith("int16 values of shape (202, 16, 16)")
    assert rejected["c.stack.npy!0"].startswith("float32 values of shape (202, 8, 8)")

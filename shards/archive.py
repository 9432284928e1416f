"""A tar archive of tiles as it was downloaded (.tar, .tar.gz): read once, front to back, nothing is unpacked."""

import tarfile
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from shards.errors import SourceError, TileError
from shards.geotiff import Tile, read_tile_bytes
from shards.sensors import Sensor
from shards.sources import TileSource, tile_of_name


@dataclass
class Archive:
    """A `Bundle` of GeoTIFF members, named as in any source directory.

    Attributes:
        path: of the archive.
        name: relative to the source.
        size: height and width that tiles must have, in pixels.
    """

    path: Path
    name: str
    sensor: Sensor
    size: int
    filtered: dict[str, int] = field(default_factory=dict)

    def fingerprint(self) -> str:
        status = self.path.stat()
        return f"{status.st_size} {status.st_mtime_ns}"

    def tiles(self, skip: Container[str]) -> Iterator[tuple[TileSource, Tile | TileError]]:
        last = "none"
        try:
            with tarfile.open(self.path, "r|*", bufsize=1 << 20) as archive:
                for member in archive:
                    source = self._source(member)
                    if source is not None and source.key not in skip:
                        yield source, self._tile(archive, member, source)
                    last = member.name
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise SourceError(
                f"{self.path}: ends early or is damaged ({error}); last whole member: {last}; download it again"
            ) from None

    def _source(self, member: tarfile.TarInfo) -> TileSource | None:
        if not member.isfile():
            return None
        name = member.name.removeprefix("./")
        source = tile_of_name(name, self.sensor.name)
        return source and replace(source, path=f"{self.name}!{name}")

    def _tile(self, archive: tarfile.TarFile, member: tarfile.TarInfo, source: TileSource) -> Tile | TileError:
        file = archive.extractfile(member)
        data = file.read() if file else b""
        if len(data) != member.size:
            raise EOFError(f"{member.name} is cut short")
        try:
            return read_tile_bytes(data, source.path, self.sensor, self.size)
        except TileError as error:
            return error

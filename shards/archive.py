"""A tar archive of tiles as it was downloaded (.tar, .tar.gz): read once, front to back, nothing is unpacked."""

import gzip
import io
import tarfile
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from shards.errors import SourceError, TileError
from shards.geotiff import Tile, read_tile_bytes
from shards.sensors import Sensor
from shards.sources import PRODUCT, TileSource, tile_of_name


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
            with _open(self.path) as file, tarfile.open(fileobj=file, mode="r|", bufsize=1 << 16) as archive:
                for member in archive:
                    source = self._source(member)
                    if source is not None and source.key not in skip:
                        yield source, self._tile(archive, member, source)
                    last = member.name
                file.must_end_after(archive.offset)
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
            product = PRODUCT.match(member.name.rsplit("/", 1)[-1])
            if product and product["image"] and not product["patch"]:
                return TileError(f"{error}; a whole product: unpack it and pack its folder")
            return error


class _Stream(io.RawIOBase):
    """Bytes of an archive, unpacked and counted. tarfile takes the end of a file, and a damaged header, for its end."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file, self._count, self._filled = file, 0, 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        filled = len(data.rstrip(b"\0"))
        if filled:
            self._filled = self._count + filled  # where the last byte that is not zero ends
        self._count += len(data)
        return data

    def must_end_after(self, offset: int) -> None:
        """Read to the end, which also checks gzip's CRC; raises EOFError unless only zeros follow the last member."""
        while self.read(1 << 20):
            pass
        if self._count < offset + tarfile.BLOCKSIZE:
            raise EOFError("no end-of-archive mark")
        if self._filled > offset:
            raise EOFError(f"no readable member header at byte {offset}, but more data")

    def close(self) -> None:
        self._file.close()
        super().close()


def _open(path: Path) -> _Stream:
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return _Stream(gzip.open(path, "rb") if packed else open(path, "rb"))

"""Members of a tar or zip in byte order, and the resolution of links and repeated names."""

import bz2
import errno
import gzip
import io
import lzma
import posixpath
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shards.errors import SourceError
from shards.files.untrusted import check_zipped
from shards.format.manifest import MOST_TILE_BYTES
from shards.format.tar_members import Member as TarMember
from shards.sources.walk import member_name

TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ZIP = ".zip"
COMPRESSED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
"""Openers of compressed files by their first two bytes."""

LARGEST_SPARSE = 4 << 30
"""Maximum size in bytes of a sparse member, whose holes take memory but no space in the archive."""

DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    OSError,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    ValueError,
)
"""Exceptions that reading a damaged archive can raise."""

MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EMFILE)
"""Errors caused by the machine rather than by an archive."""


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        name: relative path, with ``/``.
        number: position in the archive.
        file: opened at the first byte; valid until the next member is requested.
        hard, soft: target name of a hard or symbolic link; links have no file.
    """

    name: str
    number: int
    size: int = 0
    file: IO[bytes] | None = None
    hard: str = ""
    soft: str = ""

    def read(self) -> bytes:
        """Read the full content; raises EOFError if it is truncated, ValueError if it is larger than a tile."""
        if self.size > MOST_TILE_BYTES:
            raise ValueError(f"{self.name} holds {self.size} bytes, more than any tile")
        data = self.file.read() if self.file else b""
        if len(data) != self.size:
            raise EOFError(f"{self.name} is cut short")
        return data

    def copy_to(self, path: Path) -> None:
        """Write the content to a file; raises EOFError if it is truncated."""
        with open(path, "wb") as out:
            if self.file:
                shutil.copyfileobj(self.file, out, 1 << 20)
            if out.tell() != self.size:
                raise EOFError(f"{self.name} is cut short")


def members(path: Path) -> Iterator[Member]:
    """Yield files and links of an archive, front to back; raises one of DAMAGE if it is truncated or damaged."""
    yield from _zip_members(path) if path_is_zip(path) else _tar_members(path)


def damaged(path: Path, last: str, error: BaseException) -> SourceError:
    """Return an error that names a damaged archive and its last intact member."""
    return SourceError(f"{path}: ends early or is damaged ({error}); last complete member: {last}; download it again")


class Links:
    """Resolves names after an archive has been read to its end: a tar may link to members and replace them.

    A hard link is a separate file with the content that its target had when the link was read; a symbolic link is
    another name for the final content of its target.
    """

    def __init__(self) -> None:
        self._content: dict[str, int] = {}  # name -> number of the member that holds its content
        self._linked: dict[str, str] = {}  # names whose last member was a link
        self._soft: dict[str, str] = {}

    def add(self, member: Member) -> bool:
        """Add the next member; return whether its name has occurred before."""
        before = member.name in self._content
        if member.hard:
            self._linked[member.name] = member.hard
            self._soft.pop(member.name, None)
            self._content[member.name] = self._content.get(member.hard, -1)
        elif member.soft:
            self._soft[member.name] = member.soft
        else:
            self._content[member.name] = member.number
            self._linked.pop(member.name, None)
            self._soft.pop(member.name, None)
        return before

    def names(self) -> list[str]:
        """Return all names at the end of the archive."""
        return list(self._content.keys() | self._soft.keys())

    def content(self, name: str) -> int:
        """Return the number of the member that holds a name's content, or -1 for a broken link."""
        for _ in range(40):  # as many links as Linux follows
            if name not in self._soft:
                return self._content.get(name, -1)
            name = self._soft[name]
        return -1

    def hard(self) -> dict[str, str]:
        """Return the hard links and their targets."""
        return self._linked

    def soft(self) -> dict[str, str]:
        """Return the symbolic links and their targets."""
        return self._soft


def path_is_zip(path: Path) -> bool:
    """Return whether a file starts with the signature of a zip file."""
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _tar_members(path: Path) -> Iterator[Member]:
    with _open(path) as stream, tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 16, tarinfo=TarMember) as archive:
        for number, entry in enumerate(archive):
            name = member_name(entry.name)
            if entry.isfile():
                if entry.sparse and entry.size > LARGEST_SPARSE:
                    raise tarfile.ReadError(f"{name} claims {entry.size} bytes, mostly holes")
                yield Member(name, number, entry.size, archive.extractfile(entry))
            elif entry.islnk():
                yield Member(name, number, hard=member_name(entry.linkname))
            elif entry.issym():
                yield Member(name, number, soft=link_target(name, entry.linkname))
        stream.must_end_after(archive.offset)


def _zip_members(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        entries = sorted(
            {info.filename: info for info in archive.infolist()}.values(), key=lambda info: info.header_offset
        )
        for number, info in enumerate(entries):
            name = member_name(info.filename)
            if info.is_dir():
                continue
            check_zipped(info, path.stat().st_size)
            if info.flag_bits & 1:
                raise SourceError(f"{path}: {info.filename} has a password: unpack it and pack its folder")
            if stat.S_ISLNK(info.external_attr >> 16):
                yield Member(name, number, soft=link_target(name, archive.read(info).decode(errors="surrogateescape")))
                continue
            with archive.open(info) as file:
                yield Member(name, number, info.file_size, file)


def link_target(name: str, link: str) -> str:
    """Return the member name that a symbolic link points to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), link))


class _Stream(io.RawIOBase):
    """Decompresses and counts an archive's bytes: tarfile takes a truncated file or a damaged header for its end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._count, self._filled = file, 0, 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        filled = len(data.rstrip(b"\0"))
        if filled:
            self._filled = self._count + filled  # end of the last nonzero byte
        self._count += len(data)
        return data

    def must_end_after(self, offset: int) -> None:
        """Read to the end, which also verifies gzip's CRC; raises EOFError unless only zeros follow the last member."""
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
        first = file.read(2)
    return _Stream(COMPRESSED.get(first, open)(path, "rb"))

"""Storage of a shard folder: a local folder, or anything that fsspec can read by byte ranges.

A reader needs three operations: read a small file completely, read a byte range into a buffer, and get a file size.
Local files are read with pread, not memory-mapped, so that a truncated file causes an error message and not a SIGBUS.
Temporary failures of a network or shared file system are retried (shards/files/patience.py); missing or wrong data is
an error immediately. fsspec is imported only for remote storage.
"""

import errno
import functools
import os
import re
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from shards.errors import MissingShardError, ShardError, UnreachableError
from shards.files.patience import OPENING_S, PATIENCE_S, Patience, Trouble

TIMEOUT_S = 60.0  # timeout of one attempt
MOST_WHOLE = 4 << 30  # maximum bytes of a manifest or tile table, enough for ten million tiles
PIECE = 16 << 20  # maximum bytes of one remote request
MOST_FILES = 1 << 16  # maximum limit of open files that a process requests
_UNREAD = "can't be read"
_VANISHED = (
    "missing, though the manifest lists it: put it back, or mount its file system again, and run the command again"
)
NO_RANGES = "the server ignores range requests and sends the complete file; use one that supports ranges"

_PASSING = {
    getattr(errno, name)
    for name in "EIO ESTALE ETIMEDOUT EAGAIN EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH ENOTCONN ESHUTDOWN ENOLINK "
    "EREMOTEIO ECONNRESET ECONNREFUSED ECONNABORTED ENOMEM ENFILE EMFILE EINTR".split()
}
"""Errors of NFS and Lustre while a server is down or fails over, and errors of an overloaded machine."""
_LOCKED = {errno.EACCES, errno.EPERM}
_LASTING = (PermissionError, IsADirectoryError, ValueError, TypeError, LookupError, AttributeError, RuntimeError)


class Storage(Protocol):
    """A folder of files that are read by name; all methods are thread-safe.

    ``read`` returns a complete small file, ``read_into`` fills a C-contiguous buffer with the bytes from ``offset``,
    ``size`` returns bytes. All raise ShardError if the file is missing or too short, and its subclass
    UnreachableError if the storage did not respond, so that the state of the file is unknown. ``read_into`` is for
    files that a manifest lists, and raises MissingShardError, another subclass, if there is no such file.
    """

    url: str  # for messages

    def read(self, name: str) -> bytes: ...
    def read_into(self, name: str, offset: int, buffer: memoryview) -> None: ...
    def size(self, name: str) -> int: ...
    def close(self) -> None: ...


def open_storage(location: str | Path) -> Storage:
    """Return the storage of a path, a ``file://`` URL or any URL that fsspec supports (``s3://``, ``https://``)."""
    text = str(location)
    if text.startswith("file://"):
        return LocalStorage(Path(unquote(urlsplit(text).path)))
    return RemoteStorage(text) if "://" in text else LocalStorage(Path(text))


class _Descriptor:
    """An open file that is closed with its last reference, so that dropping it never breaks a read in progress."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class LocalStorage:
    """A folder in a mounted file system; keeps files open, up to a quarter of the process's limit.

    Args:
        patience_s: seconds for which reads that a network file system refuses are retried.
    """

    def __init__(self, folder: Path, patience_s: float = PATIENCE_S) -> None:
        self.folder, self.url = folder, str(folder)
        self._patience, self._patience_s = Patience(self.url), patience_s
        self._files: OrderedDict[str, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()
        self._bound = _allowed_files() // 4

    def read(self, name: str) -> bytes:
        return self._repeat(name, (self.folder / name).read_bytes)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        try:
            self._read_into(name, offset, buffer)
        except (FileNotFoundError, NotADirectoryError):
            raise MissingShardError(f"{self.folder / name}: {_VANISHED}") from None
        except OSError:  # repeat with retries, which add no cost to a successful read
            self._repeat(name, lambda: self._read_into(name, offset, buffer))

    def size(self, name: str) -> int:
        return self._repeat(name, lambda: (self.folder / name).stat().st_size)

    def _read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        done, rest = 0, buffer.cast("B")
        file = self._open(name)
        while rest:  # preadv returns early after signals and beyond 2 GiB
            count = os.preadv(file.number, [rest], offset + done)
            if not count:
                size = os.fstat(file.number).st_size
                raise ShardError(_cut_short(f"{self.folder / name}", offset, buffer.nbytes, size))
            done, rest = done + count, rest[count:]

    def _repeat(self, name: str, action: Callable[[], Any]) -> Any:
        path = self.folder / name

        def attempt() -> Any:
            try:
                return action()
            except OSError as error:
                if error.errno in _PASSING:
                    self.close()  # a stale handle stays stale: the next attempt reopens the file
                    raise Trouble(error.strerror) from None
                raise self._error(path, error) from None

        advice = "check the disk or its server (dmesg)"
        return self._patience.repeat(str(path), _UNREAD, self._patience_s, attempt, advice)

    def close(self) -> None:
        """Drop all open files: reads in progress keep theirs, later reads reopen the file by name."""
        with self._lock:
            self._files = OrderedDict()

    def _open(self, name: str) -> _Descriptor:
        with self._lock:
            files = self._files  # the next close drops this dict, with the file being opened now
            if name in files:
                files.move_to_end(name)
                return files[name]
        file = _Descriptor(os.open(self.folder / name, os.O_RDONLY))  # slow on Lustre, so without the lock
        with self._lock:
            files[name] = file
            if len(files) > self._bound:
                files.popitem(last=False)
        return file

    @staticmethod
    def _error(path: Path, error: OSError) -> ShardError:
        if error.errno in _LOCKED:
            return UnreachableError(f"{path}: can't be read: {error.strerror}; ask its owner for access")
        state = "missing" if isinstance(error, FileNotFoundError) else f"can't be read: {error.strerror}"
        return ShardError(f"{path}: {state}; copy or pack it again")


class _Missing(ShardError):
    """There is no such file at a URL."""


class RemoteStorage:
    """A folder at a URL, read by ranges through an fsspec file system; ``sleep`` waits for a number of seconds.

    Files can be written, too, each as a whole.
    """

    def __init__(self, url: str, sleep: Callable[[float], Any] | None = None) -> None:
        self._location = url.rstrip("/")
        self.url = re.sub(r"://[^/@]*@", "://", self._location)  # no passwords in messages
        self._patience = Patience(self.url, sleep)
        self._connect()

    def read(self, name: str) -> bytes:
        size, parts = self.size(name), []
        if size > MOST_WHOLE:
            raise ShardError(f"{self.url}/{name}: {size} bytes is far too large for such a file; check the URL")
        for begin in range(0, size, PIECE):  # in pieces, so that a false size allocates no memory
            piece = bytearray(min(PIECE, size - begin))
            self._read_pieces(name, begin, memoryview(piece), OPENING_S)
            parts.append(piece)
        return b"".join(parts)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        try:
            self._read_pieces(name, offset, buffer, PATIENCE_S)
        except _Missing:
            raise MissingShardError(f"{self.url}/{name}: {_VANISHED}") from None

    def _read_pieces(self, name: str, offset: int, buffer: memoryview, seconds: float) -> None:
        for begin in range(0, buffer.nbytes, PIECE):
            piece, position = buffer.cast("B")[begin : begin + PIECE], offset + begin
            read = functools.partial(self._read_once, name, position, piece)
            self._repeat(name, f"{_UNREAD} at offset {position}", read, seconds)

    def size(self, name: str) -> int:
        size = self._repeat(name, _UNREAD, lambda: self._call("info", name)["size"])
        if size is None:
            raise UnreachableError(f"{self.url}/{name}: the server doesn't report the size; use one that does")
        return size

    def has(self, name: str) -> bool:
        """Return whether there is such a file; raises UnreachableError if that can't be found out."""
        try:
            self.size(name)
        except _Missing:
            return False
        return True

    def write(self, name: str, path: Path) -> None:
        """Copy a local file to the URL, replacing one of this name; repeated like a read."""
        where = f"{self._folder}/{name}"
        try:
            self._repeat(name, "can't be written", lambda: self._filesystem.put_file(str(path), where), PATIENCE_S)
        except _Missing:
            raise ShardError(f"{self.url}: can't be written: no such bucket; make it, or check the URL") from None

    def close(self) -> None:
        """Wake up waiting reads, which then fail."""
        self._patience.close()

    def _connect(self) -> None:
        self._http = self._location.startswith(("http://", "https://"))
        # a compressed response has a different length, and its ranges refer to different bytes
        options = {"headers": {"Accept-Encoding": "identity"}} if self._http else {}
        try:
            from fsspec.core import url_to_fs

            self._filesystem, folder = url_to_fs(self._location, skip_instance_cache=True, **options)
        except (ImportError, ValueError) as error:
            hint = "pip install 'spectralforge[remote]'" if isinstance(error, ImportError) else "check the URL"
            raise ShardError(f"{self.url}: {_reason(error)}; {hint}") from None
        self._folder, self._process = folder.rstrip("/"), os.getpid()

    def _read_once(self, name: str, offset: int, buffer: memoryview) -> None:
        where, length = f"{self.url}/{name}", len(buffer)
        options = {"raise_for_status": functools.partial(_must_be_range, where, offset, length)} if self._http else {}
        try:
            data = self._call("cat_file", name, start=offset, end=offset + length, **options)
        except Exception as error:
            if getattr(error, "status", 0) != 416 and getattr(error, "errno", 0) != errno.EINVAL:
                raise
            data = b""  # HTTP and S3 report this if no byte of the range exists
        if len(data) > length:
            raise UnreachableError(f"{where}: {NO_RANGES}")
        if len(data) < length:
            size = self.size(name)
            if offset + length > size:
                raise ShardError(_cut_short(where, offset, length, size))
            raise ConnectionError(f"{len(data)} bytes, but {length} were requested")
        buffer[:] = data

    def _call(self, method: str, name: str, **options: Any) -> Any:
        if self._process != os.getpid():
            self._connect()  # fsspec's event loop doesn't survive a fork
        if self._filesystem.async_impl:
            options["timeout"] = TIMEOUT_S
        return getattr(self._filesystem, method)(f"{self._folder}/{name}", **options)

    def _repeat(self, name: str, failure: str, action: Callable[[], Any], seconds: float = OPENING_S) -> Any:
        where = f"{self.url}/{name}"

        def attempt() -> Any:
            try:
                return action()
            except ShardError:
                raise
            except Exception as error:  # every backend has its own error types
                cause = _cause(error)
            status = getattr(cause, "status", None)
            if isinstance(cause, FileNotFoundError) or status == 404:
                raise _Missing(f"{where}: missing; check the URL, or copy or pack it again")
            if isinstance(cause, _LASTING) or (status and status < 500 and status not in (408, 429)):
                advice = "check the URL and the credentials, and run the command again"
                raise UnreachableError(f"{where}: {failure}: {_reason(cause)}; {advice}")
            raise Trouble(_reason(cause))

        return self._patience.repeat(where, failure, seconds, attempt)


def _allowed_files() -> int:
    """Raise the soft limit of open files as far as the hard limit allows, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


def _cut_short(where: str, offset: int, length: int, size: int) -> str:
    return f"{where}: cut short: {length} bytes requested at offset {offset}, file has {size}; copy or pack it again"


async def _must_be_range(where: str, offset: int, length: int, response: Any) -> None:
    """Reject a response with the whole file by its headers, before a complete shard is transferred for one tile."""
    if response.status == 200 and (offset or response.content_length != length):
        response.close()
        raise UnreachableError(f"{where}: {NO_RANGES}")


def _cause(error: Exception) -> BaseException:
    """Return the actual error: fsspec's `info` reports every failure of an HTTP server as "not found"."""
    cause = error.__cause__
    hidden = isinstance(cause, TimeoutError) or type(cause).__module__.startswith("aiohttp")
    return cause if cause and hidden else error


def _reason(error: BaseException) -> str:
    """Format an error as part of a line."""
    status = getattr(error, "status", None)  # the text of HTTP errors repeats the URL
    text = " ".join(str(error).split())
    return f"HTTP {status} {getattr(error, 'message', '')}" if status else f"{type(error).__name__}: {text}"

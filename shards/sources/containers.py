"""The files of a product in a folder or a zip file, without unpacking it."""

import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from shards.errors import SourceError, TileError
from shards.files.untrusted import check_zipped
from shards.sources.product import vsizip, zip_names
from shards.sources.raster import Raster, open_raster
from shards.sources.walk import is_data, member_name

MOST_METADATA_BYTES = 64 << 20
"""Maximum size of a metadata file; a METADATA.XML has 300 kB."""


class Container:
    """A folder or zip file.

    Args:
        path: location of the folder or zip file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """Return the names of the files in the folder, or of all members of the zip file."""
        if self.path.is_dir():
            return sorted(entry.name for entry in self.path.iterdir())
        return zip_names(self.path)

    def gdal_name(self, name: str) -> str:
        """Return the name by which GDAL opens a file."""
        return f"{self.path if self.path.is_dir() else vsizip(self.path)}/{name}"

    @contextmanager
    def open_raster(
        self,
        pattern: re.Pattern[str],
        what: str,
        wavelength_nm: Sequence[float] | None = None,
        background: float | None = None,
    ) -> Iterator[Raster]:
        """Open the raster whose name matches a pattern.

        Args:
            what: the file's name in messages.
            wavelength_nm, background: see `Raster`.

        Raises:
            SourceError: there is no such file, or it is no raster.
        """
        matches = [name for name in self.names() if pattern.fullmatch(name)]
        if not matches:
            raise SourceError(f"{self.path}: has no {what}")
        with ExitStack() as stack:
            try:
                raster = stack.enter_context(open_raster(self.gdal_name(matches[0]), wavelength_nm, background))
            except TileError as error:
                raise SourceError(str(error).replace(vsizip(self.path), str(self.path))) from None
            yield raster

    def read(self, name: str) -> bytes:
        """Read a metadata file; raises SourceError if it is unreadable or too large for one."""
        if self.path.is_dir():
            path = self.path / name
            _refuse_large(path.stat().st_size, str(path))
            return path.read_bytes()
        try:
            with zipfile.ZipFile(self.path) as file:
                member = file.getinfo(name)
                check_zipped(member, self.path.stat().st_size)
                _refuse_large(member.file_size, f"{self.path}/{name}")
                return file.read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError, ValueError) as error:
            raise SourceError(
                f"{self.path}: {name} can't be read ({error}); download it again or move it away"
            ) from None


def find_metadata(path: Path, pattern: re.Pattern[str]) -> tuple[Container, str] | None:
    """Find the metadata file of a product.

    Args:
        path: folder, zip file, or the metadata file itself.
        pattern: full name of the metadata file, which may be below folders in a zip file.

    Returns:
        The folder or zip file and the file's name in it; None if there is none.

    Raises:
        SourceError: there are several, or a zip file is unreadable.
    """
    if path.is_file() and pattern.fullmatch(path.name):
        return Container(path.parent), path.name
    if not path.is_dir() and not (path.is_file() and zipfile.is_zipfile(path)):  # under any name
        return None
    container = Container(path)
    names = [name for name in container.names() if pattern.fullmatch(name) and is_data(member_name(name))]
    if len(names) > 1:
        raise SourceError(f"{path}: {len(names)} products in one folder; give each its own folder")
    return (container, names[0]) if names else None


def _refuse_large(size: int, where: str) -> None:
    if size > MOST_METADATA_BYTES:
        raise SourceError(f"{where}: {size} bytes, too large for metadata; download the product again")

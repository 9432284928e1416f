"""Members of a tar that may be anybody's: their headers, as tarfile parses them, before what they claim is believed."""

import tarfile
from typing import Self

from shards.format.manifest import MOST_TILE_BYTES

MOST_HEADER_BYTES = 1 << 20
"""Of a long name or of extended attributes, which tarfile reads whole."""

_LONG = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class Member(tarfile.TarInfo):
    """``tarfile.open(..., tarinfo=Member)`` refuses headers that would take more memory than any honest one does."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _LONG and not 0 <= member.size <= MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a name or attributes of {member.size} bytes")
        return member


def check_member(member: tarfile.TarInfo) -> None:
    """Raise ValueError unless a member's bytes stand in the tar as they are, and are no more than a tile's."""
    if member.issparse():
        raise ValueError("a sparse member: write the tar again without --sparse")
    if not 0 <= member.size <= MOST_TILE_BYTES:
        raise ValueError(f"a member of {member.size} bytes, more than any tile")

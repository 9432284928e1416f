"""Validation of tar members from untrusted sources, as tarfile parses their headers."""

import tarfile
from typing import Self

from shards.format.manifest import MOST_TILE_BYTES

MOST_HEADER_BYTES = 1 << 20
"""Maximum size of a long name or of extended attributes, which tarfile reads into memory."""

_LONG = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class Member(tarfile.TarInfo):
    """A member for ``tarfile.open(..., tarinfo=Member)`` that rejects headers with excessive memory needs."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _LONG and not 0 <= member.size <= MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a name or attributes of {member.size} bytes")
        return member


def check_member(member: tarfile.TarInfo) -> None:
    """Raise ValueError if a member is sparse or larger than any tile."""
    if member.issparse():
        raise ValueError("a sparse member: write the tar again without --sparse")
    if not 0 <= member.size <= MOST_TILE_BYTES:
        raise ValueError(f"a member of {member.size} bytes, more than any tile")

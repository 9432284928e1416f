"""The file list: the result of one scan of the source, saved as text, and its division into shards.

A source of 415,000 directories on Lustre is scanned only once. The list is saved beside the shards; restarts, all
parts of an array job and the merge read it instead of the source. It also determines the shards before any tile is
encoded: locations are permuted by a seed, and a shard is closed after the location with which it reaches
``tiles_per_shard``.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from itertools import groupby
from pathlib import Path

from shards.errors import ShardError, SourceError
from shards.files.atomic import write_atomic
from shards.files.names import inner_path, plain_name
from shards.pack.record import Generation
from shards.sources.tile_names import SourceTile


@dataclass(frozen=True)
class ListedTile:
    """A line of the file list: a tile and, if it came from a bundle, its position in an intermediate shard.

    Attributes:
        intermediate: ``<shard>:<row>`` of its intermediate shard; empty for a file in the source directory.
        rejected: reason why the tile can't be used, if already known.
    """

    source: SourceTile
    intermediate: str = ""
    rejected: str = ""


def cut_shards(tiles: Sequence[ListedTile], tiles_per_shard: int, seed: int) -> list[list[ListedTile]]:
    """Permute the locations by a seed and divide them into shards, keeping the tiles of a location together.

    Args:
        tiles: tiles sorted by location.
    """
    groups = [list(group) for _, group in groupby(tiles, key=lambda tile: tile.source.location)]
    groups.sort(key=lambda group: hashlib.sha256(f"{seed}/{group[0].source.location}".encode()).digest())
    shards: list[list[ListedTile]] = [[]]
    for group in groups:
        if len(shards[-1]) >= tiles_per_shard:
            shards.append([])
        shards[-1].extend(group)
    return shards


def write_list(folder: Path, number: int, tiles: Sequence[ListedTile]) -> tuple[str, str]:
    """Save the list of a generation; returns its file name and SHA-256."""
    name = f"sources-{number:03d}.tsv"
    lines = ["\t".join([*_SOURCE_FIELDS, "spooled", "rejected"])]
    for tile in tiles:
        row = [*astuple(tile.source), tile.intermediate, " ".join(tile.rejected.split())]
        if any("\t" in text or "\n" in text or "\r" in text for text in row):
            raise SourceError(f"{tile.source.path!r}: a tab or line break in a file name; rename the file")
        lines.append("\t".join(row))
    data = ("\n".join(lines) + "\n").encode(errors="surrogateescape")
    write_atomic(folder / name, data)
    return name, hashlib.sha256(data).hexdigest()


def read_list(folder: Path, generation: Generation) -> list[ListedTile]:
    """Read the list of a generation; raises ShardError if it is missing or was changed."""
    path = folder / generation.list_name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ShardError(f"{path}: can't be read: {error.strerror}; remove {folder} and pack again") from None
    if hashlib.sha256(data).hexdigest() != generation.list_sha256:
        raise ShardError(f"{path}: was changed after the scan; remove {folder} and pack again")
    lines = data.decode(errors="surrogateescape").split("\n")[1:-1]
    try:
        return [_parse_line(line) for line in lines]
    except ValueError as error:
        raise ShardError(f"{path}: damaged ({error}); remove {folder} and pack again") from None


def _parse_line(line: str) -> ListedTile:
    """Parse a line of the list; raises ValueError if it is invalid."""
    row = line.split("\t")
    if len(row) != len(_SOURCE_FIELDS) + 2:
        raise ValueError(f"{len(row)} columns, but {len(_SOURCE_FIELDS) + 2} were written")
    source, intermediate = SourceTile(*row[:-2]), row[-2]
    inner_path(source.path)
    if source.mask:
        inner_path(source.mask)
    if intermediate:
        shard, _, number = intermediate.rpartition(":")
        plain_name(shard)
        int(number)
    return ListedTile(source, intermediate, row[-1])


_SOURCE_FIELDS = [field.name for field in fields(SourceTile)]

"""`transcode`: write the samples of a finished dataset with another codec, or into shards of another size.

Samples keep their order, descriptions and labels; by default each shard has the samples of one shard of the source.
Every shard is a job, as in `pack`: one with an index is finished, and after a kill all others are written again. Then
the shards are read back and compared with the source, whose files are checked against their hashes, and only then is
the manifest written: it proves that the comparison has been made.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import ConfigError, ShardError
from shards.files.atomic import TEMPORARY, sweep, write_atomic
from shards.files.lock import held
from shards.files.storage import open_storage
from shards.format.bounded import BoundedPredictor
from shards.format.codec_registry import build_codec, codec_of, is_foreign
from shards.format.error_bounds import error_bounds, max_error, violation
from shards.format.manifest import (
    FORMAT,
    MANIFEST,
    Manifest,
    Origin,
    Rejected,
    SealedModel,
    Sha256,
    ShardIndex,
    read_json,
    sensor_of,
    to_json,
)
from shards.format.planes import same_codes
from shards.format.statistics import BandSums
from shards.pack.merge import join_shards, shard_name
from shards.pack.stored import StoredDataset, StoredSample, read_samples
from shards.pack.writer import Sample, index_path, is_complete, stored_values, write_shard
from shards.sources.walk import is_data
from shards.workers import counters, run_jobs

RECORD = "transcode.json"
LOCK = "transcode.lock"


class TranscodeRecord(SealedModel):
    """What a folder is made from and how; a restart must be given the same.

    Attributes:
        source: content hash of the source.
        codec: config of the codec.
        tiles_per_shard: as for `pack`; None keeps the shards of the source.
    """

    source: Sha256
    codec: dict[str, Any]
    tiles_per_shard: int | None


@dataclass(frozen=True)
class Transcoded:
    """The result of `transcode`: manifests of source and result, and the number of shards written by this run."""

    source: Manifest
    manifest: Manifest
    written: int


def transcode(
    source: str, dest: Path, codec: str | None, tiles_per_shard: int | None = None, workers: int = 1
) -> Transcoded:
    """Write the samples of a finished dataset into ``dest``, or continue an earlier run.

    Args:
        source: folder or URL of shards.
        codec: as for `pack --codec`; None copies the encoded tiles, and one that differs in nothing but compression
            keeps their codes.
        tiles_per_shard: tiles with which a shard is closed, after the last tile in a row of its location; None keeps
            the shards of the source.
        workers: number of processes.

    Raises:
        ShardError: if the source is unfinished or damaged, ``dest`` was made otherwise, or a comparison fails.
        ConfigError: if nothing would change, or the source is less exact than the codec.
    """
    stored = StoredDataset(source)
    try:
        manifest = stored.manifest
        config = manifest.codec if codec is None else codec_of(codec).get_config()
        _check_codec(source, manifest, config, tiles_per_shard)
        _check_dest(source, dest)
        cut = _cut(stored, tiles_per_shard)
    finally:
        stored.close()
    record = TranscodeRecord(format=FORMAT, source=manifest.content_hash, codec=config, tiles_per_shard=tiles_per_shard)
    _begin(dest, record.sealed())
    jobs = [(source, dest / shard_name(number), rows, config) for number, rows in enumerate(cut)]
    missing = [job for job in jobs if not is_complete(job[1])]
    for _, tar, _, _ in missing:
        sweep(dest, f"{tar.stem}.*")
    done = manifest.tiles - sum(len(rows) for _, _, rows, _ in missing)
    for _ in run_jobs(_write, missing, workers, manifest.tiles, done, "transcode"):
        pass
    unproven = missing if (dest / MANIFEST).exists() else jobs
    total = sum(len(rows) for _, _, rows, _ in unproven)
    for _ in run_jobs(_compare, unproven, workers, total, 0, "verify"):
        pass
    names = [tar.name for _, tar, _, _ in jobs]
    origin = Origin(content_hash=manifest.content_hash, codec=manifest.codec, max_error=max_error(manifest))
    made = join_shards(dest, names, config, manifest.tile_shape, sensor_of(manifest), 1, origin)
    return Transcoded(manifest, made, len(missing))


def _check_codec(source: str, manifest: Manifest, config: dict[str, Any], tiles_per_shard: int | None) -> None:
    """Raise an error if a dataset can't be transcoded, or its tiles are less exact than the codec promises."""
    if is_foreign(manifest.codec):
        raise ShardError(f"{source}: indexed tars of another writer; pack them: python -m shards pack {source} DEST")
    if config == manifest.codec:
        if tiles_per_shard is None:
            raise ConfigError(f"{source}: has the codec {config} already; give another one, or --tiles-per-shard")
        return
    if same_codes(build_codec(manifest.codec), build_codec(config)):
        return
    known = max_error(manifest)
    wanted = str(config["max_error"]) if config["id"] == BoundedPredictor.codec_id else ""
    if known and wanted and _is_tighter(wanted, known):
        raise ConfigError(
            f"{source}: its pixels have errors up to {known} already, so --max-error {wanted} can't be kept: transcode "
            "the lossless shards, or choose a lossless codec, which keeps the present bound"
        )


def _is_tighter(wanted: str, known: str) -> bool:
    """Return whether a bound is not above a term of another one in the same unit: the sum of both would exceed it."""
    terms = known.split(" + ")
    if wanted.isdecimal():
        return any(term.isdecimal() and int(wanted) <= int(term) for term in terms)
    divisor = float(wanted.partition("/")[2])
    return any("/" in term and divisor >= float(term.partition("/")[2]) for term in terms)


def _check_dest(source: str, dest: Path) -> None:
    if "://" not in source and dest.resolve() == Path(source).resolve():
        raise ConfigError(f"{dest}: SRC and DEST are the same folder; choose another DEST")
    if dest.exists() and not dest.is_dir():
        raise ShardError(f"{dest}: a file; choose a folder")
    if not dest.exists() or (dest / RECORD).exists():
        return
    names = [path.name for path in dest.iterdir() if is_data(path.name)]
    if any(name != LOCK and not name.endswith(TEMPORARY) for name in names) and not (dest / RECORD).exists():
        raise ShardError(f"{dest}: not empty and not written by transcode; choose another folder")


def _begin(dest: Path, record: TranscodeRecord) -> None:
    """Write the record, or raise ShardError if the folder is another dataset's or was begun with other options."""
    dest.mkdir(parents=True, exist_ok=True)
    with held(dest / LOCK):
        sweep(dest, f"{RECORD}.*")
        if not (dest / RECORD).exists():
            write_atomic(dest / RECORD, to_json(record))
            return
    begun = read_json(dest / RECORD, TranscodeRecord)
    if begun.source != record.source:
        raise ShardError(f"{dest}: was made from another dataset; choose another folder or remove this one")
    for name in ("codec", "tiles_per_shard"):
        then, now = getattr(begun, name), getattr(record, name)
        if then != now:
            raise ShardError(
                f"{dest}: was transcoded with other options ({name}: {then} then, {now} now); "
                "choose another folder or remove this one"
            )


def _cut(source: StoredDataset, tiles_per_shard: int | None) -> list[range]:
    """Return the rows of the source in each shard of the result."""
    if tiles_per_shard is None:
        lengths = [entry.tiles for entry in source.manifest.shards]
    else:
        lengths = [0]
        for _, group in groupby(source.location_ids().tolist()):
            if lengths[-1] >= tiles_per_shard:
                lengths.append(0)
            lengths[-1] += len(list(group))
    return [range(*ends) for ends in pairwise(accumulate(lengths, initial=0))]


def _source_rows(source: StoredDataset, rows: range) -> Iterator[tuple[int, range]]:
    """Yield the number of each shard of the source that has some of these rows, and its own rows among them."""
    first = 0
    for number, entry in enumerate(source.manifest.shards):
        inside = range(max(rows.start, first) - first, min(rows.stop, first + entry.tiles) - first)
        if inside:
            yield number, inside
        first += entry.tiles


def _write(location: str, tar: Path, rows: range, config: dict[str, Any]) -> None:
    """Write one shard from rows of the source."""
    source = StoredDataset(location)
    try:
        write_shard(tar, _encoded(source, rows, config), source.manifest.tile_shape[0])
    finally:
        source.close()


def _encoded(source: StoredDataset, rows: range, config: dict[str, Any]) -> Iterator[Sample | Rejected]:
    """Yield the samples of the source with the other codec, and the tiles set aside where their shard begins."""
    manifest = source.manifest
    before, after = build_codec(manifest.codec), build_codec(config)
    values = np.empty(manifest.tile_shape, dtype=np.int16)
    for number, inside in _source_rows(source, rows):
        index = source.index(number)
        if inside.start == 0:
            yield from index.rejected
        for sample in read_samples(source.storage, index, inside):
            name = f"{source.storage.url}/{index.shard}: tile '{sample.row['key']}'"
            _decode(before, sample.tile, values, name)
            encoded, stored = sample.tile, values
            if config != manifest.codec and same_codes(before, after):
                encoded = after.recompress(sample.tile, before)
            elif config != manifest.codec:
                encoded = bytes(after.encode(values))
                stored = stored_values(values, encoded, after, name)
            counters().add(1, values.nbytes, len(encoded))
            yield Sample(sample.row["key"], encoded, sample.description, sample.mask, BandSums.of(stored), sample.row)


def _compare(location: str, tar: Path, rows: range, config: dict[str, Any]) -> None:
    """Compare a written shard with the source; raises ShardError for the first difference.

    A shard of the source is checked against its hash with its last row, so that all of them are, once.
    """
    source, written = StoredDataset(location), open_storage(tar.parent)
    try:
        manifest, index = source.manifest, read_json(index_path(tar), ShardIndex)
        codecs = build_codec(manifest.codec), build_codec(config)
        new = read_samples(written, index, range(len(index.tiles.key)))
        for number, inside in _source_rows(source, rows):
            for old in read_samples(source.storage, source.index(number), inside):
                differs = _difference(old, next(new, None), codecs, manifest.tile_shape)
                if differs:
                    raise ShardError(
                        f"{tar}: tile '{old.row['key']}': {differs}; remove this file and run the same command again"
                    )
                counters().add(1, 2 * int(np.prod(manifest.tile_shape)), len(old.tile))
            if inside.stop == manifest.shards[number].tiles:
                source.check_hash(number)
        if next(new, None) is not None:
            raise ShardError(f"{tar}: has more tiles than its source; remove it and run the same command again")
    finally:
        source.close()
        written.close()


def _difference(old: StoredSample, new: StoredSample | None, codecs: Sequence[Any], shape: list[int]) -> str:
    """Describe how a sample differs from its source beyond the codec's bounds; empty if it doesn't."""
    if new is None:
        return "is missing"
    for name in ("row", "description", "mask"):
        if getattr(old, name) != getattr(new, name):
            return f"another {'label' if name == 'mask' else 'description'} than in the source"
    before, after = (np.empty(shape, dtype=np.int16) for _ in codecs)
    _decode(codecs[0], old.tile, before, "")
    _decode(codecs[1], new.tile, after, "")
    return violation(before, after, error_bounds(codecs[1], new.tile))


def _decode(codec: Any, data: bytes, out: np.ndarray, name: str) -> None:
    try:
        codec.decode(data, out)
    except ShardError as error:
        raise ShardError(f"{name}: {error}" if name else str(error)) from None

"""`python -m shards COMMAND`: make, join, check, describe and index folders of shards."""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.cli import Parser, limit, name_list, part, positive, run_command, share, share_above_0, whole_number
from shards.console import get_logger
from shards.errors import ConfigError

MAX_BAD = 0.01

logger = get_logger("shards")


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 not finished or problems found, 2 misuse."""
    return run_command(build_parser(), argv, kept="finished shards are kept; run the same command again to continue")


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(prog="python -m shards", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_pack(commands)
    _add_estimate(commands)
    _add_merge(commands)
    _add_transcode(commands)
    _add_upload(commands)
    _add_verify(commands)
    _add_stats(commands)
    _add_inspect(commands)
    _add_index(commands)
    return parser


def _add_pack(commands: argparse._SubParsersAction) -> None:
    pack = commands.add_parser("pack", help="write tiles, archives or products into shards")
    pack.add_argument("source", type=Path, help="folder of tiles, archives, products or scenes, or one of these")
    pack.add_argument("dest", type=Path, help="folder of shards; the same command continues an interrupted one")
    _packing(pack)
    pack.add_argument("--part", type=part, metavar="K/N", help="every N-th shard only, K from 1; then `merge`")
    pack.add_argument("--append", action="store_true", help="add tiles that DEST lacks; existing shards stay")
    pack.add_argument("--labels", type=Path, help="folder of label tiles with the names of the tiles, or polygons")
    pack.add_argument(
        "--align", choices=("nearest",), help="bring labels of another grid to the tiles' (default: refuse)"
    )
    pack.add_argument("--label-field", metavar="NAME", help="field of the polygons that holds the class code")
    pack.add_argument("--label-layer", metavar="NAME", help="layer of a file of polygons with several")
    pack.add_argument("--splits", type=Path, help="folder of train.txt, val.txt and test.txt (default: by location)")
    pack.add_argument("--max-bad", type=share, help=f"allowed share of bad tiles (default: {MAX_BAD})")
    pack.add_argument(
        "--dry-run", action="store_true", help="print what would be written, from the list and a few tiles"
    )
    pack.set_defaults(run=_pack)


def _packing(parser: argparse.ArgumentParser) -> None:
    """Add the options of `PackConfig`, and ``--workers``."""
    parser.add_argument(
        "--sensor",
        default="enmap",
        help="sensor whose bands the tiles have: a name, a band table (CSV), or a scene that describes its bands "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--size", type=positive, help="tile height and width in pixels; larger rasters are cut (default: the commonest)"
    )
    parser.add_argument("--pattern", help="which files of SOURCE are tiles, e.g. '**/*_SPECTRAL_IMAGE.TIF'")
    _codecs(parser, "compact")
    parser.add_argument("--tiles-per-shard", type=positive, default=400, help="default: %(default)s, about 1 GB")
    parser.add_argument("--seed", type=whole_number, default=0, help="of the order of locations (default: %(default)s)")
    _workers(parser)
    parser.add_argument(
        "--mask-quality",
        type=name_list,
        default=(),
        metavar="LAYER,...",
        help="quality layers of products whose flagged values become missing, e.g. cloud,cirrus",
    )
    limits = parser.add_argument_group("largest share of a tile's pixels, for L2A products ('none': no limit)")
    for name in ("cloud", "cloud-shadow", "haze", "cirrus", "snow", "nodata"):
        limits.add_argument(f"--max-{name}", type=limit, default=..., metavar="SHARE")


def _add_estimate(commands: argparse._SubParsersAction) -> None:
    estimate = commands.add_parser("estimate", help="size, noise and time of packing a source, from a sample of tiles")
    estimate.add_argument("source", type=Path, help="what `pack` would be given; nothing is written")
    _packing(estimate)
    estimate.add_argument("--tiles", type=positive, default=64, help="tiles to sample (default: %(default)s)")
    estimate.add_argument("--json", action="store_true", help="print it as JSON, with the noise of every band")
    estimate.set_defaults(run=_estimate)


def _add_merge(commands: argparse._SubParsersAction) -> None:
    merge = commands.add_parser("merge", help="join the parts of an array job into a dataset")
    merge.add_argument("dest", type=Path, help="the folder that the parts wrote")
    _workers(merge)
    merge.add_argument("--max-bad", type=share, help=f"allowed share of bad tiles (default: {MAX_BAD})")
    merge.set_defaults(run=_merge)


def _add_transcode(commands: argparse._SubParsersAction) -> None:
    transcode = commands.add_parser("transcode", help="write finished shards with another codec, and compare them")
    transcode.add_argument("source", metavar="SRC", help="folder or URL of shards")
    transcode.add_argument(
        "dest",
        type=Path,
        metavar="DEST",
        help="folder of new shards; the same command continues an interrupted one",
    )
    _codecs(transcode, "that of SRC")
    transcode.add_argument("--tiles-per-shard", type=positive, help="default: the shards of SRC, one by one")
    _workers(transcode)
    transcode.set_defaults(run=_transcode)


def _add_upload(commands: argparse._SubParsersAction) -> None:
    upload = commands.add_parser("upload", help="copy a finished folder to an object store, and read it back")
    upload.add_argument("folder", type=Path, help="folder of shards")
    upload.add_argument("url", help="e.g. s3://bucket/name; the same command continues an interrupted one")
    upload.add_argument("--workers", type=positive, default=4, help="files at a time (default: %(default)s)")
    upload.set_defaults(run=_upload)


def _add_verify(commands: argparse._SubParsersAction) -> None:
    verify = commands.add_parser("verify", help="read every byte again, and compare with the sources if they are given")
    verify.add_argument("folder", type=Path)
    verify.add_argument("--source", type=Path, help="directory that was packed: tiles are compared with it")
    verify.add_argument("--labels", type=Path, help="folder of label tiles (or polygons), compared likewise")
    verify.add_argument(
        "--sample", type=share_above_0, default=1.0, metavar="SHARE", help="share of the tiles to check"
    )
    _workers(verify)
    verify.set_defaults(run=_verify)


def _add_stats(commands: argparse._SubParsersAction) -> None:
    stats = commands.add_parser("stats", help="per-band statistics with percentiles; writes mu.npy and sigma.npy")
    stats.add_argument("folder", type=Path)
    stats.add_argument("--part", type=part, metavar="K/N", help="every N-th shard only; a run without it joins them")
    _workers(stats)
    stats.set_defaults(run=_stats)


def _add_inspect(commands: argparse._SubParsersAction) -> None:
    inspect = commands.add_parser("inspect", help="what a folder of shards holds; one tile as a picture")
    inspect.add_argument("folder", help="folder or URL")
    inspect.add_argument("--tile", help="sample key or row number to draw as RGB and spectra")
    inspect.add_argument("--picture", type=Path, default=Path("tile.png"), help="default: %(default)s")
    inspect.set_defaults(run=_inspect)


def _add_index(commands: argparse._SubParsersAction) -> None:
    index = commands.add_parser("index", help="index existing WebDataset tars, with .tif, .npy or our own members")
    index.add_argument("folder", type=Path, help="folder of .tar files; table and manifest are written beside them")
    index.add_argument("--sensor", default="enmap", help="sensor whose bands the tiles have (default: %(default)s)")
    _workers(index)
    index.set_defaults(run=_index)


def _codecs(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--codec",
        metavar="CODEC",
        help="raw, fast, compact, smallest, a codec of a plugin or of numcodecs (zstd, or its config as JSON) "
        f"(default: {default})",
    )
    parser.add_argument(
        "--max-error",
        metavar="BOUND",
        help="allow this error in every pixel, for smaller shards: digital numbers (3), reflectance (0.0003), or a "
        "share of each band's noise in the tile (noise/4); missing values and zeros stay exact (default: lossless)",
    )


def _workers(parser: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0))  # the cores that SLURM allocated, not all cores of the node
    parser.add_argument("--workers", type=positive, default=cores, help="processes (default: all cores)")


def _pack(arguments: argparse.Namespace) -> int:
    from shards.pack import build, scan  # imported here so that --help doesn't wait for GDAL
    from shards.sources.scene_sensor import find_sensor

    begin = time.monotonic()
    codec = _codec(arguments, lambda: find_sensor(arguments.sensor).scale)
    config = scan.PackConfig(**_pack_values(arguments, codec or "compact"))
    _check_options(arguments)
    label_options = arguments.align, arguments.label_field, arguments.label_layer
    labels = scan.Labels(arguments.labels, arguments.splits, *label_options) if arguments.labels else None
    if arguments.dry_run:
        print(scan.describe(arguments.source, arguments.dest, config, labels, arguments.append, arguments.workers))
        return 0
    part = build.Part(*arguments.part) if arguments.part else build.Part()
    written = build.pack_part(
        arguments.source, arguments.dest, config, part, arguments.workers, labels, arguments.append
    )
    if arguments.part:
        seconds = time.monotonic() - begin
        print(f"part {part.number}/{part.of}: {written} shards written in {seconds:.1f} s")
        print(f"when all parts are done: python -m shards merge {arguments.dest}")
        return 0
    return _finish(arguments, written, begin)


def _pack_values(arguments: argparse.Namespace, codec: str) -> dict[str, Any]:
    """Return the values of `PackConfig` from the options of `_packing`."""
    from shards.sources.limits import SceneLimits

    limits = {name: getattr(arguments, f"max_{name}") for name in SceneLimits.model_fields}
    given = {name: value for name, value in limits.items() if value is not ...}
    names = ("sensor", "size", "tiles_per_shard", "seed", "pattern", "mask_quality")
    values = {name: getattr(arguments, name) for name in names}
    return values | {"codec": codec, "limits": SceneLimits(**given)}


def _estimate(arguments: argparse.Namespace) -> None:
    from shards.pack.estimate import BOUNDS, estimate
    from shards.pack.scan import PackConfig
    from shards.sources.scene_sensor import find_sensor

    bounds = list(BOUNDS)
    if arguments.max_error is not None:
        bounds.append(_max_error(arguments, find_sensor(arguments.sensor).scale))
    config = PackConfig(**_pack_values(arguments, arguments.codec or "compact"))
    made = estimate(arguments.source, config, arguments.tiles, arguments.workers, tuple(dict.fromkeys(bounds)))
    print(json.dumps(made.to_dict()) if arguments.json else "\n".join(made.lines()))


def _codec(arguments: argparse.Namespace, scale: Callable[[], float]) -> str | None:
    """Return the codec that was given, None for the default; raises ConfigError for an invalid bound on errors.

    Args:
        scale: returns the digital number of reflectance 1.
    """
    if arguments.max_error is None:
        return arguments.codec
    if arguments.codec is not None:
        raise ConfigError(f"--max-error has a codec of its own: remove --codec {arguments.codec}")
    from shards.format.bounded import BoundedPredictor

    return json.dumps(BoundedPredictor(_max_error(arguments, scale())).get_config())


def _max_error(arguments: argparse.Namespace, scale: float) -> str:
    """Return the bound of ``--max-error`` as the codec takes it; raises ConfigError if it is invalid."""
    from shards.format.bounded import parse_max_error

    try:
        return parse_max_error(arguments.max_error, scale)
    except ValueError as error:
        raise ConfigError(f"--max-error: {error}") from None


def _check_options(arguments: argparse.Namespace) -> None:
    """Raise ConfigError if DEST is a URL, or if an option has no effect in combination with the others."""
    _check_folder(arguments.dest)
    if arguments.labels is None:
        if arguments.align or arguments.label_field or arguments.label_layer:
            raise ConfigError("--align, --label-field and --label-layer set how labels are read: give --labels, too")
        if arguments.splits:
            raise ConfigError("--splits has no effect without --labels: give --labels, too")
    if arguments.splits and not arguments.splits.is_dir():
        raise ConfigError(f"--splits: {arguments.splits}: no such folder of train.txt, val.txt and test.txt")
    if arguments.part and arguments.dry_run:
        raise ConfigError("--part has no effect with --dry-run: remove one of them")
    if arguments.part and arguments.max_bad is not None:
        raise ConfigError("--max-bad has no effect with --part: give it to `python -m shards merge`")


def _check_folder(dest: Path) -> None:
    """Raise ConfigError if DEST is a URL."""
    if re.match(r"\w+:/", str(dest)):  # Path makes s3:/ of s3://
        raise ConfigError(
            f"{dest}: a URL, but shards are written into a folder; then copy them there: "
            "python -m shards upload FOLDER URL"
        )


def _merge(arguments: argparse.Namespace) -> int:
    return _finish(arguments, 0, time.monotonic())


def _finish(arguments: argparse.Namespace, written: int, begin: float) -> int:
    """Merge the shards into a dataset and print a summary."""
    from shards.pack import build
    from shards.sources.plain import RIM

    max_bad = MAX_BAD if arguments.max_bad is None else arguments.max_bad
    result = build.merge(arguments.dest, arguments.workers, max_bad, getattr(arguments, "source", None))
    for bad in result.rejected:
        logger.warning(f"set aside: {bad.path}: {bad.reason}")
    manifest, written = result.manifest, written + result.written
    raw = manifest.tiles * 2 * manifest.tile_shape[0] * manifest.tile_shape[1] * manifest.tile_shape[2]
    stored = sum(entry.size for entry in manifest.shards)
    rim = result.filtered.pop(RIM, 0)
    filtered = "".join(f", {count} excluded ({reason})" for reason, count in sorted(result.filtered.items()))
    filtered += f", {rim} {RIM} excluded" if rim else ""
    print(
        f"packed {manifest.tiles} tiles of {manifest.locations} locations into {len(manifest.shards)} shards "
        f"({written} written now, {len(result.rejected)} tiles set aside{filtered}): {raw / 1e6:.1f} MB -> "
        f"{stored / 1e6:.1f} MB ({raw / max(stored, 1):.2f}x) in {time.monotonic() - begin:.1f} s: {arguments.dest}"
    )
    if not written:
        print("nothing to do: all shards exist; add new tiles of SOURCE with --append")
    return 0


def _transcode(arguments: argparse.Namespace) -> None:
    from shards.format.error_bounds import describe_max_error, max_error
    from shards.pack.stored import StoredDataset
    from shards.pack.transcode import transcode

    begin = time.monotonic()
    _check_folder(arguments.dest)
    codec = _codec(arguments, lambda: StoredDataset(arguments.source).manifest.scale)
    done = transcode(arguments.source, arguments.dest, codec, arguments.tiles_per_shard, arguments.workers)
    before, after = (sum(entry.size for entry in manifest.shards) for manifest in (done.source, done.manifest))
    print(
        f"transcoded {done.manifest.tiles} tiles into {len(done.manifest.shards)} shards ({done.written} written now): "
        f"{before / 1e6:.1f} MB -> {after / 1e6:.1f} MB ({before / after:.2f}x) in {time.monotonic() - begin:.1f} s: "
        f"{arguments.dest}"
    )
    known, total = max_error(done.source), max_error(done.manifest)
    bound = describe_max_error(str(done.manifest.codec.get("max_error", "that of the codec")))
    exactness = "equal" if total == known else f"within the bound, {bound}"
    print(f"compared with {arguments.source}: every pixel is {exactness}")
    if known:
        print(f"{arguments.source} has errors up to {known} itself: the manifest of {arguments.dest} states {total}")


def _upload(arguments: argparse.Namespace) -> None:
    from shards.pack.upload import upload

    begin = time.monotonic()
    done = upload(arguments.folder, arguments.url, arguments.workers)
    print(
        f"{arguments.folder}: {done.files} files, {done.nbytes / 1e6:.1f} MB, are at {done.url} as they are here "
        f"({done.written} written now, each read back) in {time.monotonic() - begin:.1f} s"
    )


def _verify(arguments: argparse.Namespace) -> int:
    from shards.check.verify import Sources, verify

    sources = Sources(arguments.source, arguments.labels)
    return verify(arguments.folder, sources, arguments.sample, arguments.workers)


def _stats(arguments: argparse.Namespace) -> int:
    from shards.check.stats import stats

    return stats(arguments.folder, arguments.part, arguments.workers)


def _inspect(arguments: argparse.Namespace) -> int:
    from shards.check.inspect import inspect

    return inspect(arguments.folder, arguments.tile, arguments.picture)


def _index(arguments: argparse.Namespace) -> int:
    from shards.pack.index import index_tars

    return index_tars(arguments.folder, arguments.sensor, arguments.workers)


if __name__ == "__main__":
    sys.exit(main())

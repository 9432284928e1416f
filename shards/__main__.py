"""`python -m shards COMMAND`: make, join, check, describe and index folders of shards."""

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

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
    _add_merge(commands)
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
    pack.add_argument(
        "--sensor",
        default="enmap",
        help="sensor whose bands the tiles have: a name, a band table (CSV), or a scene that describes its bands "
        "(default: %(default)s)",
    )
    pack.add_argument(
        "--size", type=positive, help="tile height and width in pixels; larger rasters are cut (default: the commonest)"
    )
    pack.add_argument("--pattern", help="which files of SOURCE are tiles, e.g. '**/*_SPECTRAL_IMAGE.TIF'")
    pack.add_argument(
        "--codec",
        metavar="CODEC",
        help="raw, fast, compact, a codec of a plugin or of numcodecs (zstd, or its config as JSON); default: compact",
    )
    pack.add_argument(
        "--max-error",
        metavar="BOUND",
        help="allow this error in every pixel, for smaller shards: digital numbers (3), reflectance (0.0003), or a "
        "share of each band's noise in the tile (noise/4); missing values and zeros stay exact (default: lossless)",
    )
    pack.add_argument("--tiles-per-shard", type=positive, default=400, help="default: %(default)s, about 1 GB")
    pack.add_argument("--seed", type=whole_number, default=0, help="of the order of locations (default: %(default)s)")
    _workers(pack)
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
    pack.add_argument(
        "--mask-quality",
        type=name_list,
        default=(),
        metavar="LAYER,...",
        help="quality layers of products whose flagged values become missing, e.g. cloud,cirrus",
    )
    limits = pack.add_argument_group("largest share of a tile's pixels, for L2A products ('none': no limit)")
    for name in ("cloud", "cloud-shadow", "haze", "cirrus", "snow", "nodata"):
        limits.add_argument(f"--max-{name}", type=limit, default=..., metavar="SHARE")
    pack.set_defaults(run=_pack)


def _add_merge(commands: argparse._SubParsersAction) -> None:
    merge = commands.add_parser("merge", help="join the parts of an array job into a dataset")
    merge.add_argument("dest", type=Path, help="the folder that the parts wrote")
    _workers(merge)
    merge.add_argument("--max-bad", type=share, help=f"allowed share of bad tiles (default: {MAX_BAD})")
    merge.set_defaults(run=_merge)


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


def _workers(parser: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0))  # the cores that SLURM allocated, not all cores of the node
    parser.add_argument("--workers", type=positive, default=cores, help="processes (default: all cores)")


def _pack(arguments: argparse.Namespace) -> int:
    from shards.pack import build, scan  # imported here so that --help doesn't wait for GDAL
    from shards.sources.limits import SceneLimits

    begin = time.monotonic()
    names = SceneLimits.model_fields
    limits = {name: getattr(arguments, f"max_{name}") for name in names if getattr(arguments, f"max_{name}") is not ...}
    config = scan.PackConfig(
        sensor=arguments.sensor,
        size=arguments.size,
        tiles_per_shard=arguments.tiles_per_shard,
        seed=arguments.seed,
        codec=_codec(arguments),
        pattern=arguments.pattern,
        limits=SceneLimits(**limits),
        mask_quality=arguments.mask_quality,
    )
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


def _codec(arguments: argparse.Namespace) -> str:
    """Return the codec of `pack`; raises ConfigError for an invalid bound on errors."""
    if arguments.max_error is None:
        return str(arguments.codec or "compact")
    if arguments.codec is not None:
        raise ConfigError(f"--max-error has a codec of its own: remove --codec {arguments.codec}")
    from shards.format.bounded import BoundedPredictor, parse_max_error
    from shards.sources.scene_sensor import find_sensor

    scale = find_sensor(arguments.sensor).scale
    try:
        bound = parse_max_error(arguments.max_error, scale)
    except ValueError as error:
        raise ConfigError(f"--max-error: {error}") from None
    return json.dumps(BoundedPredictor(bound).get_config())


def _check_options(arguments: argparse.Namespace) -> None:
    """Raise ConfigError if DEST is a URL, or if an option has no effect in combination with the others."""
    if re.match(r"\w+:/", str(arguments.dest)):  # Path makes s3:/ of s3://
        raise ConfigError(
            f"{arguments.dest}: a URL, but shards are packed into a folder; then copy them there: "
            "python -m shards upload FOLDER URL"
        )
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

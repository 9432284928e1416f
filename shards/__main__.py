"""`python -m shards pack SOURCE DEST`: the command line of the shard floor."""

import argparse
import os
import sys
import time
from pathlib import Path

from shards.errors import ForgeError


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit code (0 done, 1 could not be finished, 2 misuse)."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except ForgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: finished shards are kept, the same command continues", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m shards", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    pack = commands.add_parser("pack", help="write a directory of GeoTIFF tiles into shards")
    pack.add_argument("source", type=Path, help="directory of tiles, e.g. one that holds enmap/<location>/<scene>.tif")
    pack.add_argument("dest", type=Path, help="folder of shards; the same command continues an interrupted one")
    pack.add_argument("--sensor", default="enmap", help="whose bands the tiles have (default: %(default)s)")
    pack.add_argument("--size", type=_positive, help="tile height and width in pixels (default: the commonest)")
    pack.add_argument("--tiles-per-shard", type=_positive, default=320, help="default: %(default)s, about 1 GB")
    pack.add_argument("--seed", type=int, default=0, help="of the order of locations (default: %(default)s)")
    pack.add_argument("--workers", type=_positive, default=os.cpu_count() or 1, help="processes (default: all cores)")
    pack.add_argument("--max-bad", type=float, default=0.01, help="allowed share of bad tiles (default: %(default)s)")
    pack.set_defaults(run=_pack)
    return parser


def _positive(text: str) -> int:
    """A whole number above 0; argparse makes one line of the error."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _pack(arguments: argparse.Namespace) -> int:
    from shards.build import PackConfig, pack  # imported here: --help must not wait for GDAL

    begin = time.monotonic()
    config = PackConfig(
        sensor=arguments.sensor, size=arguments.size, tiles_per_shard=arguments.tiles_per_shard, seed=arguments.seed
    )
    result = pack(arguments.source, arguments.dest, config, arguments.workers, arguments.max_bad)
    for bad in result.rejected:
        print(f"set aside: {arguments.source / bad.path}: {bad.reason}", file=sys.stderr)
    manifest = result.manifest
    raw = manifest.tiles * 2 * manifest.tile_shape[0] * manifest.tile_shape[1] * manifest.tile_shape[2]
    stored = sum(entry.size for entry in manifest.shards)
    print(
        f"packed {manifest.tiles} tiles of {manifest.locations} locations into {len(manifest.shards)} shards "
        f"({result.written} written now, {len(result.rejected)} tiles set aside): {raw / 1e6:.1f} MB -> "
        f"{stored / 1e6:.1f} MB ({raw / max(stored, 1):.2f}x) in {time.monotonic() - begin:.1f} s: {arguments.dest}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

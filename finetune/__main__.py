"""`python -m finetune COMMAND`: use fine-tuned models."""

import argparse
import sys

from finetune import predict
from shards.errors import ForgeError


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit code (0 done, 1 could not be finished, 2 misuse)."""
    parser = argparse.ArgumentParser(prog="python -m finetune", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("predict", help="map a whole scene", description=predict.__doc__)
    predict.add_arguments(command)
    command.set_defaults(run=predict.run)
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments)
    except ForgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        print(f"error: {what}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: nothing was written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

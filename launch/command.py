"""Code shared by all training commands: parsing argv to a typed config, and reporting errors as one line from rank 0.

Nothing heavy is imported here, so a wrong key is reported at once under every launcher.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import NoReturn, TypeVar

from launch.ranks import adopt_slurm_ranks, is_main_process
from shards.cli import Parser, apply_verbosity
from shards.config import ConfigModel, dump_config, load_config
from shards.config.reference import help_page
from shards.console import get_logger
from shards.errors import ConfigError, ForgeError

Schema = TypeVar("Schema", bound=ConfigModel)

logger = get_logger(__name__)


def read_command(argv: list[str] | None, schema: type[Schema], description: str) -> Schema:
    """Parse ``--config FILE [key.sub=value ...]``; end the process for options that only print, and for misuse."""
    return parse_command(command_parser(description), argv, schema)[0]


def command_parser(description: str, prog: str | None = None) -> Parser:
    """Return the base parser of all training commands."""
    parser = Parser(prog=prog, description=description, plugins=False)
    parser.add_argument("--config", help="YAML file")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and exit")
    parser.add_argument("--help-config", action="store_true", help="print every key with its meaning and exit")
    parser.add_argument(
        "--schema", action="store_true", help="print a JSON schema of the config, for editors, and exit"
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # added by the deepspeed launcher
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="replace single values of the config")
    return parser


def parse_command(
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    schema: type[Schema],
    assumed: Mapping[str, str] | None = None,
) -> tuple[Schema, argparse.Namespace]:
    """Return the config and all arguments; end the process for options that only print, and for misuse.

    Args:
        assumed: see `load_config`.
    """
    adopt_slurm_ranks()
    if not is_main_process():
        parser.print_usage = parser.print_help = lambda *_: None  # type: ignore[method-assign]
        parser.error = lambda _: _leave(2)  # type: ignore[assignment, method-assign]
    arguments = parser.parse_intermixed_args(argv)
    apply_verbosity(arguments)
    described = arguments.help_config or arguments.schema
    if arguments.config is None and not described:
        parser.error("the following arguments are required: --config")
    try:  # also for options that only print: reading the config loads its plugins
        config = load_config(arguments.config, arguments.overrides, schema, assumed) if arguments.config else None
    except ConfigError as error:
        fail(error)
    if config is None or described or arguments.print_config:
        if is_main_process():
            print(_printed(arguments, schema, config), end="")
        sys.exit(0)
    return config, arguments


def _printed(arguments: argparse.Namespace, schema: type[Schema], config: Schema | None) -> str:
    """Return the text that a command prints instead of running."""
    if arguments.schema:
        return json.dumps(schema.model_json_schema(), indent=2) + "\n"
    return help_page(schema) if config is None or arguments.help_config else dump_config(config)


def fail(error: ForgeError) -> NoReturn:
    """End the process with the error's exit code; rank 0 writes the error."""
    if is_main_process():
        logger.error(str(error))
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            sys.exit(error.exit_code)
    _leave(error.exit_code)


def _leave(code: int) -> NoReturn:
    """End the process after giving rank 0 time to write its line and every rank time to arrive here.

    A launcher terminates all ranks with SIGTERM as soon as one fails, so SIGTERM must give the same exit code here, not
    the code of a stopped run, which would be restarted. Slurm starts the tasks of busy nodes seconds apart.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(code))
    time.sleep(10 if "SLURM_STEP_NUM_TASKS" in os.environ else 3)
    sys.stdout.flush()
    os._exit(code)  # an ordinary exit would drop the signal handler first

"""The reference page of all commands, generated from their help."""

import argparse
import os
from collections.abc import Callable, Iterator

import finetune.__main__
import launch.doctor.__main__
import launch.plan
import pretrain.__main__
import pretrain.weights.convert
import shards.__main__
import tools.sample_data
import tools.sample_scene
from launch.command import command_parser
from launch.options import build_parser as slurm_parser

LINE = 100
"""Maximum characters per line of help."""


def _training(name: str, description: str) -> argparse.ArgumentParser:
    return command_parser(description, f"deepspeed launch/{name}.py")


COMMANDS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "Shards": shards.__main__.build_parser,
    "Pretraining": lambda: _training("pretrain", "Pretrain an encoder."),
    "State of runs": pretrain.__main__.build_parser,
    "Evaluation": lambda: _training("finetune", "Evaluate an encoder."),
    "Tasks, reports and maps": finetune.__main__.build_parser,
    "Slurm": lambda: slurm_parser("Submit to Slurm, or run here with --local."),
    "Doctor": launch.doctor.__main__.build_parser,
    "Planner": launch.plan.build_parser,
    "Weights": pretrain.weights.convert.build_parser,
    "Synthetic tiles": tools.sample_data.build_parser,
    "Synthetic product": tools.sample_scene.build_parser,
}
"""Functions that build the parser of each command, by heading."""


def command_reference() -> str:
    """Return a page with the help of every command, as Markdown."""
    lines = [
        "# Commands",
        "",
        "What `--help` prints. Every command exits with 0 when it is done, 1 when it could not finish or found "
        "problems, and 2 for misuse, which is one line that names the option or key. Training has "
        "[more codes](../reliability.md).",
    ]
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(LINE)  # line width of argparse
    try:
        for heading, build in COMMANDS.items():
            lines += ["", f"## {heading}"]
            for parser in _leaves(build()):
                lines += ["", f"### `{parser.prog}`", "", "```text", parser.format_help().rstrip(), "```"]
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return "\n".join(lines) + "\n"


def _leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parsers of subcommands, or the parser itself if it has none."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for child in group.choices.values():
            yield from _leaves(child)

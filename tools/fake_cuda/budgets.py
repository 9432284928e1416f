"""The budgets of counted steps: budgets.yaml, and how a count differs from it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from shards.files.atomic import write_atomic
from tools.fake_cuda.cases import Case

TABLE = Path(__file__).with_name("budgets.yaml")
UPDATE = "python -m tools.fake_cuda --update"
TOLERANCE = 0.02
"""Relative change of kernels and bytes that is not reported; syncs and collectives are exact."""

_HEADER = f"""\
# What a training step asks of a GPU, counted without one on 8 processes (tools/fake_cuda). By case: kernels and
# megabytes that they read and write, by part; collectives by kind and dtype; and every wait of the host for the device,
# by the function that waits. `{UPDATE}` rewrites the counts; the rest is written by hand.

"""


def read_table() -> dict[str, dict[str, Any]]:
    """Return the table: by case its config, overrides and counts."""
    return yaml.safe_load(TABLE.read_text())


def cases(table: dict[str, dict[str, Any]]) -> list[Case]:
    """Return the cases of the table."""
    return [Case(name, row["config"], tuple(row["overrides"])) for name, row in table.items()]


def write_table(table: dict[str, dict[str, Any]]) -> None:
    """Write the table: a line for each sync, and for each other key."""
    rows = []
    for name, row in table.items():
        others = {key: value for key, value in row.items() if key != "syncs"}
        lines = yaml.safe_dump(others, sort_keys=False, width=200, default_flow_style=None).splitlines()
        lines += ["syncs:", *(f"  {sync}: {count}" for sync, count in (row.get("syncs") or {}).items())]
        rows.append("\n".join([f"{name}:", *(f"  {line}" for line in lines), ""]))
    write_atomic(TABLE, _HEADER + "\n".join(rows))


def differences(name: str, kept: dict[str, Any], counted: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each budget of a case that moved."""
    for topic in ("kernels", "megabytes", "collectives", "syncs"):
        before, now = kept[topic] or {}, counted[topic]
        tolerance = TOLERANCE if topic in ("kernels", "megabytes") else 0.0
        for key in before | now:
            old, new = before.get(key, 0), now.get(key, 0)
            if abs(new - old) > tolerance * old:
                yield f"{name}: {topic} of {key} moved from {old} to {new}; if it is meant: {UPDATE} {name}"

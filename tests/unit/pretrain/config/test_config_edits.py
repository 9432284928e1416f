"""Random edits of the shipped configs: accepted, or refused in one line that names the key; never a traceback."""

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.processes import REPOSITORY
from support.shipped_configs import CONFIGS, edited, keys_of, overrides_of, schema_of, values_of

from finetune.tasks import Task, parse_task
from launch.command import read_command
from shards.config import ConfigModel, check_config, load_config
from shards.errors import ConfigError

pytestmark = pytest.mark.usefixtures("variables")

TASKS = sorted((REPOSITORY / "finetune/tasks").glob("*.yaml"))
NUMBERS = [-1, -0.5, 0, 10**30, -(10**30), 1e300, math.nan, math.inf, -math.inf]
OTHERS = ["word", "", "$NO_SUCH/x", "1e-4", None, True, [], [1, "x"], ["a", "a"], {}, {"a": {"b": 1}}]


def misspelled(name: str, rng: random.Random) -> str:
    at = rng.randrange(len(name))
    return rng.choice([name[:at] + name[at + 1 :], name[:at] + "x" + name[at:], name + "s", name.replace("_", "-")])


def refusal(values: Any, schema: type[ConfigModel]) -> str | None:
    try:
        check_config(values, schema, "x")
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1
        return str(error)
    return None


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CONFIGS), st.randoms(use_true_random=False))
def test_an_edited_config_is_accepted_or_refused_by_the_name_of_the_key(path, rng):
    values, schema = values_of(path), schema_of(path)
    key = rng.choice(list(keys_of(values)))
    name = misspelled(key[-1], rng)
    if name not in [one[-1] for one in keys_of(values) if one[:-1] == key[:-1]]:
        line = refusal(edited(values, key, name, 1), schema)
        assert line is not None and f"unknown key '{'.'.join((*key[:-1], name))}'" in line
    for value in (rng.choice(NUMBERS), rng.choice(OTHERS)):
        line = refusal(edited(values, key, key[-1], value), schema)
        if isinstance(value, float) and not math.isfinite(value):
            assert line is not None
        assert line is None or ".".join(key) in line, value


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(REPOSITORY / "configs")))
def test_what_print_config_shows_reads_back_the_same(path, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as caught:
        read_command(["--config", str(path), "--print-config", *overrides_of(path)], schema_of(path), "")
    assert caught.value.code == 0
    again = tmp_path / "again.yaml"
    again.write_text(capsys.readouterr().out)
    assert load_config(again, [], schema_of(path)) == load_config(path, overrides_of(path), schema_of(path))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TASKS), st.randoms(use_true_random=False))
def test_an_edited_task_is_accepted_or_refused_by_the_name_of_the_key(path, rng):
    values = parse_task(path.read_text(), "x").model_dump(mode="json", exclude_defaults=True)
    entries = "classes" if "classes" in values else "targets"
    number = rng.randrange(len(values[entries]))
    inside = rng.choice([True, False])
    where, prefix = (values[entries][number], f"{entries}.{number}.") if inside else (values, "")
    key = rng.choice(list(where))
    name, value = rng.choice([(misspelled(key, rng), 1), (key, rng.choice([*NUMBERS, *OTHERS]))])
    if name != key and name in where:
        return
    where[name] = value
    if name != key:
        del where[key]
    line = refusal(values, Task)
    if name != key and name != "codes":
        assert line is not None and f"unknown key '{prefix}{name}'" in line
    assert line is None or name in line

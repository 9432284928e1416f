"""Configs of random valid values: what is printed reads back equal, and an override equals the same value in YAML."""

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.shipped_configs import CONFIGS, edited, keys_of, overrides_of, schema_of, values_of

from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig
from shards.config import ConfigModel, NamedConfig, check_config, dump_config, load_config
from shards.config.yaml import dump_yaml
from shards.errors import ConfigError

pytestmark = pytest.mark.usefixtures("variables")

PRINTABLE = st.characters(exclude_categories=["C", "Zl", "Zp"], exclude_characters="$")
TEXTS = st.text(PRINTABLE, max_size=8) | st.sampled_from(
    ["no", "1e-4", "0644", "12:30", "2022-06-30", "~", "a # b", "a: b", "上海", " x ", "null", "[", "nearest", "adamw"]
)
NUMBERS = st.integers(0, 9) | st.integers(0, 2**40) | st.floats(0, 1) | st.floats(0, 1e6)
ONE = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = ONE | st.lists(NUMBERS, max_size=4) | st.lists(TEXTS, max_size=3)
KINDS = {
    bool: st.booleans() | st.sampled_from(["yes", "off"]),
    int: NUMBERS,
    float: NUMBERS,
    str: TEXTS,
    type(None): ONE,
    tuple: st.lists(NUMBERS, max_size=4) | st.lists(TEXTS, max_size=3),
}


def _accepted(values, schema):
    try:
        return check_config(values, schema, "x")
    except ConfigError:
        return None


@st.composite
def edits(draw):
    """A shipped config, and values for some of its keys that are valid together."""
    path = draw(st.sampled_from(CONFIGS))
    values, chosen = values_of(path), {}
    keys = [key for key in keys_of(values) if key[0] != "plugins"]
    for key in draw(st.lists(st.sampled_from(keys), min_size=2, max_size=6, unique=True)):
        old = values
        for part in key:
            old = old[part]
        value = draw(KINDS.get(type(old), VALUES))
        changed = None if isinstance(old, dict) else edited(values, key, key[-1], value)
        if changed and _accepted(changed, schema_of(path)):
            values, chosen[".".join(key)] = changed, value
    assume(chosen)
    return path, values, chosen


def _sections(schema, prefix=()):
    """The name and class of each section that has one class and a default."""
    for name, field in schema.model_fields.items():
        if isinstance(field.default, ConfigModel):
            yield (*prefix, name), field.default
            yield from _sections(type(field.default), (*prefix, name))


@pytest.mark.parametrize("schema", [PretrainConfig, FinetuneConfig])
def test_a_section_of_one_key_keeps_the_defaults_of_the_others(schema):
    found = dict(_sections(schema))
    assert ("watchdog",) in found
    for key, default in found.items():
        named = {"name": default.name} if isinstance(default, NamedConfig) else {}
        assert type(default)(**named) == default, key


@settings(max_examples=60, deadline=None)
@given(edit=edits())
def test_what_is_printed_of_any_valid_config_reads_back_equal(tmp_path_factory, edit):
    path, values, _ = edit
    config = check_config(values, schema_of(path), "x")
    written = tmp_path_factory.getbasetemp() / "printed.yaml"
    written.write_text(dump_config(config))
    again = load_config(written, [], schema_of(path))
    assert again == config
    assert dump_config(again) == written.read_text()


@settings(max_examples=40, deadline=None)
@given(edit=edits())
def test_overrides_equal_the_same_values_in_the_file(tmp_path_factory, edit):
    path, values, chosen = edit
    written = tmp_path_factory.getbasetemp() / "written.yaml"
    written.write_text(dump_yaml(values))
    schema = schema_of(path)
    in_file = load_config(written, [], schema)
    overrides = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in chosen.items()]
    assert load_config(path, [*overrides_of(path), *overrides], schema) == in_file
    assert load_config(written, overrides, schema) == in_file

"""Keys under their old names: accepted with a line that names the new one, anywhere in a config."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig
from shards.config import ConfigModel, check_config
from shards.config.renames import rename_keys
from shards.errors import ConfigError

RUN: dict[str, Any] = {"run": {"dir": "out"}, "data": {"shards": "in"}, "train": {"steps": 5}}
EVALUATION = {"run": {"dir": "out"}, "task": "enmap_cdl", "data": {"root": "in"}, "checkpoint": "x"}


class Leaf(ConfigModel):
    """A section in a list."""

    RENAMED: ClassVar[Mapping[str, str]] = {"colour": "color"}

    color: str = ""
    """A color."""


class Tree(ConfigModel):
    """A config with a list of sections."""

    leaves: tuple[Leaf, ...] = ()
    """Sections."""


@pytest.mark.parametrize(
    ("schema", "values", "section", "old", "new", "value"),
    [
        (PretrainConfig, RUN, {"objective": {"name": "dino"}}, "objective.centre_momentum", "center_momentum", 0.5),
        (PretrainConfig, RUN, {"probe": {"shards": "in"}}, "probe.neighbours", "neighbors", 7),
        (FinetuneConfig, EVALUATION, {"knn": {}}, "knn.neighbours", "neighbors", 7),
    ],
)
def test_an_old_key_is_read_as_the_new_one(schema, values, section, old, new, value, capsys):
    (name, keys), last = *section.items(), old.split(".")[1]
    config = check_config(values | {name: keys | {last: value}}, schema, "run.yaml")
    assert getattr(getattr(config, name), new) == value
    assert capsys.readouterr().err == (
        f"warning: run.yaml: key '{old}' is now '{name}.{new}': rename it; the next version will not accept the old "
        "name\n"
    )


def test_keys_of_sections_in_lists_are_renamed():
    values, renamed = rename_keys({"leaves": [{}, {"colour": "green"}]}, Tree)
    assert values == {"leaves": [{}, {"color": "green"}]}
    assert renamed == [("leaves.1.colour", "leaves.1.color")]


def test_both_names_at_once_are_refused():
    with pytest.raises(ConfigError, match=r"x: key 'leaves.0.colour' is the old name of 'leaves.0.color': remove one"):
        check_config({"leaves": [{"colour": "green", "color": "red"}]}, Tree, "x")


def test_values_of_another_form_are_left_to_the_schema():
    for values in ({"leaves": 3}, {"leaves": None}, {"leaf": {"colour": 1}}, [1]):
        assert rename_keys(values, Tree) == (values, [])

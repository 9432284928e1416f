"""Registries: names, typed configs, targets that are imported late, and one line for what is wrong."""

import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from shards.config import ConfigModel
from shards.errors import ConfigError
from shards.registry import Registry


class Square(ConfigModel):
    """A square."""

    side: int = 1


class Circle(ConfigModel):
    """A circle."""

    radius: float


@pytest.fixture
def shapes() -> Registry[Any]:
    registry: Registry[Any] = Registry("shape")
    registry.add("square", "decimal:Decimal", Square)
    registry.register("circle", Circle)(complex)
    return registry


def test_a_target_given_as_text_is_imported_when_asked_for(shapes):
    assert shapes["square"] is Decimal
    assert shapes["circle"] is complex
    assert shapes.names() == ("square", "circle")
    assert "square" in shapes and "oval" not in shapes


def test_a_config_given_as_text_is_imported_when_asked_for():
    registry: Registry[Any] = Registry("decimal", config="shards.registry:NoSuchConfig")
    registry.add("decimal", "decimal:Decimal", "shards.config:ConfigModel")
    assert registry.config("decimal")(name="decimal").name == "decimal"
    with pytest.raises(ConfigError, match="unknown decimal 'float'"):
        registry.config("float")
    registry.add("float", float)
    with pytest.raises(AttributeError, match="NoSuchConfig"):
        registry.config("float")


def test_an_unknown_name_is_one_line_with_the_nearest(shapes):
    with pytest.raises(ConfigError, match=r"unknown shape 'sqare': did you mean 'square'\? known are square, circle"):
        shapes["sqare"]


def test_a_name_is_given_once(shapes):
    shapes.add("square", "decimal:Decimal", Square)  # the same again, as a module imported twice does
    with pytest.raises(ConfigError, match="two shapes are named 'square': decimal:Decimal and builtins:float"):
        shapes.add("square", float)


def test_the_union_tells_configs_apart_by_name(shapes):
    adapter = TypeAdapter(shapes.union())
    assert adapter.validate_python({"name": "square", "side": 3}).side == 3
    assert adapter.validate_python({"name": "circle", "radius": 2.0}).radius == 2.0
    with pytest.raises(ValidationError):
        adapter.validate_python({"name": "square", "radius": 2.0})
    with pytest.raises(ValidationError):
        adapter.validate_python({"name": "oval"})


def test_a_registry_needs_neither_torch_nor_pydantic():
    code = "import sys, shards.registry; print({'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"

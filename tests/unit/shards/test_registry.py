"""Registries: names, typed configs, targets that are imported late, and sections whose keys a name chooses."""

import subprocess
import sys
from decimal import Decimal
from typing import Annotated, Any

import pytest
from pydantic import create_model

from shards.config import ConfigModel, NamedConfig, check_config
from shards.errors import ConfigError
from shards.registry import Registry


class Square(NamedConfig):
    """A square."""

    side: int = 1
    """Length of a side."""


class Circle(NamedConfig):
    """A circle."""

    radius: float
    """Distance from the center."""


@pytest.fixture
def shapes() -> Registry[Any]:
    registry: Registry[Any] = Registry("shape", default="square")
    registry.add("square", "decimal:Decimal", Square)
    registry.register("circle", Circle)(complex)
    return registry


@pytest.fixture
def schema(shapes: Registry[Any]) -> type[ConfigModel]:
    """Return a config with one shape and a list of them."""
    shape: Any = Annotated[NamedConfig, shapes]
    return create_model(  # type: ignore[no-any-return, call-overload]
        "Drawing", __base__=ConfigModel, shape=(shape, Square(name="square")), more=(list[shape], [])
    )


def test_a_target_given_as_text_is_imported_when_asked_for(shapes):
    assert shapes["square"] is Decimal
    assert shapes["circle"] is complex
    assert shapes.names() == ("square", "circle")
    assert "square" in shapes and "oval" not in shapes


def test_a_config_given_as_text_is_imported_when_asked_for():
    registry: Registry[Any] = Registry("number", "shards.config:NamedConfig")
    registry.add("decimal", "decimal:Decimal", "shards.config:NoSuchConfig")
    registry.add("complex", complex)
    assert registry.config("complex") is NamedConfig
    with pytest.raises(AttributeError, match="NoSuchConfig"):
        registry.config("decimal")


@pytest.mark.parametrize("ask", [lambda shapes: shapes["sqare"], lambda shapes: shapes.config("sqare")])
def test_an_unknown_name_is_one_line_with_the_nearest(shapes, ask):
    with pytest.raises(ConfigError, match=r"unknown shape 'sqare': did you mean 'square'\? known are square, circle"):
        ask(shapes)


def test_a_name_is_given_once(shapes):
    shapes.add("square", "decimal:Decimal", Square)  # the same again, as a module imported twice does
    with pytest.raises(ConfigError, match="two shapes are named 'square': decimal:Decimal and builtins:float"):
        shapes.add("square", float)


def test_a_config_extends_the_base_class_of_its_registry(shapes):
    with pytest.raises(ConfigError, match="shape 'oval': its config ConfigModel must extend NamedConfig"):
        shapes.add("oval", float, ConfigModel)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"name": "square", "side": 3}, Square(name="square", side=3)),
        ({"side": 3}, Square(name="square", side=3)),
        ({"name": "circle", "radius": 2.0}, Circle(name="circle", radius=2.0)),
        ("square", Square(name="square")),
        (Circle(name="circle", radius=2.0), Circle(name="circle", radius=2.0)),
    ],
)
def test_a_section_has_the_config_that_its_name_chooses(schema, values, expected):
    drawing: Any = check_config({"shape": values, "more": [values]}, schema, "x")
    assert (drawing.shape, drawing.more) == (expected, [expected])
    assert drawing.model_dump()["shape"] == expected.model_dump()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"shape": {"name": "oval"}}, "key 'shape.name': 'oval' is not one of 'square', 'circle'; a plugin may add it"),
        ({"shape": "sqare"}, "key 'shape': 'sqare' is not one of 'square', 'circle' (did you mean 'square'?)"),
        ({"shape": {"name": "square", "sid": 1}}, "unknown key 'shape.sid'; did you mean 'shape.side'?"),
        ({"shape": {"name": "square", "qqqq": 1}}, "unknown key 'shape.qqqq'; known here: shape.name, shape.side"),
        ({"shape": {"name": "circle"}}, "key 'shape.radius' is required"),
        ({"shape": {"side": "3"}}, "key 'shape.side': expected a whole number, got '3': write 3 without quotes"),
        ({"shape": 3}, "key 'shape': expected a name (square, circle), or a section with its keys, got 3"),
        ({"more": [{"name": "square", "sid": 1}]}, "unknown key 'more.0.sid'; did you mean 'more.0.side'?"),
    ],
)
def test_a_wrong_section_is_one_line_of_its_own_keys(schema, values, says):
    with pytest.raises(ConfigError) as caught:
        check_config(values, schema, "x")
    assert str(caught.value) == f"x: {says}"


def test_the_json_schema_has_each_config_with_its_names(shapes, schema):
    shapes.add("tile", "decimal:Decimal", Square)
    square, circle = schema.model_json_schema()["properties"]["shape"]["anyOf"]
    assert (square["properties"]["name"]["enum"], square["required"]) == (["square", "tile"], [])
    assert (circle["properties"]["name"]["enum"], circle["required"]) == (["circle"], ["name", "radius"])
    assert circle["properties"]["radius"]["description"] == "Distance from the center."


def test_a_registry_needs_neither_torch_nor_pydantic():
    code = "import sys, shards.registry, pretrain.registries; print({'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"

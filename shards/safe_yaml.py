"""YAML that may be anybody's: plain values only, and no larger in memory than its text promises."""

from typing import Any

import numpy as np
import yaml

MOST_DEPTH = 100
MOST_NODES = 100_000
"""Values in a document, with aliases written out: a task with thousands of codes has a tenth."""


def load_yaml(text: str | bytes, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """The value of a YAML document.

    Raises:
        yaml.YAMLError: not YAML, nested too deeply, or more than `MOST_NODES` values.
    """
    if _depth(text) > MOST_DEPTH:  # the scanner's time is cubic in it
        raise yaml.YAMLError("brackets nested too deeply")
    try:
        parser = loader(text)
        try:
            node = parser.get_single_node()
            if node is None:
                return None
            if _size(node, {}) > MOST_NODES:
                raise yaml.YAMLError(f"more than {MOST_NODES} values, aliases written out")
            return parser.construct_document(node)
        finally:
            parser.dispose()
    except RecursionError:
        raise yaml.YAMLError("nested too deeply, or an alias of what it is in") from None
    except (
        ValueError,
        OverflowError,
        AttributeError,
        LookupError,
    ) as error:
        raise yaml.YAMLError(f"a value that can't be read ({error})") from None


def _depth(text: str | bytes) -> int:
    """Brackets that are open at once, those in quotes and comments counted too."""
    data = text.encode(errors="replace") if isinstance(text, str) else text
    steps = np.zeros(256, dtype=np.int64)
    steps[list(b"[{")], steps[list(b"]}")] = 1, -1
    return int(np.cumsum(steps[np.frombuffer(data, dtype=np.uint8)]).max(initial=0))


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values of a node with aliases written out; an alias of its own parent recurses for ever."""
    if id(node) not in known:
        children = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]

"""The page on the source tree: the folders of each package with their docstrings, in the order of imports."""

import ast
import re
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
INTRODUCTION = """\
# Source tree

Packages import only downwards: `tools` > `launch` > `finetune` > `pretrain` > `shards`. Inside a package, too, folders
import only what is below them in the table. import-linter enforces both (`setup.cfg`). The tests of a file are at the
same path below `tests/unit`.
"""


def source_tree() -> str:
    """Return the page in Markdown."""
    layers = _layers()
    return INTRODUCTION + "".join(_section(package, layers.get(package, [])) for package in layers[""])


def _section(package: str, rooms: list[str]) -> str:
    folder = REPOSITORY / package
    inside = [path.parent.name for path in sorted(folder.glob("*/__init__.py"))]
    inside += [path.stem for path in sorted(folder.glob("*.py")) if not path.stem.startswith("__")]
    names = dict.fromkeys((*rooms, *inside))
    rows = "".join(f"| `{package}/{_shown(folder / name)}` | {_summary(folder / name)} |\n" for name in names)
    return f"\n## {package}\n\n{_summary(folder)}\n\n| Path | Contents |\n|---|---|\n{rows}"


def _layers() -> dict[str, list[str]]:
    """Return the layers of each package by its name, highest first; those of the packages themselves under ``""``."""
    setup = ConfigParser()
    setup.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    contracts = [setup[name] for name in setup.sections() if name.startswith("importlinter:contract")]
    return {
        contract.get("containers", ""): list(_names(contract["layers"]))
        for contract in contracts
        if contract["type"].strip() == "layers"
    }


def _names(layers: str) -> Iterator[str]:
    return (name.strip() for name in re.split(r"[|\n]", layers) if name.strip())


def _shown(path: Path) -> str:
    return f"{path.name}/" if path.is_dir() else f"{path.name}.py"


def _summary(path: Path) -> str:
    """Return the first paragraph of the docstring of a module or package."""
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")

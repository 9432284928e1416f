"""Code of the documentation, to be run as it stands there."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def python_code(page: str, heading: str) -> str:
    """The first block of Python below a heading of a page."""
    text = (DOCS / page).read_text()
    found = re.search(rf"^## {heading}\n.*?```python\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    assert found, f"{page}: no Python below '{heading}'"
    return found[1]

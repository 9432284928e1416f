"""Code blocks of the documentation, to be run unchanged."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def python_code(page: str, heading: str) -> str:
    """Return the first Python block below a heading of a page."""
    text = (DOCS / page).read_text()
    found = re.search(rf"^## {heading}\n.*?```python\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    assert found, f"{page}: no Python below '{heading}'"
    return found[1]

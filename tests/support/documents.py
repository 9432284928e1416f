"""Code blocks of the documentation, to be run unchanged."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def python_code(page: str, heading: str, number: int = 0) -> str:
    """Return a Python block below a heading of a page, the first unless another number is given."""
    text = (DOCS / page).read_text()
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert section, f"{page}: no heading '{heading}'"
    return re.findall(r"^```python\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)[number]

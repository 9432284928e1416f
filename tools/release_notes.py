"""Print the section of CHANGELOG.md for a version: `python tools/release_notes.py 0.1.0`."""

import re
import sys
from pathlib import Path

CHANGELOG = Path(__file__).resolve().parent.parent / "CHANGELOG.md"


def release_notes(changelog: str, version: str) -> str:
    """Return the text below ``## VERSION`` (or ``## [VERSION] - DATE``), without its heading.

    Raises:
        ValueError: the section is missing or empty.
    """
    heading = rf"^## \[?{re.escape(version)}\]?(?: [^\n]*)?$"
    match = re.search(rf"{heading}\n(?P<text>.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if match is None or not match["text"].strip():
        raise ValueError(f"CHANGELOG.md: no notes on {version}: rename the section 'Unreleased' before you tag")
    return match["text"].strip() + "\n"


if __name__ == "__main__":
    try:
        print(release_notes(CHANGELOG.read_text(encoding="utf-8"), sys.argv[1]), end="")
    except (ValueError, IndexError) as error:
        sys.exit(f"error: {error}")

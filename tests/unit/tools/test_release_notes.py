"""Notes of a release are its section of the changelog."""

import pytest

from tools.release_notes import CHANGELOG, release_notes

TEXT = """# Changelog

## Unreleased

### Added
- c

## [0.2.0] - 2026-12-01

### Fixed
- b

## 0.1.0

### Added
- a
"""


@pytest.mark.parametrize(
    ("version", "notes"),
    [("Unreleased", "### Added\n- c\n"), ("0.2.0", "### Fixed\n- b\n"), ("0.1.0", "### Added\n- a\n")],
)
def test_a_version_has_its_section(version: str, notes: str) -> None:
    assert release_notes(TEXT, version) == notes


@pytest.mark.parametrize("version", ["0.3.0", "0.2", "0.1"])
def test_a_version_without_a_section_is_an_error(version: str) -> None:
    with pytest.raises(ValueError, match=f"no notes on {version}"):
        release_notes(TEXT, version)


def test_the_changelog_can_be_read() -> None:
    assert release_notes(CHANGELOG.read_text(encoding="utf-8"), "Unreleased").startswith("### ")

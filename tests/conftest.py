"""Paths to what a clone doesn't have: tests that need it skip and say so."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SPECTRALFORGE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


def _folder(name: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"needs the test data folder '{name}' (set SPECTRALFORGE_TEST_DATA to where it is)")
    return path


@pytest.fixture(scope="session")
def reference() -> Path:
    """Outputs of the published models for rule-made weights."""
    return _folder("reference")


@pytest.fixture(scope="session")
def spectral_earth_sample() -> Path:
    """Ten tiles in SpectralEarth's layout."""
    return _folder("spectral_earth_sample")


@pytest.fixture(scope="session")
def enmap_potsdam() -> Path:
    """Eighteen real, labeled EnMAP tiles."""
    return _folder("enmap_potsdam")


@pytest.fixture(scope="session")
def enmap_l2a() -> Path:
    """The band characterization of the L2A product."""
    return _folder("enmap_l2a")

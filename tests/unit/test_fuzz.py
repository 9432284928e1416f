"""Damaged and forged files of every kind that is read: right, or one line; no write outside, no memory for claims."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support import fuzz_models, fuzz_shards
from support.fuzz import try_all

TARGETS = fuzz_shards.TARGETS | fuzz_models.TARGETS


@pytest.fixture(scope="module")
def reals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders with the real files, made when they are asked for."""
    base = tmp_path_factory.mktemp("real")

    def make(name: str) -> Path:
        folder = base / name.replace(" ", "-").replace("'", "")
        if not folder.exists():
            TARGETS[name].make(folder)
        return folder

    return make


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_and_forged_files_are_read_or_refused_in_one_line(name, reals, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try_all(TARGETS[name], reals(name), tmp_path, range(0, TARGETS[name].count, 4))


@pytest.mark.nightly
@pytest.mark.parametrize("name", TARGETS)
def test_many_more_damaged_and_forged_files(name, reals, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try_all(TARGETS[name], reals(name), tmp_path, range(1, 20 * TARGETS[name].count))

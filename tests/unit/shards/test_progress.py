"""Progress bars: one look, lines in a log file, none for other ranks or --quiet."""

import pytest

from shards.console import set_verbosity
from shards.progress import Bar, Counters, progress


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr("shards.progress.LOG_S", 0.0)


def test_a_log_file_gets_nothing_of_short_work(capsys, monkeypatch) -> None:
    monkeypatch.setattr("shards.progress.LOG_S", 15.0)
    assert list(progress("read", 3, [1, 2, 3])) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_a_log_file_gets_whole_lines(capsys) -> None:
    assert list(progress("read", 3, [1, 2, 3])) == [1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("read:   0%") and lines[-1].startswith("read: 100%")
    assert "3/3" in lines[-1] and "tile/s" in lines[-1]


def test_other_ranks_show_none(capsys, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert list(progress("read", 2, [1, 2])) == [1, 2]
    assert capsys.readouterr().err == ""


def test_quiet_shows_none(capsys) -> None:
    set_verbosity(quiet=True)
    try:
        bar = Bar(Counters(), 2, 0, "pack")
        bar.refresh()
        bar.close()
    finally:
        set_verbosity()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("done", [0, 2])
def test_a_bar_follows_its_counters(capsys, done: int) -> None:
    counters = Counters()
    bar = Bar(counters, 4, done, "pack")
    counters.add(4 - done, 4000, 1000)
    bar.close()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("pack: 100%") and "4.00x" in last

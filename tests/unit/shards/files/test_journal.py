"""Logs on a disk that fills up and empties again, and TensorBoard's files among them."""

import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from support.processes import REPOSITORY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain.config.loggers import DEFAULT_LOGGERS
from pretrain.console import log
from pretrain.metrics.loggers.group import Loggers
from pretrain.metrics.loggers.logger import LoggedRun
from pretrain.objectives.picture import draw
from shards.files.journal import BestEffort, Journal
from shards.files.processes import host_name


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"can't mount a small file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    path = folder / "filler"
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return path


def test_the_log_of_a_run_on_a_full_disk_is_a_line_a_file_and_goes_on(small_disk: Path, capfd) -> None:
    loggers = Loggers(DEFAULT_LOGGERS, LoggedRun(small_disk))
    loggers.record(1, {"loss": 1.0})
    filler = fill(small_disk)
    for step in range(2, 400):  # what is left of the pages in use is filled first
        loggers.record(step, {"loss": 1.0 / step, "lr": 1e-3})
        loggers.figure(step, "reconstruction", FIGURE)
    shown = capfd.readouterr()
    why = f"No space left on device on {host_name()}: free some space"
    assert shown.err.count(f"metrics.jsonl: not written: {why}; the run continues without it") == 1
    assert shown.err.count("not written") == 2 and "Traceback" not in shown.err
    again = shown.err.count("written again; ")  # a picture may fail where a scalar still fits
    filler.unlink()
    loggers.record(400, {"loss": 0.5})
    loggers.close()
    assert again + capfd.readouterr().err.count("written again; ") == 2
    lines = [json.loads(line) for line in (small_disk / "metrics.jsonl").read_text().splitlines()]  # all are whole
    assert (lines[0]["step"], lines[-1]) == (1, {"step": 400, "loss": 0.5})
    events = EventAccumulator(str(small_disk / "tensorboard")).Reload()
    steps = [event.step for event in events.Scalars("loss")]
    assert steps[0] == 1 and steps[-1] == 400


FIGURE = draw(Figure(figsize=(0.2, 0.2)))


def test_a_record_is_whole_or_not_there(tmp_path: Path, monkeypatch) -> None:
    journal = Journal(tmp_path / "folder" / "a.jsonl")
    assert journal.append(b"one\n")
    assert journal._file is not None
    whole = journal._file

    class HalfWritten:
        def __getattr__(self, name):
            return getattr(whole, name)

        def write(self, data):
            if len(data) < 4:
                raise OSError(errno.EDQUOT, "Disk quota exceeded")
            return whole.write(data[:3])

    journal._file = HalfWritten()  # type: ignore[assignment]
    assert not journal.append(b"two\n")
    assert journal.append(b"three\n")
    assert journal.path.read_bytes() == b"one\nthree\n"


def test_a_journal_that_cannot_be_opened_is_a_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "folder").write_text("a file where a folder should be")
    journal = Journal(tmp_path / "folder" / "a.jsonl")
    assert [journal.append(b"one\n"), journal.append(b"two\n")] == [False, False]
    assert capsys.readouterr().err.count("\n") == 1


def test_only_errors_of_its_kind_are_passed_over(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), BestEffort(tmp_path / "a"):
        raise ZeroDivisionError
    with BestEffort(tmp_path / "a", Exception):
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), BestEffort(tmp_path / "a", Exception):
        raise KeyboardInterrupt


def test_a_console_on_a_full_disk_does_not_end_the_run(monkeypatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        log("step 1")
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # what is in the buffer can be written now


PRINTS = """
import sys
from launch import runtime
runtime.forgive_console()
from tqdm import tqdm
for number in tqdm(range(3)):
    print("step", number)
print("warning", file=sys.stderr)
with open(sys.argv[1], "w") as file:
    file.write("went on")
"""


@pytest.mark.parametrize("console", ["/dev/full", "closed", "/dev/null"])
def test_nothing_that_a_library_prints_ends_a_run_either(tmp_path: Path, console: str) -> None:
    words = [sys.executable, "-c", PRINTS, str(tmp_path / "done")]
    close = " >&- 2>&-" if console == "closed" else f" > {console} 2>&1"
    done = subprocess.run(shlex.join(words) + close, shell=True, cwd=REPOSITORY)
    assert (done.returncode, (tmp_path / "done").read_text()) == (0, "went on")

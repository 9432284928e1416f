"""The demo's screen: the log has every line, the screen has no launcher's, progress collapses on a terminal."""

import sys
from pathlib import Path

import pytest

from tools.demo_screen import Screen

LAUNCHER = "[2026-11-29 07:09:35,762] [INFO] [launch.py:152:main] WORLD INFO DICT: {'localhost': [0, 1]}"
LINES = [
    LAUNCHER,
    "WORLD SIZE 2 on cpu",
    "step 2/12  loss 1.05",
    "  data/compute/communication by rank (* slowest): 0: 18%/67%/14%",
    "step 4/12  loss 0.98",
    "features val:  50%|#####     | 1/2 [00:01<00:01]",
    "features val: 100%|##########| 2/2 [00:01<00:00]",
    "complete",
]


@pytest.fixture
def screen(tmp_path: Path) -> Screen:
    return Screen(tmp_path / "runs" / "demo.log")


def test_a_file_gets_all_but_the_launchers_lines(screen: Screen, capsys) -> None:
    for line in LINES:
        screen.show(line)
    assert capsys.readouterr().out.splitlines() == [line for i, line in enumerate(LINES) if i not in (0, 3)]
    assert screen.log.read_text().splitlines() == LINES


def test_progress_collapses_on_a_terminal(screen: Screen, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for line in LINES:
        screen.show(line)
    rows = capsys.readouterr().out.split("\n")
    assert [row.rsplit("\x1b[2K")[-1] for row in rows] == [LINES[1], LINES[4], LINES[6], "complete", ""]


def test_a_commands_output_is_shown_and_its_code_returned(screen: Screen, tmp_path: Path, capsys) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    shown = screen.start([sys.executable, "-c", code], tmp_path, {})
    assert shown.wait() == 3
    assert not shown.is_running()
    assert sorted(capsys.readouterr().out.split()) == ["err", "out"]

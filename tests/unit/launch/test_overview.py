"""`launch/slurm.py status` and `logs`, of run folders written here; Slurm's answer is a stand-in's."""

import json
import sys
from pathlib import Path

import pytest

from launch.slurm import main
from pretrain.resilience.restarts import Restart, append_restart
from pretrain.resilience.status import STATUS_FILE

SQUEUE = """\
import sys
if "--steps" in sys.argv:
    print("batch on n01\\nattempt-2 on n[01,03]")
elif sys.argv[3] == "7":
    print("RUNNING on n[01-03], 3:00 of 12:00:00 (None)")
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A complete run: 100 seconds, of which 30 steps of 2 seconds trained."""
    (tmp_path / "squeue").write_text(f"#!{sys.executable} -S\n{SQUEUE}")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    run = tmp_path / "run"
    (run / "checkpoints" / "step-00000020").mkdir(parents=True)
    (run / "checkpoints" / "step-00000030.tmp").mkdir()
    status = {"status": "complete", "step": 30, "steps": 30, "samples": 240, "job": "7"}
    status |= {"begun": "2026-03-01T12:00:00+00:00", "time": "2026-03-01T12:01:40+00:00"}
    (run / STATUS_FILE).write_text(json.dumps(status))
    records = [{"step": step, "tiles_per_second": 4.0} for step in (10, 20, 30)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


def shown(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, str]:
    main([*map(str, words)])
    lines = capsys.readouterr().out.splitlines()
    return {line[:10].strip(): line[10:] for line in lines}


def test_a_run_is_shown_with_its_job_speed_and_saves(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = shown(capsys, "status", run)
    assert rows["run"] == f"{run}: complete, step 30 of 30"
    assert rows["job"] == "7: RUNNING on n[01-03], 3:00 of 12:00:00; running: attempt-2 on n[01,03]"
    assert rows["speed"] == "4.0 tiles/s, 2 s per step"
    assert rows["goodput"] == "60% of 1m 40s since the first start trained"
    assert rows["last save"].startswith("step-00000020, ") and rows["last save"].endswith(" ago (1 kept)")
    assert "restarts" not in rows


def test_restarts_are_shown_by_node(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for host in ("n02", "n04", "n02"):
        append_restart(run, Restart("t", "7", 2, (host,), "task 5: killed", 40, "s", ("n01", "n03")))
    rows = shown(capsys, "status", run)
    assert rows["restarts"] == "3; the last one: n02: task 5: killed"
    assert rows["failures"] == "n02 2, n04 1"


def test_a_run_before_its_first_log_step_and_a_failed_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").unlink()
    (run / STATUS_FILE).write_text('{"status": "failed", "step": 0, "steps": 30, "reason": "disk full", "job": "8"}')
    with pytest.raises(SystemExit) as ended:
        main(["status", str(run)])
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert "failed, step 0 of 30: disk full" in out and "8: not in the queue" in out and "speed" not in out


def test_the_newest_output_is_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["logs", str(run)])
    assert ended.value.code == 2
    assert "no output of a job yet" in capsys.readouterr().err
    (run / "slurm").mkdir()
    (run / "slurm" / "7.out").write_text("one\ntwo\nthree\n")
    main(["logs", str(run), "--lines", "2"])
    assert capsys.readouterr().out == f"{run}/slurm/7.out:\ntwo\nthree\n"

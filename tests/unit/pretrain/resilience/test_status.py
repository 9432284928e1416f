"""What a run says of itself, and what it is really doing: real processes, killed, suspended and gone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain import __main__ as command
from pretrain.resilience.run_folder import RunFolder, RunTaken
from pretrain.resilience.status import LOCK_FILE, STATUS_FILE, RunRecord, read_record, run_state
from shards.errors import ConfigError
from shards.files import lock

NO_FLOCK = """
import errno, fcntl, sys, time
def refuse(*_): raise OSError(int(sys.argv[2]), "flock is not mounted here")
fcntl.flock = fcntl.lockf = refuse
from pathlib import Path
from pretrain.resilience.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
folder.write_status("running", 7, 100, 56)
print("held", flush=True)
time.sleep(60)
"""


def start(folder: Path, number: int = 37) -> subprocess.Popen:
    """A process that holds a run folder, on a file system without flock."""
    process = subprocess.Popen(
        [sys.executable, "-c", NO_FLOCK, str(folder), str(number)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def change(folder: Path, **values: object) -> None:
    path = folder / STATUS_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_running_a_suspended_and_a_killed_process_are_told_apart(tmp_path: Path) -> None:
    process = start(tmp_path)
    try:
        state = run_state(tmp_path)
        assert (state.condition, state.record.step, state.record.samples) == ("running", 7, 56)
        assert f"running, step 7 of 100, last heard of 0 s ago (process {process.pid} on " in str(state)
        with pytest.raises(
            ConfigError, match=rf"another run is at work there \(process {process.pid}\): running, step 7"
        ):
            RunFolder(tmp_path, patience=0.3)
        process.send_signal(signal.SIGSTOP)
        while run_state(tmp_path).condition == "running":
            time.sleep(0.02)
        assert str(run_state(tmp_path)).startswith("suspended by a signal (resume it with kill -CONT ")
        with pytest.raises(ConfigError, match="suspended by a signal"):
            RunFolder(tmp_path, patience=0.3)
    finally:
        process.kill()
        process.wait()
    assert str(run_state(tmp_path)).startswith(
        f"dead: its process {process.pid} no longer runs on this host, step 7 of 100"
    )
    again = RunFolder(tmp_path)
    assert (again.record.step, again.record.pid, run_state(tmp_path).condition) == (7, os.getpid(), "running")


def test_on_another_host_the_lock_s_heartbeat_decides(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    change(tmp_path, host="n03", machine="other")
    assert run_state(tmp_path).condition == "running"
    os.utime(tmp_path / STATUS_FILE, (time.time() - 300,) * 2)  # no log line for long, but the lock is touched
    assert run_state(tmp_path).condition == "running"
    change(tmp_path, time="2020-01-01T00:00:00+00:00")  # by another host's clock
    assert "last heard of 0 s ago" in str(run_state(tmp_path))
    for name in (STATUS_FILE, LOCK_FILE):
        os.utime(tmp_path / name, (time.time() - 300,) * 2)
    state = run_state(tmp_path)
    assert state.condition == "silent"
    assert str(state).startswith("silent: no sign of life for 5 min 0") and "on n03" in str(state)
    folder.release()


def test_files_of_older_versions_and_damaged_ones_are_read(tmp_path: Path) -> None:
    assert run_state(tmp_path).condition == "unknown"
    path = tmp_path / STATUS_FILE
    path.write_text('{"status": "complete", "step": 10, "steps": 10}\n')
    assert str(run_state(tmp_path)) == "complete, step 10 of 10"
    path.write_text('{"status": "running", "step": 0, "steps": 10}\n')
    os.utime(path, (time.time() - 600,) * 2)
    assert run_state(tmp_path).condition == "dead"
    for text in ("", '{"status": "run', "[]", '{"status": 3}', '{"step": 3}', '{"status": "running", "pid": "x"}'):
        path.write_text(text)
        assert run_state(tmp_path).condition == "unknown", text


def test_the_first_end_is_kept_and_another_start_is_not_touched(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_status("running", 3, 10, 24)
    other_rank = RunFolder(tmp_path, leader=folder.record)
    other_rank.end("failed", "rank 1: CUDA out of memory\nand more")
    folder.end("failed", "lost another rank")
    record = read_record(tmp_path)
    assert record is not None
    assert (record.status, record.step, record.reason) == ("failed", 3, "rank 1: CUDA out of memory and more")
    folder.write_status("running", 4, 10, 32)
    folder.release()
    folder.end("failed", "after it let go")
    assert run_state(tmp_path).record.reason == "after it let go"
    change(tmp_path, status="running", pid_start="of the next start")
    other_rank.end("failed", "too late")
    assert json.loads((tmp_path / STATUS_FILE).read_text())["status"] == "running"


def test_a_run_whose_folder_was_taken_over_writes_nothing_more_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.05)
    first = RunFolder(tmp_path)
    first.check_held()
    (tmp_path / LOCK_FILE).unlink()  # what another host does with a lock that counts as stale
    second = RunFolder(tmp_path)
    second.write_status("running", 5, 10)
    first.write_status("running", 9, 10)
    first.end("failed", "lost")
    with pytest.raises(RunTaken, match="took over the folder while this one was suspended"):
        first.check_held()
    deadline = time.monotonic() + 20
    while not first.is_lost:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.release()
    record = read_record(tmp_path)
    assert record is not None and (record.status, record.step) == ("running", 5)
    second.check_held()


def test_a_full_disk_costs_records_and_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    folder = RunFolder(tmp_path)
    with monkeypatch.context() as patch:

        def full(*_):
            raise OSError(28, "No space left on device")

        patch.setattr(os, "replace", full)
        folder.write_status("running", 1, 10)
        folder.write_status("running", 2, 10)
    assert capsys.readouterr().err.count("status.json: not written: No space left on device") == 1
    folder.write_status("running", 3, 10)
    assert "status.json: written again; 2 writes are missing" in capsys.readouterr().err
    assert run_state(tmp_path).record.step == 3
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


def test_the_command_prints_a_line_a_run_and_its_exit_code_is_for_scripts(tmp_path: Path, capsys) -> None:
    for name in ("good", "bad"):
        folder = RunFolder(tmp_path / name)
        folder.write_status("complete", 10, 10)
        folder.release()
    good, bad = str(tmp_path / "good"), str(tmp_path / "bad")
    assert command.main(["status", good, bad]) == 0
    assert capsys.readouterr().out == f"{good}: complete, step 10 of 10\n{bad}: complete, step 10 of 10\n"
    change(tmp_path / "bad", status="failed", reason="it broke")
    assert command.main(["status", good, bad]) == 1
    assert capsys.readouterr().out.endswith("failed, step 10 of 10: it broke\n")
    assert command.main(["status", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_record_names_the_job_and_survives_json(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    record = RunRecord.of_this_process()
    (tmp_path / STATUS_FILE).write_text(json.dumps(record.to_dict()))
    assert read_record(tmp_path) == record
    assert str(run_state(tmp_path)).endswith("job 1234)")

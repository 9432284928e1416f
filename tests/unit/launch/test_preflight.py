"""What is checked before anything is queued, and runs without Slurm."""

import json
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest
from support.job_configs import refused

import launch.local
import launch.slurm
from launch.slurm import main
from pretrain.resilience.status import RunRecord

# ---- before anything is queued ----


@pytest.fixture
def slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands that answer as Slurm's do: the queue is in a file, and what is submitted is noted in another."""
    commands = {
        "sbatch": 'echo "$@" >>submitted; [ -e full ] && [ "$(wc -l <submitted)" -gt 1 ] && '
        "{ echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1; }; wc -l <submitted",
        "squeue": "cat queue 2>/dev/null",
        "scontrol": "echo 'MaxArraySize            = 4'",
        "scancel": 'echo "scancel $@" >>submitted',
    }
    (folder / "bin").mkdir()
    for name, text in commands.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    for name in ("images", "labels"):
        (folder / name).mkdir()
    (folder / "encoder.safetensors").touch()
    return folder


def test_missing_inputs_are_told_before_anything_is_queued(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = ["finetune", "--time", "1:00:00", "--config", "cdl.yaml"]
    assert "key 'data.shards'" in refused(capsys, "pretrain", "--time", "1:00:00", "--config", "config.yaml")
    several = "data={sources: [{shards: gone/a}, {shards: gone/b}]}"
    assert "key 'data.sources.0.shards': gone/a: no such" in refused(
        capsys, "pretrain", "--time", "1:00:00", "--config", "config.yaml", several
    )
    assert "'data.labels': nowhere: no such file" in refused(capsys, *evaluation, "data.labels=nowhere")
    assert "'checkpoint': gone.pt: no such file" in refused(capsys, *evaluation, "checkpoint=gone.pt")
    assert "--setup gone.sh: no such file" in refused(capsys, *evaluation, "--setup", "gone.sh")
    assert not (slurm / "submitted").exists()


def test_a_longer_array_than_slurm_takes_is_refused(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["finetune", "--time", "1:00:00", "--config", "cdl.yaml", "nlcd.yaml", "--seeds"]
    assert "an array of 6, but this Slurm allows 4 (MaxArraySize)" in refused(capsys, *words, "3")
    main([*words, "2"])
    assert len((slurm / "submitted").read_text().splitlines()) == 2


def test_a_folder_that_belongs_to_a_job_is_refused(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["finetune", "--time", "1:00:00", "--config", "cdl.yaml", "--seeds", "1"]
    (slurm / "queue").write_text(f"7|PENDING|{slurm}/scores/cdl/slurm/finetune.sbatch\n")
    assert "belongs to job 7, which is PENDING" in refused(capsys, *words)
    (slurm / "queue").write_text("8|RUNNING|/elsewhere/script\n")
    run = slurm / "scores" / "cdl" / "seed-0"
    run.mkdir(parents=True)
    (run / "status.json").write_text('{"status": "running", "job": "8"}')
    assert "belongs to job 8, which is RUNNING" in refused(capsys, *words)
    for said in ('{"status": "running", "job": "9"}', '{"status": "running"}', "[]", "not JSON"):
        (run / "status.json").write_text(said)
        os.utime(run / "status.json", (0, 0))  # long not heard of
        (slurm / "submitted").unlink(missing_ok=True)
        main(words)


def test_a_folder_in_which_a_process_is_at_work_is_refused(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = slurm / "scores" / "cdl" / "seed-0"
    run.mkdir(parents=True)
    words = ["finetune", "--time", "1:00:00", "--config", "cdl.yaml", "--seeds", "1"]
    record = RunRecord.of_this_process()
    (run / "status.json").write_text(json.dumps(record.to_dict()))
    assert "another run is at work there (running, step 0 of 0" in refused(capsys, *words)
    (run / "status.json").write_text(json.dumps(record.to_dict() | {"pid": 2**22 + 1}))  # it is gone
    main(words)


def test_a_chain_that_is_refused_half_way_leaves_nothing_queued(
    slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (slurm / "full").touch()
    with pytest.raises(SystemExit) as ended:
        main(["finetune", "--time", "1:00:00", "--config", "cdl.yaml", "--seeds", "1"])
    assert ended.value.code == 1
    assert "QOSMaxSubmitJobPerUserLimit; canceled the jobs queued before it: 1" in capsys.readouterr().err
    assert (slurm / "submitted").read_text().splitlines()[-1] == "scancel 1"


def test_a_folder_that_cannot_be_written_is_one_line(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (slurm / "file").touch()
    words = ["finetune", "--time", "1:00:00", "--config", "cdl.yaml", "--seeds", "1", "--output", "file/below"]
    assert "key 'run.dir'" in refused(capsys, *words) and not (slurm / "submitted").exists()


# ---- without Slurm ----


def test_commands_of_a_local_sweep_can_be_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["pretrain", "--config", "config.yaml", "--sweep", "run.seed=1,2", "--local", "--dry-run", "optim.lr=1e-4"])
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [command[-1] for command in commands] == [f"run.dir={folder}/run/run.seed={seed}" for seed in (1, 2)]
    assert commands[0][:2] == [sys.executable, str(Path(main.__code__.co_filename).parent / "pretrain.py")]
    main(["finetune", "--config", "cdl.yaml", "--seeds", "1", "--tasks-per-node", "2", "--local", "--dry-run"])
    evaluation, report = capsys.readouterr().out.splitlines()
    assert "torchrun --standalone --nproc-per-node=2" in evaluation
    assert "finetune report" in report


STAND_IN = """\
import json, os, signal, sys, time
from pathlib import Path
folder = Path([word for word in sys.argv if word.startswith("run.dir=")][-1].removeprefix("run.dir="))
folder.mkdir(parents=True)
def end(code, status):
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 0.25}\\n{"step": 1, "val": 2}\\n')
    (folder / "status.json").write_text(json.dumps({"status": status, "step": 1, "steps": 3}))
    os._exit(code)
signal.signal(signal.SIGTERM, lambda *_: end(75, "stopped"))
if "run.seed=1" in sys.argv:
    end(1, "running")
if "run.seed=3" in sys.argv:
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(20)
end(0, "complete")
"""


def local_table(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seeds: str) -> tuple:
    """Exit code, and the columns of the table, of a local sweep of programs that only say how they end."""
    (folder / "launch").mkdir()
    (folder / "launch" / "pretrain.py").write_text(STAND_IN)
    monkeypatch.setattr(launch.local, "ROOT", folder)
    monkeypatch.setattr(launch.slurm, "check_inputs", lambda *_: None)
    handlers = {number: signal.getsignal(number) for number in launch.local.SIGNALS}
    try:
        main(["pretrain", "--config", "config.yaml", "--local", "--sweep", f"run.seed={seeds}"])
        code = 0
    except SystemExit as ended:
        code = ended.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    begin = rows.index(["run", "ended", "code", "step", "loss"])
    return code, [[Path(row[0]).name, *row[1:]] for row in rows[begin + 1 :] if row and row[0][0] == "/"]


def test_a_local_sweep_ends_with_a_table_and_goes_on_after_a_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows = local_table(folder, monkeypatch, capsys, "0,1,2")
    assert code == 1
    assert rows == [
        ["run.seed=0", "complete", "0", "1/3", "0.2500"],
        ["run.seed=1", "failed", "1", "1/3", "0.2500"],
        ["run.seed=2", "complete", "0", "1/3", "0.2500"],
    ]


def test_a_signal_to_a_local_sweep_stops_its_run_and_begins_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows = local_table(folder, monkeypatch, capsys, "0,3,4")
    assert code == 75
    assert rows == [
        ["run.seed=0", "complete", "0", "1/3", "0.2500"],
        ["run.seed=3", "stopped", "75", "1/3", "0.2500"],
        ["run.seed=4", "not", "begun", "-", "-", "-"],
    ]

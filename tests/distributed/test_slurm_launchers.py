"""What starts the ranks of a job on a real Slurm: saves, requeues and ends alike, with the losses of plain srun."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support.slurm_lab import SLURM, TWO_NODES, Lab

from launch.launchers import LAUNCHERS
from pretrain.checkpointing.checkpoint import find_damage, list_checkpoints

pytestmark = pytest.mark.distributed


@pytest.mark.nightly
def test_torchrun_saves_at_a_signal_and_the_run_ends_with_the_same_losses(lab: Lab, whole: list[float]) -> None:
    job = lab.begin("torchrun", "--launcher", "torchrun")
    lab.cluster.run("scancel", "--signal=USR1", job)
    lab.finish_requeued(job, "torchrun")
    assert lab.losses("torchrun") == whole
    assert "Traceback" not in lab.output("torchrun")


@pytest.mark.nightly
def test_deepspeed_ends_with_the_same_losses(lab: Lab, whole: list[float]) -> None:
    (job,) = lab.submit("pretrain", *TWO_NODES, "--launcher", "deepspeed", "run.dir=deepspeed").values()
    lab.finish(job, "deepspeed", "COMPLETED", "FAILED")
    assert lab.losses("deepspeed") == whole, lab.output("deepspeed")


LONG = "train.steps=300"


@pytest.fixture(scope="module")
def unlimited(lab: Lab, whole: list[float]) -> list[float]:
    """Losses of a run that is longer than a time limit of three minutes."""
    (job,) = lab.submit("pretrain", *TWO_NODES, "run.dir=unlimited", LONG).values()
    lab.finish(job, "unlimited", "COMPLETED")
    losses = lab.losses("unlimited")
    assert len(losses) == 300
    return losses


@pytest.mark.nightly
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_time_limit_saves_requeues_and_the_run_ends_with_the_same_losses(
    lab: Lab, unlimited: list[float], launcher: str
) -> None:
    """Slurm counts in minutes and signals up to one early: 80 seconds into each start at the latest."""
    run = f"limited-{launcher}"
    job = lab.begin(run, "--time", "3:00", "--signal-seconds", "100", "--launcher", launcher, LONG)
    starts = 1
    lab.finish(job, run, "PENDING", "COMPLETED")
    while lab.cluster.state(job) == "PENDING":
        assert find_damage(list_checkpoints(lab.folder / run / "checkpoints")[-1]) is None
        lab.cluster.release(job)
        starts += 1
        lab.finish(job, run, "RUNNING")
        lab.finish(job, run, "PENDING", "COMPLETED")
    assert starts > 1
    assert lab.losses(run) == unlimited


@pytest.mark.nightly
@pytest.mark.parametrize("launcher", ["deepspeed", "deepspeed-hostfile"])
def test_deepspeed_saves_at_a_signal_and_the_run_ends_with_the_same_losses(
    lab: Lab, whole: list[float], launcher: str
) -> None:
    run = f"signalled-{launcher}"
    job = lab.begin(run, "--launcher", launcher)
    lab.cluster.run("scancel", "--signal=USR1", job)
    lab.finish_requeued(job, run)
    assert lab.losses(run) == whole


@pytest.mark.nightly
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed-hostfile"])
def test_a_signal_that_reaches_the_tasks_alone_is_passed_on_to_the_ranks(
    lab: Lab, whole: list[float], launcher: str
) -> None:
    """As with proctrack/cgroup, which most clusters have: here Slurm signals the tasks' children, too."""
    run = f"alone-{launcher}"
    job = lab.begin(run, "--launcher", launcher)
    tasks = [process for process in psutil.process_iter(["cmdline", "ppid"]) if is_agent(process, lab.folder / run)]
    assert len(tasks) == 2
    for number in (signal.SIGUSR1, signal.SIGTERM):  # a second signal doesn't cut the save short
        for task in tasks:
            task.send_signal(number)
    lab.finish_requeued(job, run)
    assert lab.losses(run) == whole


def is_agent(process: psutil.Process, run: Path) -> bool:
    words = process.info["cmdline"] or []
    return f"run.dir={run}" in words and Path(words[1]).name == "agent.py"


@pytest.mark.nightly
def test_torchrun_restarts_the_ranks_within_the_job(lab: Lab, whole: list[float]) -> None:
    job = lab.begin("restarted", "--launcher", "torchrun", "--max-restarts", "1", "checkpoint.every=2")
    os.kill(int((lab.folder / "restarted" / "rank0.pid").read_text()), signal.SIGKILL)
    lab.finish(job, "restarted", "COMPLETED", "FAILED")
    assert lab.cluster.state(job) == "COMPLETED", lab.output("restarted")
    assert "resumed from" in lab.output("restarted")
    assert lab.losses("restarted")[-1] == whole[-1]


@pytest.mark.nightly
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_run_that_fails_fails_its_job_whatever_started_it(lab: Lab, whole: list[float], launcher: str) -> None:
    run = f"failing-{launcher}"
    job = lab.begin(run, "--launcher", launcher, "train.steps=10000")
    os.kill(int((lab.folder / run / "rank0.pid").read_text()), signal.SIGKILL)
    lab.finish(job, run, "FAILED", "COMPLETED", "PENDING")
    assert lab.cluster.state(job) == "FAILED", lab.output(run)


@pytest.mark.nightly
def test_evaluations_are_swept_on_several_processes(lab: Lab, whole: list[float]) -> None:
    options = ["--tasks-per-node", 2, "--cpus-per-task", 1, "--time", "30:00", "--launcher", "torchrun"]
    words = [sys.executable, SLURM, "finetune", "--config", lab.evaluation, *options, "run.dir=swept-scores"]
    sweep = ["--seeds", 1, "--sweep", "knn.neighbors=3,5", f"checkpoint={lab.folder}/whole/encoder.safetensors"]
    done = subprocess.run(
        [*map(str, words), *map(str, sweep)],
        cwd=lab.folder,
        env=lab.cluster.environment | {"DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    report = done.stdout.splitlines()[1].split()[2].rstrip(",")
    lab.finish(report, "swept-scores", "COMPLETED", "FAILED", "CANCELLED")
    assert lab.cluster.state(report) == "COMPLETED", lab.output("swept-scores")
    folder = lab.folder / "swept-scores" / "crops"
    for count in (3, 5):
        assert (folder / f"knn.neighbors={count}" / "seed-0" / "results.json").exists()
    assert (lab.folder / "swept-scores" / "report" / "report.csv").exists()


@pytest.mark.nightly
def test_a_sweep_without_slurm_runs_one_after_the_other(lab: Lab, whole: list[float]) -> None:
    words = ["--local", "--tasks-per-node", 2, "--sweep", "optim.lr=1e-3,3e-4", "run.dir=local", "train.steps=3"]
    done = lab.slurm("pretrain", *words, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[-2:]]
    assert [row[1:4] for row in rows] == [["complete", "0", "3/3"]] * 2
    assert "WORLD SIZE 2" in done.stdout

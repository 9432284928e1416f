"""Jobs on a real Slurm of two nodes: pipelines, requeues after signals and preemption, killed tasks, arrays."""

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from support.processes import REPOSITORY
from support.slurm_lab import STEPS, TWO_NODES, Lab

import launch.slurm

PRETRAIN = REPOSITORY / "launch" / "pretrain.py"
STAND_IN = f"""\
#!/bin/bash
# Ends as a stopped run does, without the minutes in between: rank 0 first, rank 1 half a second later.
[ "$1" = -c ] && exec {sys.executable} "$@"
case "$*" in *--print-config*) exit 0 ;; esac
cd "$(printf '%s\\n' "$@" | sed -n 's/^run.dir=//p' | tail -n 1)" || exit 9
[ "$SLURM_PROCID" = 0 ] && [ -e saves ] && echo '{{"status": "stopped"}}' > status.json
[ "$SLURM_PROCID" = 0 ] || sleep 0.5
exit 75
"""

pytestmark = pytest.mark.distributed


def test_a_pipeline_goes_from_tiles_to_a_report(lab: Lab, whole: list[float]) -> None:
    assert len(whole) == STEPS
    assert "WORLD SIZE 2" in lab.output("whole")
    assert (lab.folder / "shards" / "mu.npy").exists()
    exported = sorted(path.name for path in (lab.folder / "whole" / "export").iterdir())
    assert {"encoder.safetensors", "encoder.pth"} <= set(exported)
    (line,) = csv.DictReader(
        (lab.folder / "whole" / "finetune" / "report" / "report.csv").open().read().splitlines()[:2]
    )
    assert (line["task"], line["protocol"], line["seeds"], line["metric"]) == ("enmap_cdl", "knn", "2", "mIoU")


def test_a_signal_saves_requeues_and_the_run_ends_with_the_same_losses(lab: Lab, whole: list[float]) -> None:
    """And everything that a site may want of a job; while it runs, its folder is nobody else's."""
    (lab.folder / "my setup.sh").write_text('echo "setup on $(hostname)"\nexport OMP_NUM_THREADS=1\n')
    site = ["--setup", "my setup.sh", "--mem", "1G", "--constraint", "cpu", "--sbatch", "--comment='of a test'"]
    job = lab.begin("signalled", *site)
    assert lab.cluster.field(job, "Features") == "cpu"
    assert "Comment=of a test" in lab.cluster.run("scontrol", "show", "job", job)
    again = lab.slurm("pretrain", *TWO_NODES, "run.dir=signalled")
    assert again.returncode == 2
    assert f"belongs to job {job}, which is RUNNING" in again.stderr
    lab.cluster.run("scancel", "--signal=USR1", job)  # what Slurm does to the tasks before the time limit
    lab.finish_requeued(job, "signalled")
    assert lab.losses("signalled") == whole
    assert lab.output("signalled").count("setup on ") == 2
    assert "Traceback" not in lab.output("signalled")


@pytest.mark.nightly  # without Slurm: test_watchdog.py
def test_a_killed_task_fails_the_job_and_hangs_nothing(lab: Lab, whole: list[float]) -> None:
    job = lab.begin("killed", "train.steps=10000")
    os.kill(int((lab.folder / "killed" / "rank0.pid").read_text()), signal.SIGKILL)
    lab.cluster.wait_for(job, "FAILED", seconds=60, story=lambda: lab.output("killed"))
    assert "error: rank 1 on n2: lost another rank" in lab.output("killed")


def test_a_batch_that_the_nodes_cannot_share_is_refused_before_anything_is_queued(lab: Lab) -> None:
    done = lab.slurm("pretrain", "--nodes", 3, "--time", "30:00", "run.dir=three")
    assert done.returncode == 2
    assert "train.global_batch 4 must be a multiple of train.micro_batch 2 x 3 processes" in done.stderr
    assert not (lab.folder / "three").exists()


def test_what_slurm_refuses_is_one_line(lab: Lab) -> None:
    done = lab.slurm("pretrain", *TWO_NODES, "--partition", "none", "run.dir=refused")
    assert done.returncode == 1
    assert "invalid partition specified: none" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_signal_that_would_come_at_once_is_refused(lab: Lab) -> None:
    done = lab.slurm("pretrain", *TWO_NODES, "--signal-seconds", 1790, "run.dir=early")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --signal-seconds 1790: leaves no time to run")


def test_misuse_under_srun_is_one_line_and_code_2(lab: Lab) -> None:
    """Slurm ends the other tasks when one has failed, which are not to say that they were stopped."""
    words = ["srun", "-N2", "-n2", "--kill-on-bad-exit=1", sys.executable, PRETRAIN, "--config", lab.config]
    done = subprocess.run(
        [*map(str, words), "optim.lrr=1"], env=lab.cluster.environment, capture_output=True, text=True, timeout=60
    )
    assert done.stderr.count("did you mean 'optim.lr'?") == 1
    assert done.returncode == 2


def test_misuse_in_a_job_fails_it_before_any_task_starts(lab: Lab) -> None:
    """The script is submitted by hand, after its config has been changed."""
    (lab.folder / "later.yaml").write_text(lab.config.read_text())
    done = lab.slurm("pretrain", *TWO_NODES, "run.dir=later", "--dry-run")
    script = lab.folder / "later.sbatch"
    text = done.stdout[done.stdout.index("#!/bin/bash") :]
    script.write_text(text.replace(str(lab.config), str(lab.folder / "later.yaml")))
    (lab.folder / "later" / "slurm").mkdir(parents=True)
    (lab.folder / "later.yaml").write_text(lab.config.read_text().replace("lr:", "lrr:"))
    job = lab.cluster.run("sbatch", "--parsable", str(script)).strip()
    lab.finish(job, "later", "FAILED", "COMPLETED")
    assert lab.cluster.state(job) == "FAILED"
    assert lab.output("later").count("error: ") == 1
    assert "did you mean 'optim.lr'?" in lab.output("later")


def stand_in(lab: Lab, run: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Submit a job whose tasks end as a stopped run's do; its folder has a space and a percent sign."""
    program = lab.folder / "stand-in"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, lab.cluster.environment[name])
    monkeypatch.setenv("RANK", "0")  # as in a shell that a launcher has started
    monkeypatch.chdir(lab.folder)
    begin = lab.cluster.run("squeue", "-h", "-o", "%i").split()
    launch.slurm.main(["pretrain", "--config", str(lab.config), *TWO_NODES, f"run.dir={run}"])
    (job,) = set(lab.cluster.run("squeue", "-h", "-o", "%i").split()) - set(begin)
    return job


def test_tasks_that_end_one_after_the_other_are_requeued(
    lab: Lab, whole: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one's code 75 has srun kill the other, and srun's own code is another then."""
    run = "two 50% ends"
    (lab.folder / run).mkdir()
    (lab.folder / run / "saves").touch()
    job = stand_in(lab, run, monkeypatch)
    lab.finish(job, run, "PENDING", "FAILED")
    lab.cluster.wait_until(lambda: lab.cluster.field(job, "Restarts") == "1", 30, lambda: lab.output(run))
    lab.cluster.run("scancel", job)


@pytest.mark.nightly
def test_a_run_that_is_stopped_before_it_saves_is_not_requeued_for_ever(
    lab: Lab, whole: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    (lab.folder / "idle").mkdir()
    job = stand_in(lab, "idle", monkeypatch)
    for restarts in ("1", "2", "3"):
        lab.cluster.wait_until(lambda: lab.cluster.field(job, "Restarts") == restarts, 60, lambda: lab.output("idle"))  # noqa: B023
        lab.finish(job, "idle", "PENDING")
        lab.cluster.release(job)
    lab.finish(job, "idle", "FAILED")


@pytest.mark.nightly
def test_plain_srun_finds_its_ranks_and_address(lab: Lab, whole: list[float]) -> None:
    words = ["srun", "-N2", "-n2", sys.executable, PRETRAIN, "--config", lab.config]
    options = [f"run.dir={lab.folder / 'plain'}", "train.steps=2"]
    environment = lab.cluster.environment | {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*map(str, words), *options], env=environment, capture_output=True, text=True, timeout=120, cwd=lab.folder
    )
    assert done.returncode == 0, done.stderr
    assert "WORLD SIZE 2" in done.stdout


@pytest.mark.nightly
def test_preemption_saves_requeues_and_the_run_ends_with_the_same_losses(lab: Lab, whole: list[float]) -> None:
    job = lab.begin("preempted")
    urgent = lab.cluster.run(
        "sbatch", "--parsable", "-p", "high", "-N2", "--exclusive", "--wrap", "sleep 3", "-o", "/dev/null"
    ).strip()
    lab.cluster.wait_for(urgent, "COMPLETED", seconds=120, story=lambda: lab.output("preempted"))
    lab.finish_requeued(job, "preempted")
    assert lab.losses("preempted") == whole


@pytest.mark.nightly
def test_a_killed_task_requeues_the_job_where_that_is_asked_for(lab: Lab, whole: list[float]) -> None:
    job = lab.begin("retried", "--retry-failures", "1", "checkpoint.every=2")
    os.kill(int((lab.folder / "retried" / "rank0.pid").read_text()), signal.SIGKILL)
    lab.finish(job, "retried", "PENDING")
    lab.cluster.release(job)
    lab.finish(job, "retried", "COMPLETED", "FAILED")
    assert lab.cluster.state(job) == "COMPLETED", lab.output("retried")
    assert lab.losses("retried") == whole


@pytest.mark.nightly
def test_a_sweep_is_an_array_of_runs(lab: Lab, whole: list[float]) -> None:
    options = ["--nodes", 1, "--cpus-per-task", 1, "--time", "30:00", "--sweep", "optim.lr=1e-3,3e-4"]
    (job,) = lab.submit("pretrain", *options, "run.dir=swept", "train.steps=4").values()
    for number, rate in enumerate(("1e-3", "3e-4")):
        lab.finish(f"{job}_{number}", "swept", "COMPLETED", "FAILED")
        folder = lab.folder / "swept" / f"optim.lr={rate}"
        assert len(lab.losses(f"swept/optim.lr={rate}")) == 4, lab.output("swept")
        assert yaml.safe_load((folder / "config.yaml").read_text())["optim"]["lr"] == float(rate)


@pytest.mark.nightly
def test_an_element_of_an_array_is_requeued_alone(lab: Lab, whole: list[float]) -> None:
    """The last one: its own number is that of the array."""
    options = ["--nodes", 1, "--cpus-per-task", 1, "--time", "30:00", "--stage", "--sweep", "run.seed=1,2"]
    (array,) = lab.submit("pretrain", *options, "run.dir=seeds", "train.steps=60").values()
    runs = [f"seeds/run.seed={seed}" for seed in (1, 2)]
    lab.cluster.wait_until(lambda: min(len(lab.losses(run)) for run in runs) >= 3, 120, lambda: lab.output("seeds"))
    lab.cluster.run("scancel", "--signal=USR1", f"{array}_1")
    lab.finish(f"{array}_1", "seeds", "PENDING", "FAILED")
    lab.cluster.release(f"{array}_1")
    for element, run in enumerate(runs):
        lab.finish(f"{array}_{element}", "seeds", "COMPLETED", "FAILED")
        assert lab.cluster.state(f"{array}_{element}") == "COMPLETED", lab.output("seeds")
        assert lab.cluster.field(f"{array}_{element}", "Restarts") == str(element)
        assert len(lab.losses(run)) == 60
    assert not list(Path(tempfile.gettempdir()).glob(f"spectralforge-{array}"))


@pytest.mark.nightly
def test_a_canceled_job_saves_and_is_not_requeued(lab: Lab, whole: list[float]) -> None:
    job = lab.begin("canceled", "train.steps=10000")
    lab.cluster.run("scancel", job)
    lab.cluster.wait_for(job, "CANCELLED", "FAILED", "PENDING", seconds=60, story=lambda: lab.output("canceled"))
    lab.cluster.wait_until(lambda: lab.cluster.run("squeue", "-h", "-j", job).strip() == "", 60)
    assert lab.cluster.state(job) == "CANCELLED"
    assert json.loads((lab.folder / "canceled" / "status.json").read_text())["status"] == "stopped"


@pytest.mark.nightly
def test_a_failed_stage_leaves_nothing_queued(lab: Lab) -> None:
    (lab.folder / "empty").mkdir()
    options = ["--tiles", "empty", "--parts", 1, "--workers", 1, "data.shards=none", "run.dir=failed"]
    jobs = lab.submit("pipeline", *TWO_NODES, *options)
    lab.finish(jobs["shard"], "failed", "FAILED")
    queued = ["squeue", "-h", "-j", ",".join(jobs.values())]
    lab.cluster.wait_until(lambda: lab.cluster.run(*queued).strip() == "", 60, lambda: lab.output("failed"))

"""A user of the tests' Slurm cluster, who submits jobs and checks their results."""

import json
import subprocess
import sys
from pathlib import Path

import yaml
from support.processes import REPOSITORY
from support.slurm_cluster import SlurmCluster
from support.tiles import write_archive

from finetune.tasks import get_task
from pretrain.checkpointing.checkpoint import find_damage, list_checkpoints
from pretrain.resilience.restarts import read_restarts
from pretrain.resilience.status import run_state
from tools.sample_tasks import make_task_sample

SLURM = REPOSITORY / "launch" / "slurm.py"
TWO_NODES = ["--nodes", "2", "--tasks-per-node", "1", "--cpus-per-task", "1", "--time", "30:00"]
STEPS = 30


class Lab:
    """A user with tiles, shards and a config in a folder."""

    def __init__(self, folder: Path, cluster: SlurmCluster) -> None:
        self.folder, self.cluster = folder, cluster
        write_archive(folder / "tiles", size=24)
        config = {
            "run": {"dir": "set by each test", "seed": 7},
            "data": {"shards": str(folder / "shards"), "holdout": 0.2, "read_threads": 1},
            "model": {"name": "spec_vit_tiny", "image_size": 8, "patch_size": 4, "bn_group": 2},
            "objective": {"mask_ratio": 0.5, "decoder": {"width": 64, "depth": 1, "heads": 2}},
            "optim": {"lr": 5e-4},
            "train": {"steps": STEPS, "global_batch": 4, "micro_batch": 2},
            "engine": {"precision": "fp32"},
            "checkpoint": {"every": 1000},
            "log": {"every": 1, "validate_every": 0},
        }
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(config))
        make_task_sample(folder / "labeled", get_task("enmap_cdl"), tiles=10, size=8)
        evaluation = {
            "run": {"dir": "set by the job"},
            "task": "enmap_cdl",
            "data": {"root": str(folder / "labeled"), "splits": str(folder / "labeled" / "splits" / "enmap_cdl")},
            "checkpoint": "set by the job",
            "protocol": ["knn"],
        }
        self.evaluation = folder / "crops.yaml"
        self.evaluation.write_text(yaml.safe_dump(evaluation))

    def slurm(self, command: str, *words: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(SLURM), command, "--config", str(self.config), *map(str, words)],
            cwd=self.folder,
            env=self.cluster.environment | {"DS_ACCELERATOR": "cpu"},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def submit(self, command: str, *words: object) -> dict[str, str]:
        """Submit jobs; return job numbers by stage."""
        done = self.slurm(command, *words)
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in done.stdout.splitlines() if ": job " in line]
        return {line[0].rstrip(":"): line[2].rstrip(",") for line in lines}

    def losses(self, run: str) -> list[float]:
        path = self.folder / run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [record["loss"] for record in map(json.loads, lines) if "loss" in record]

    def output(self, run: str) -> str:
        return "\n".join(path.read_text() for path in sorted((self.folder / run / "slurm").glob("*.out")))

    def finish(self, job: str, run: str, *states: str) -> None:
        self.cluster.wait_for(job, *states, seconds=600, story=lambda: self.output(run))

    def begin(self, run: str, *options: object, steps: int = 3) -> str:
        """Submit a run on two nodes and wait for its first steps."""
        (job,) = self.submit("pretrain", *TWO_NODES, f"run.dir={run}", *options).values()
        self.cluster.wait_until(lambda: len(self.losses(run)) >= steps, 300, lambda: self.output(run))
        return job

    def samples(self, run: str) -> list[str]:
        """Return the logs of samples of a run's ranks."""
        return [path.read_text() for path in sorted((self.folder / run).glob("samples-*.jsonl"))]

    def check_restarted(self, job: str, run: str, whole: str, why: str, bad: str, nodes: tuple[str, ...]) -> None:
        """Check that a job ended well with one restart, which is told everywhere, and trained on what another did.

        Args:
            whole: an uninterrupted run.
            why, bad: cause of the restart, and node to blame.
            nodes: of the second attempt.
        """
        self.finish(job, run, "COMPLETED", "FAILED", "PENDING")
        assert self.cluster.state(job) == "COMPLETED", self.output(run)
        assert self.cluster.field(job, "Restarts") == "0"
        (restart,) = read_restarts(self.folder / run)
        assert (restart.hosts, restart.nodes) == ((bad,), nodes)
        assert why in restart.why
        status = json.loads((self.folder / run / "status.json").read_text())
        assert (status["restarts"], status["status"]) == (1, "complete")
        assert status["last_restart"].startswith(f"{bad}: ") and " steps lost: from step " in status["last_restart"]
        assert f"restart 1: {status['last_restart']}" in self.output(run)
        self.check_same(run, whole)

    def check_same(self, run: str, whole: str) -> None:
        """Check that two runs had the same losses and samples."""
        assert self.losses(run) == self.losses(whole)
        assert self.samples(run) == self.samples(whole)

    def wait_complete(self, run: str) -> None:
        """Wait until a run says that it is complete; its job may still wait for a node that does not answer."""
        path = self.folder / run
        self.cluster.wait_until(lambda: run_state(path).condition == "complete", 600, lambda: self.output(run))

    def finish_requeued(self, job: str, run: str) -> None:
        """Release a job that saved and was requeued, and check that it finishes."""
        self.finish(job, run, "PENDING")
        assert self.cluster.field(job, "Restarts") == "1"
        assert json.loads((self.folder / run / "status.json").read_text())["status"] == "stopped"
        assert find_damage(list_checkpoints(self.folder / run / "checkpoints")[-1]) is None
        self.cluster.release(job)
        self.finish(job, run, "COMPLETED", "FAILED")
        assert self.cluster.state(job) == "COMPLETED", f"{self.output(run)}\n{self.cluster.log()}"
        assert "resumed from" in self.output(run)

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

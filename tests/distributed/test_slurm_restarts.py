"""Restarts within a job on a real Slurm of three nodes: killed ranks and nodes, and ranks that stand still.

Losses and the log of samples are those of an uninterrupted run.
"""

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.slurm_cluster import SlurmCluster
from support.slurm_lab import TWO_NODES, Lab

from shards.pack.build import PackConfig, pack

OPTIONS = ["checkpoint.every=5", "log.samples=true"]

pytestmark = [pytest.mark.distributed, pytest.mark.nightly]


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    """A cluster that takes five minutes to notice a dead node, as Slurm does by default."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, SlurmCluster(Path(folder), 3, timeout=300) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def lab(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = Lab(tmp_path_factory.mktemp("lab"), cluster)
    pack(lab.folder / "tiles", lab.folder / "shards", PackConfig(tiles_per_shard=4))
    return lab


@pytest.fixture(scope="module")
def whole(lab: Lab) -> str:
    (job,) = lab.submit("pretrain", *TWO_NODES, "run.dir=whole", *OPTIONS).values()
    lab.finish(job, "whole", "COMPLETED", "FAILED")
    return "whole"


def rank_1(lab: Lab, run: str) -> psutil.Process:
    """The process of rank 1, which runs on the second node."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if f"run.dir={lab.folder / run}" in words and words[1].endswith("pretrain.py"):
            variables = process.environ()
            if (variables.get("SLURM_PROCID"), variables.get("SLURM_STEP_NUM_TASKS")) == ("1", "2"):
                return process
    raise AssertionError(lab.output(run))


def test_a_killed_rank_is_started_again_with_a_spare(lab: Lab, whole: str) -> None:
    job = lab.begin("killed", "--spares", 1, *OPTIONS, steps=12)
    rank_1(lab, "killed").kill()
    lab.check_restarted(job, "killed", whole, "task 1: killed", "n2", ("n1", "n3"))


def test_a_rank_that_stands_still_is_started_again_with_a_spare(lab: Lab, whole: str) -> None:
    job = lab.begin("still", "--spares", 1, "watchdog.step=20", *OPTIONS, steps=12)
    rank_1(lab, "still").send_signal(signal.SIGSTOP)
    lab.check_restarted(job, "still", whole, "rank 1 on n2 does not answer", "n2", ("n1", "n3"))


def test_a_run_goes_on_with_fewer_nodes_at_the_same_global_batch(lab: Lab, whole: str) -> None:
    job = lab.begin("fewer", "--min-nodes", 1, *OPTIONS, steps=12)
    lab.cluster.run("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=fan")
    rank_1(lab, "fewer").kill()
    lab.finish(job, "fewer", "COMPLETED", "FAILED", "PENDING")
    lab.cluster.run("scontrol", "update", "NodeName=n2", "State=RESUME")
    assert lab.cluster.state(job) == "COMPLETED", lab.output("fewer")
    assert "n2 is left out: Slurm says " in lab.output("fewer")
    assert "global batch 4 = 2 x 1 processes x 2 accumulated" in lab.output("fewer")
    assert lab.losses("fewer") == pytest.approx(lab.losses(whole), rel=1e-5)


def test_too_few_nodes_have_the_job_requeued(lab: Lab, whole: str) -> None:
    job = lab.begin("requeued", "--min-nodes", 2, *OPTIONS, steps=12)
    lab.cluster.run("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=fan")
    rank_1(lab, "requeued").kill()
    lab.finish(job, "requeued", "PENDING", "FAILED")
    assert "1 good nodes are left, 2 are needed" in lab.output("requeued")
    lab.cluster.release(job)
    lab.finish(job, "requeued", "COMPLETED", "FAILED")
    lab.cluster.run("scontrol", "update", "NodeName=n2", "State=RESUME")
    assert lab.cluster.state(job) == "COMPLETED", lab.output("requeued")
    assert lab.losses("requeued") == lab.losses(whole)


def test_a_dead_node_is_replaced_by_a_spare_before_slurm_notices(lab: Lab, whole: str) -> None:
    job = lab.begin("dead", "--spares", 1, *OPTIONS, steps=12)
    lab.cluster.kill_node("n2")
    lab.wait_complete("dead")
    lab.cluster.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=dead")  # as Slurm would in minutes
    lab.check_restarted(job, "dead", whole, "did not end with the others: dead or disconnected", "n2", ("n1", "n3"))

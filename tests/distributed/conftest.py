"""One Slurm and one uninterrupted run for all tests of jobs."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.slurm_cluster import SlurmCluster
from support.slurm_lab import TWO_NODES, Lab


@pytest.fixture(scope="session")
def cluster() -> Iterator[SlurmCluster]:
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, SlurmCluster(Path(folder)) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def lab(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), cluster)


@pytest.fixture(scope="session")
def whole(lab: Lab) -> list[float]:
    """Losses of an uninterrupted run on two nodes, which a pipeline made from tiles to the report on its encoder.

    torchrun starts its ranks; the jobs that are compared with it are started by srun, unless they say otherwise.
    """
    options = ["--tiles", "tiles", "--parts", 2, "--workers", 1, "--finetune", lab.evaluation, "--seeds", 2]
    jobs = lab.submit("pipeline", *TWO_NODES, "--launcher", "torchrun", *options, "run.dir=whole")
    assert list(jobs) == ["shard", "merge", "pretrain", "export", "finetune", "report"]
    lab.finish(jobs["report"], "whole", "COMPLETED", "FAILED", "CANCELLED")
    assert lab.cluster.state(jobs["report"]) == "COMPLETED", f"{lab.output('whole')}\n{lab.output('whole/finetune')}"
    return lab.losses("whole")

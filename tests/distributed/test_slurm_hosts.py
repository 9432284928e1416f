"""Slurm jobs on hosts with their own names, addresses and /tmp: a cut link, a full disk, a missing file system."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hosts import Hosts
from support.processes import REPOSITORY
from support.slurm_cluster import SlurmCluster
from support.slurm_lab import TWO_NODES, Lab

from pretrain.resilience.restarts import read_restarts
from shards.pack.build import PackConfig, pack

OPTIONS = ["checkpoint.every=5", "log.samples=true"]

pytestmark = [pytest.mark.distributed, pytest.mark.nightly]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def hosts(folder: Path) -> Iterator[Hosts]:
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as daemons,
        Hosts(Path(daemons), 3, [Path(daemons), folder, REPOSITORY]) as hosts,
    ):
        yield hosts


@pytest.fixture(scope="module")
def lab(hosts: Hosts, folder: Path) -> Iterator[Lab]:
    """A lab with a cluster that takes five minutes to notice a dead node, as Slurm does by default."""
    with SlurmCluster(hosts.folder, timeout=300, hosts=hosts) as cluster:
        lab = Lab(folder, cluster)
        pack(folder / "tiles", folder / "shards", PackConfig(tiles_per_shard=4))
        yield lab


@pytest.fixture(scope="module")
def whole(lab: Lab) -> str:
    (job,) = lab.submit("pretrain", *TWO_NODES, "run.dir=whole", *OPTIONS).values()
    lab.finish(job, "whole", "COMPLETED", "FAILED")
    assert lab.cluster.state(job) == "COMPLETED", lab.output("whole")
    return "whole"


def test_a_host_that_is_cut_off_is_replaced_by_a_spare(hosts: Hosts, lab: Lab, whole: str) -> None:
    job = lab.begin("cut", "--spares", 1, "watchdog.step=30", *OPTIONS, steps=12)
    hosts.cut("h2")
    lab.wait_complete("cut")
    hosts.mend("h2")
    lab.check_restarted(job, "cut", whole, "rank 1 on h2 does not answer", "h2", ("h1", "h3"))
    assert "h2 is left out: " in lab.output("cut")
    for line in lab.output("cut").splitlines():
        assert not re.search(r"\brank \d+(?! on h\d)", line), line


def test_a_host_whose_disk_is_full_is_left_out(hosts: Hosts, lab: Lab, whole: str) -> None:
    lab.cluster.run("srun", "--nodelist=h2", "dd", "if=/dev/zero", "of=/tmp/full", "bs=1M")
    job = lab.begin("full", "--spares", 1, *OPTIONS)
    lab.finish(job, "full", "COMPLETED", "FAILED", "PENDING")
    lab.cluster.run("srun", "--nodelist=h2", "rm", "/tmp/full")
    assert lab.cluster.state(job) == "COMPLETED", lab.output("full")
    assert "h2 is left out: /tmp can't be written to: No space left on device" in lab.output("full")
    assert "attempt 1 on h1, h3; spare: none" in lab.output("full")
    lab.check_same("full", whole)


def test_a_host_that_lacks_the_shards_is_replaced_by_a_spare(lab: Lab, whole: str) -> None:
    shards = str(lab.folder / "shards")
    lab.cluster.run("srun", "--nodelist=h2", "mount", "-t", "tmpfs", "tmpfs", shards)
    (job,) = lab.submit("pretrain", *TWO_NODES, "--spares", 1, "run.dir=lacks", *OPTIONS).values()
    lab.finish(job, "lacks", "COMPLETED", "FAILED", "PENDING")
    lab.cluster.run("srun", "--nodelist=h2", "umount", shards)
    assert lab.cluster.state(job) == "COMPLETED", lab.output("lacks")
    (restart,) = read_restarts(lab.folder / "lacks")
    assert (restart.hosts, restart.nodes) == (("h2",), ("h1", "h3"))
    assert restart.why.startswith(f"rank 1 on h2: {shards}/manifest.json: "), restart.why
    lab.check_same("lacks", whole)

"""Runs on two hosts: links that are cut, a port in use, and names that lead to the wrong interface."""

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.hosts import Hosts
from support.processes import REPOSITORY
from support.tiles import write_archive

from pretrain.resilience.status import read_record
from shards.pack.build import PackConfig, pack

PORT = 29400
LIMIT = 60
"""watchdog.step"""

pytestmark = [pytest.mark.distributed, pytest.mark.nightly]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hosts")
    write_archive(folder / "tiles", size=24)
    pack(folder / "tiles", folder / "shards", PackConfig(tiles_per_shard=4))
    values = {
        "run": {"dir": "set by each test"},
        "data": {"shards": str(folder / "shards"), "holdout": 0, "read_threads": 1},
        "model": {"name": "spec_vit_tiny", "image_size": 8, "patch_size": 4, "bn_group": 2},
        "objective": {"mask_ratio": 0.5, "decoder": {"width": 64, "depth": 1, "heads": 2}},
        "train": {"steps": 100000, "global_batch": 4, "micro_batch": 2},
        "engine": {"precision": "fp32"},
        "checkpoint": {"every": 100000},
        "log": {"every": 1, "validate_every": 0},
        "watchdog": {"step": LIMIT},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder / "config.yaml"


@pytest.fixture
def hosts(tmp_path: Path, config: Path) -> Iterator[Hosts]:
    with Hosts(tmp_path, 2, [tmp_path, config.parent, REPOSITORY]) as hosts:
        yield hosts


class Job:
    """A run of one rank on each host.

    Args:
        torchrun: start the ranks by torchrun, instead of directly.
        names: /etc/hosts of both hosts, by default with their addresses.
    """

    def __init__(
        self,
        hosts: Hosts,
        folder: Path,
        config: Path,
        *overrides: str,
        torchrun: bool = False,
        names: Path | None = None,
    ) -> None:
        self.hosts, self.folder, self.log = hosts, folder / "run", folder / "log"
        program = [REPOSITORY / "launch" / "pretrain.py", "--config", config, f"run.dir={self.folder}", *overrides]
        address = hosts.address("h1")
        self.processes = []
        for rank, host in enumerate(hosts.names):
            shared = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "MASTER_ADDR": address, "MASTER_PORT": str(PORT)}
            own = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
            command = [sys.executable, *program]
            if torchrun:
                place = ["--nnodes=2", f"--node_rank={rank}", f"--master_addr={address}", f"--master_port={PORT}"]
                command, own = [sys.executable, "-m", "torch.distributed.run", *place, *program], {}
            self.processes.append(hosts.start(host, command, self.log, shared | own, names))

    def wait_for_steps(self, count: int = 3) -> None:
        path, deadline = self.folder / "metrics.jsonl", time.monotonic() + 400
        while not (path.exists() and path.read_text().count("\n") >= count):
            assert time.monotonic() < deadline and self.processes[0].poll() is None, self.output()
            time.sleep(0.1)

    def steps(self) -> int:
        return len((self.folder / "metrics.jsonl").read_text().splitlines())

    def end(self, seconds: float) -> list[int]:
        return [process.wait(timeout=seconds) for process in self.processes]

    def output(self) -> str:
        return self.log.read_text(errors="replace")


def test_a_link_that_is_cut_for_good_ends_both_sides(hosts: Hosts, tmp_path: Path, config: Path) -> None:
    job = Job(hosts, tmp_path, config)
    job.wait_for_steps()
    hosts.cut("h2")
    assert job.end(LIMIT + 120) == [77, 77], job.output()
    assert "rank 1 on h2 does not answer: stopped, dead or disconnected" in job.output()
    record = read_record(job.folder)
    assert record is not None and record.status == "failed"


def test_a_link_that_is_cut_for_good_ends_both_sides_of_torchrun(hosts: Hosts, tmp_path: Path, config: Path) -> None:
    job = Job(hosts, tmp_path, config, torchrun=True)
    job.wait_for_steps()
    hosts.cut("h2")
    assert job.end(LIMIT + 180) == [1, 1]
    assert job.output().count("exitcode  : 77") == 2, job.output()
    assert "rank 1 on h2 does not answer" in job.output()


def test_a_link_that_is_cut_for_some_seconds_is_survived(hosts: Hosts, tmp_path: Path, config: Path) -> None:
    job = Job(hosts, tmp_path, config, "watchdog.step=90")
    job.wait_for_steps()
    hosts.cut("h2")
    time.sleep(20)
    before = job.steps()
    hosts.mend("h2")
    deadline = time.monotonic() + 200
    while job.steps() < before + 3:
        assert time.monotonic() < deadline, job.output()
        time.sleep(0.2)
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.end(60) == [75, 75]


def test_a_port_in_use_is_one_line(hosts: Hosts, tmp_path: Path, config: Path) -> None:
    listen = f"import socket, time; server = socket.create_server(('', {PORT})); time.sleep(1000)"
    hosts.start("h1", [sys.executable, "-c", listen], tmp_path / "listen", {})
    job = Job(hosts, tmp_path, config)
    assert job.processes[0].wait(timeout=600) == 1
    (line,) = [line for line in job.output().splitlines() if line.startswith("error: ")]
    assert line.startswith("error: rank 0 on h1: ") and f"port: {PORT}" in line and "EADDRINUSE" in line
    assert "Traceback" not in job.output()

"""Runs on two hosts: cut links, wrong interfaces, clocks that differ, a file system that one lacks, a port in use."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import yaml
from support.hosts import Hosts
from support.processes import REPOSITORY
from support.tiles import write_archive

from pretrain.checkpointing.checkpoint import find_damage, list_checkpoints
from pretrain.resilience.status import read_record, run_state
from shards.pack.build import PackConfig, pack

PORT = 29400
LIMIT = 30
"""watchdog.step"""
MARGIN = 15
"""Seconds beyond the limit after which both sides have ended."""
MINUTE = 90
"""Seconds by which clocks differ: more than `STALE_S`."""

pytestmark = pytest.mark.distributed
nightly = pytest.mark.nightly


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
        launcher: starts the ranks, given the number of a host; by default they are started directly.
        environment: of all ranks.
        names: /etc/hosts of both hosts, by default with their addresses.
        ahead: seconds that the clocks of some hosts are ahead.
        hidden: folders that h2 does not see.
        program: what each rank runs.
    """

    def __init__(
        self,
        hosts: Hosts,
        folder: Path,
        config: Path,
        *overrides: str,
        launcher: Callable[[int], Sequence[object]] | None = None,
        environment: Mapping[str, str] = os.environ,
        names: Path | None = None,
        ahead: Mapping[str, int] = {},
        hidden: Sequence[Path] = (),
        program: Sequence[object] = (REPOSITORY / "launch" / "pretrain.py",),
    ) -> None:
        self.hosts, self.folder, self.log = hosts, folder / "run", folder / "log"
        self.log.unlink(missing_ok=True)
        program = [*program, "--config", config, f"run.dir={self.folder}", *overrides]
        self.processes = []
        for rank, host in enumerate(hosts.names):
            shared = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
            own = {"MASTER_ADDR": hosts.address("h1"), "MASTER_PORT": str(PORT)}
            own |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
            command = [sys.executable, *program]
            if launcher:
                command, own = [sys.executable, *launcher(rank), *program], {"SLURM_NODEID": str(rank)}
            seen = hidden if host == "h2" else ()
            variables = {**environment, **shared, **own}
            self.processes.append(
                hosts.start(host, command, self.log, variables, names, ahead=ahead.get(host, 0), hidden=seen)
            )

    def wait_until(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 400
        while not ready():
            assert time.monotonic() < deadline and self.processes[0].poll() is None, self.output()
            time.sleep(0.05)

    def wait_for_steps(self, count: int = 3) -> None:
        """Wait for ``count`` more steps."""
        wanted = self.steps() + count
        self.wait_until(lambda: self.steps() >= wanted)

    def steps(self) -> int:
        path = self.folder / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def losses(self) -> list[float]:
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if "loss" in line]

    def end(self, seconds: float) -> list[int]:
        deadline = time.monotonic() + seconds
        try:
            codes = [process.wait(timeout=deadline - time.monotonic()) for process in self.processes]
            for line in self.output().splitlines():
                assert not re.search(r"\brank \d+\b(?! on h\d| \(h\d)", line), line  # names its host, too
            return codes
        except subprocess.TimeoutExpired:
            raise AssertionError(self.output()) from None

    def stop(self) -> None:
        self.processes[1].send_signal(signal.SIGTERM)
        assert self.end(90) == [75, 75], self.output()

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def error(self) -> str:
        """The only line of error."""
        (line,) = [line for line in self.output().splitlines() if line.startswith("error: ")]
        assert "Traceback" not in self.output()
        return line


def static(hosts: Hosts) -> Callable[[int], Sequence[object]]:
    """torchrun, with the address of the first host."""
    place = [f"--master_addr={hosts.address('h1')}", f"--master_port={PORT}"]
    return lambda number: ["-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={number}", *place]


def agents(hosts: Hosts) -> Callable[[int], Sequence[object]]:
    """torchrun as in the jobs of ``launch/slurm.py --launcher torchrun``."""
    place = ["--rdzv-backend=c10d", f"--rdzv-endpoint={hosts.address('h1')}:{PORT}", "--rdzv-id=1"]
    agent = REPOSITORY / "launch" / "agent.py"
    return lambda number: [agent, "torchrun", "--nnodes=2", "--nproc-per-node=1", *place]


@nightly
def test_a_link_that_is_cut_for_good_ends_both_sides(hosts: Hosts, tmp_path: Path, config: Path) -> None:
    job = Job(hosts, tmp_path, config, "watchdog.step=15")
    job.wait_for_steps()
    hosts.cut("h2")
    assert job.end(15 + 60) == [77, 77], job.output()
    assert "rank 1 on h2 does not answer: stopped, dead or disconnected" in job.output()
    record = read_record(job.folder)
    assert record is not None and record.status == "failed"


@nightly
def test_both_sides_of_a_cut_link_end_soon_after_the_limit(hosts: Hosts, tmp_path: Path, config: Path) -> None:
    job = Job(hosts, tmp_path, config)
    job.wait_for_steps()
    hosts.cut("h2")
    begin = time.monotonic()
    ends = []
    for process in job.processes:
        assert process.wait(timeout=LIMIT + MARGIN - (time.monotonic() - begin)) == 77
        ends.append(time.monotonic() - begin)
    print(f"limit {LIMIT} s: ended after", " and ".join(f"{end:.1f} s" for end in ends))


@nightly
def test_a_link_that_is_cut_for_good_ends_both_sides_of_torchrun(hosts: Hosts, tmp_path: Path, config: Path) -> None:
    job = Job(hosts, tmp_path, config, launcher=static(hosts))
    job.wait_for_steps()
    hosts.cut("h2")
    assert job.end(LIMIT + 180) == [1, 1]
    assert job.output().count("exitcode  : 77") == 2, job.output()
    assert "rank 1 on h2 does not answer" in job.output()


@nightly
def test_a_link_that_is_cut_for_some_seconds_is_survived(hosts: Hosts, tmp_path: Path, config: Path) -> None:
    job = Job(hosts, tmp_path, config, "watchdog.step=120")
    job.wait_for_steps()
    hosts.cut("h2")
    time.sleep(20)
    hosts.mend("h2")
    job.wait_for_steps()
    job.stop()


@nightly
@pytest.mark.parametrize("background", ["true", "false"])
def test_a_link_that_is_cut_at_a_save_leaves_whole_checkpoints(
    hosts: Hosts, tmp_path: Path, config: Path, background: str
) -> None:
    options = ["checkpoint.every=2", f"checkpoint.background={background}", "watchdog.saving=30"]
    job = Job(hosts, tmp_path, config, *options)
    folder = job.folder / "checkpoints"
    job.wait_until(lambda: len(list_checkpoints(folder)) > 1 and bool(list(folder.glob("*.tmp"))))
    hosts.cut("h2")
    assert job.end(30 + MARGIN) == [77, 77], job.output()
    assert "rank 1 on h2 does not answer" in job.output()
    assert find_damage(list_checkpoints(folder)[-1]) is None

    hosts.mend("h2")
    job = Job(hosts, tmp_path, config, *options, "watchdog.step=120", "watchdog.saving=120")
    job.wait_for_steps()
    assert "resumed from" in job.output()
    job.wait_until(lambda: bool(list(folder.glob("*.tmp"))))
    hosts.cut("h2")
    time.sleep(20)
    hosts.mend("h2")
    job.wait_for_steps()
    job.stop()
    assert find_damage(list_checkpoints(folder)[-1]) is None


@nightly
def test_ranks_that_never_meet_name_the_place_where_they_wait(hosts: Hosts, tmp_path: Path, config: Path) -> None:
    hosts.cut("h2")
    job = Job(hosts, tmp_path, config, "watchdog.setup=40")
    assert job.end(400) == [77, 77], job.output()
    for rank, host in enumerate(hosts.names):
        assert f"rank {rank} on {host} has not met all 2 ranks at {hosts.address('h1')}:{PORT}" in job.output(), (
            job.output()
        )


@nightly
def test_a_link_that_is_cut_at_the_start_for_some_seconds_is_survived(
    hosts: Hosts, tmp_path: Path, config: Path
) -> None:
    hosts.cut("h2")
    job = Job(hosts, tmp_path, config, "watchdog.step=120")
    time.sleep(40)  # both wait at the rendezvous
    hosts.mend("h2")
    job.wait_until(lambda: (job.folder / "rank0.pid").exists())  # first collectives
    hosts.cut("h2")
    time.sleep(20)
    hosts.mend("h2")
    job.wait_for_steps()
    job.stop()


@nightly
def test_a_link_that_is_cut_between_the_first_collectives_ends_both_sides(
    hosts: Hosts, tmp_path: Path, config: Path
) -> None:
    job = Job(hosts, tmp_path, config, "watchdog.setup=60")
    job.wait_until(lambda: (job.folder / "rank0.pid").exists())
    hosts.cut("h2")
    assert job.end(60 + MARGIN) == [77, 77], job.output()
    assert "watchdog.setup = 60 s: rank 1 on h2 does not answer" in job.output()


@nightly
@pytest.mark.parametrize("wrong", ["10.99.0.2", "127.0.1.1"])
def test_names_of_hosts_may_lead_to_the_wrong_interface(hosts: Hosts, tmp_path: Path, config: Path, wrong: str) -> None:
    hosts.add_interface("h2", "10.99.0.2")
    job = Job(hosts, tmp_path, config, names=hosts.name_addresses(h2=wrong))
    job.wait_for_steps()
    job.stop()


@nightly
def test_the_wrong_interface_by_hand_is_told(hosts: Hosts, tmp_path: Path, config: Path) -> None:
    hosts.add_interface("h2", "10.99.0.2")
    variables = {"GLOO_SOCKET_IFNAME": "ib0"}
    job = Job(hosts, tmp_path, config, environment=variables)
    assert job.end(400) == [2, 1], job.output()
    assert "error: rank 0 on h1: GLOO_SOCKET_IFNAME=ib0: no such interface on this host" in job.output()

    hosts.add_interface("h1", "10.99.0.1")
    job = Job(hosts, tmp_path, config, "watchdog.setup=60", environment=variables)
    codes = job.end(400)
    assert codes[0] == 77 and codes[1] in (77, 1), job.output()  # whether rank 1 is still waiting when rank 0 ends
    assert "has not met all 2 ranks" in job.output() and "GLOO_SOCKET_IFNAME" in job.output()


@nightly
def test_clocks_may_differ_by_more_than_a_minute(hosts: Hosts, tmp_path: Path, config: Path) -> None:
    options = ["train.steps=30", "checkpoint.every=10"]
    (tmp_path / "whole").mkdir()
    whole = Job(hosts, tmp_path / "whole", config, *options)
    assert whole.end(400) == [0, 0], whole.output()

    job = Job(hosts, tmp_path, config, *options, ahead={"h1": MINUTE, "h2": -MINUTE})
    job.wait_for_steps(12)
    state = run_state(job.folder)
    assert state.condition == "running" and state.heard < MINUTE / 2, state
    job.processes[0].kill()
    job.processes[1].kill()
    job.end(60)
    job = Job(hosts, tmp_path, config, *options, ahead={"h1": -MINUTE, "h2": MINUTE})
    assert job.end(400) == [0, 0], job.output()
    assert "resumed from" in job.output()
    assert job.losses() == whole.losses()
    (first, last) = sorted(path.name for path in (job.folder / "tensorboard").iterdir())
    assert os.stat(job.folder / "tensorboard" / first).st_mtime < os.stat(job.folder / "tensorboard" / last).st_mtime


@nightly
def test_the_doctor_tells_which_clock_differs_and_finds_the_interface(
    hosts: Hosts, tmp_path: Path, config: Path
) -> None:
    hosts.add_interface("h2", "10.99.0.2")
    names, program = hosts.name_addresses(h2="10.99.0.2"), ["-m", "launch.doctor"]
    job = Job(hosts, tmp_path, config, names=names, ahead={"h2": MINUTE}, program=program)
    assert job.end(400) == [1, 1], job.output()
    rows = {row.split()[0]: row for row in job.output().splitlines() if row.strip()}
    print(job.output())
    assert f"rank 1 (h2) is {MINUTE} s ahead of rank 0 (h1)" in job.output(), rows


@nightly
def test_clocks_of_torchrun_s_agents_may_differ(hosts: Hosts, tmp_path: Path, config: Path) -> None:
    job = Job(hosts, tmp_path, config, launcher=agents(hosts), ahead={"h1": MINUTE})
    job.wait_for_steps()
    time.sleep(30)  # agents compare heartbeats every 5 s
    job.wait_for_steps()
    for process in job.processes:
        process.send_signal(signal.SIGTERM)
    assert job.end(90) == [75, 75], job.output()


@nightly
def test_a_file_system_that_one_host_lacks_is_named(hosts: Hosts, tmp_path: Path, config: Path) -> None:
    job = Job(hosts, tmp_path, config, "train.steps=4", hidden=[config.parent / "shards"])
    assert job.end(400) == [1, 1], job.output()
    assert job.error().startswith(f"error: rank 1 on h2: {config.parent / 'shards'}"), job.error()

    folder = tmp_path / "mount"
    folder.mkdir()
    options = ["train.steps=4", "checkpoint.every=2"]
    job = Job(hosts, folder, config, *options, hidden=[folder])
    assert job.end(400) == [1, 1], job.output()
    assert job.error().startswith(f"error: rank 1 on h2: key 'run.dir': {folder / 'run'}: "), job.error()

    elsewhere, checkpoints = tmp_path / "checkpoints", job.folder / "checkpoints"
    elsewhere.mkdir()
    checkpoints.symlink_to(elsewhere)
    job = Job(hosts, folder, config, *options, hidden=[elsewhere])
    assert job.end(400) == [1, 1], job.output()
    assert f"{checkpoints / 'step-00000002'}: can't be written: rank 1 on h2: " in job.error(), job.error()

    job = Job(hosts, folder, config, *options)
    assert job.end(400) == [0, 0], job.output()
    job = Job(hosts, folder, config, "train.steps=6", "checkpoint.every=2", hidden=[elsewhere])
    assert job.end(400) == [1, 1], job.output()
    assert job.error().startswith(f"error: rank 1 on h2: {checkpoints / 'step-00000004'}: "), job.error()
    assert [path.name for path in list_checkpoints(checkpoints)] == ["step-00000002", "step-00000004"]


@nightly
def test_a_port_in_use_is_one_line(hosts: Hosts, tmp_path: Path, config: Path) -> None:
    listen = f"import socket, time; server = socket.create_server(('', {PORT})); time.sleep(1000)"
    hosts.start("h1", [sys.executable, "-c", listen], tmp_path / "listen", {})
    job = Job(hosts, tmp_path, config)
    assert job.processes[0].wait(timeout=600) == 2
    assert job.error().startswith(f"error: rank 0 on h1: port {PORT} is in use on this host")

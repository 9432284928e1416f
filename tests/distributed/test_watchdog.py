"""Hangs end and name the late rank; every launcher's way to stop a run ends in a checkpoint. All processes are real."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
import yaml
from support.preloaded import Preloaded, Process
from support.processes import REPOSITORY, SHALLOW, free_port
from support.tiles import write_archive

from pretrain.checkpointing.checkpoint import find_damage, list_checkpoints, step_of
from pretrain.resilience.status import run_state
from shards.files.processes import host_name
from shards.pack.build import PackConfig, pack

PRETRAIN = REPOSITORY / "launch" / "pretrain.py"
BIN = Path(sys.executable).parent
HOST = host_name()

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watchdog")
    write_archive(folder / "tiles", size=24)
    pack(folder / "tiles", folder / "shards", PackConfig(tiles_per_shard=4))
    path = folder / "config.yaml"
    values = {
        "plugins": [SHALLOW],
        "run": {"dir": "set by each test"},
        "data": {"shards": str(folder / "shards"), "holdout": 0, "read_threads": 1},
        "model": {"name": "spec_vit_tiny", "image_size": 8, "patch_size": 4, "bn_group": 2},
        "objective": {"mask_ratio": 0.5, "decoder": {"width": 64, "depth": 1, "heads": 2}},
        "train": {"steps": 10000, "global_batch": 4, "micro_batch": 2},
        "engine": {"precision": "fp32"},
        "checkpoint": {"every": 10000},
        "log": {"every": 1},
    }
    path.write_text(yaml.safe_dump(values))
    return path


def start(command: list[str], cwd: str, environment: dict[str, str], output: IO[bytes]) -> Process:
    """Start a launcher, or a rank without one."""
    if command[0] == sys.executable:
        return Preloaded(command, cwd, environment, output)
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=output, stderr=subprocess.STDOUT)


class Job:
    """Processes of one launch; their output is read when all have ended."""

    def __init__(self, folder: Path, config: Path, *overrides: str, launcher: tuple[object, ...] = ()) -> None:
        self.folder, self.log = folder, folder.with_suffix(".log")
        script = [PRETRAIN, "--config", config, f"run.dir={folder}", *overrides]
        shared = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        if launcher:
            commands = [([*launcher, *script], {})]
        else:
            place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
            commands = [
                ([sys.executable, *script], place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in (0, 1)
            ]
        with open(self.log, "wb") as output:
            self.processes = [
                start([str(word) for word in words], "/", os.environ | shared | place, output)
                for words, place in commands
            ]

    def wait_until(self, ready: Callable[[], bool], seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)

    def wait_for_steps(self, count: int = 2) -> None:
        path = self.folder / "metrics.jsonl"
        self.wait_until(lambda: path.exists() and path.read_text().count("\n") >= count)

    def end(self, seconds: float = 60) -> list[int]:
        try:
            return [process.wait(timeout=seconds) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def output(self) -> str:
        return self.log.read_text()

    def status(self) -> str:
        path = self.folder / "status.json"
        return json.loads(path.read_text())["status"] if path.exists() else "none"

    def check_saved(self) -> None:
        """The run stopped, and its newest checkpoint is whole and of the step that it stopped at."""
        assert self.status() == "stopped", self.output()
        newest = list_checkpoints(self.folder / "checkpoints")[-1]
        assert find_damage(newest) is None
        assert step_of(newest) == json.loads((self.folder / "status.json").read_text())["step"]


def test_a_rank_that_stands_still_is_named_and_ends_the_run(tmp_path: Path, config: Path) -> None:
    job = Job(tmp_path / "run", config, "watchdog.step=4")
    job.wait_for_steps()
    job.processes[1].send_signal(signal.SIGSTOP)
    assert job.processes[0].wait(timeout=30) == 77
    job.processes[1].kill()
    assert f"hung: no progress within watchdog.step = 4 s: rank 1 on {HOST} does not answer" in job.output()
    assert "rank 0 on " in job.output()
    assert "waiting for other ranks" in job.output()
    assert b"gloo:" in (tmp_path / "run" / "collectives-rank-0").read_bytes()
    assert "in timed" in (tmp_path / "run" / "stacks-00000.txt").read_text()
    state = run_state(tmp_path / "run")
    assert state.condition == "failed" and state.record.reason.startswith("hung: no progress within watchdog.step")


@pytest.mark.nightly
def test_the_rank_that_keeps_the_store_is_named_too(tmp_path: Path, config: Path) -> None:
    job = Job(tmp_path / "run", config, "watchdog.step=4")
    job.wait_for_steps()
    job.processes[0].send_signal(signal.SIGSTOP)
    assert job.processes[1].wait(timeout=40) == 77
    job.processes[0].kill()
    assert f"rank 0 on {HOST} does not answer" in job.output()


SLOW_ENCODER = """
import time

from pretrain.models.published import spec_vit
from pretrain.registries import ENCODERS


def build(name, **settings):
    time.sleep(40)
    return spec_vit(name="spec_vit_tiny", **settings)


ENCODERS.add("slow", build, "pretrain.config.model:ViTConfig")
"""


def test_a_signal_during_set_up_ends_all_ranks_at_once(tmp_path: Path, config: Path) -> None:
    plugin = tmp_path / "slow_encoder.py"
    plugin.write_text(SLOW_ENCODER)
    job = Job(tmp_path / "run", config, f"plugins=[{plugin}]", "model.name=slow")
    job.wait_until(lambda: (tmp_path / "run" / "rank0.pid").exists())
    job.processes[1].send_signal(signal.SIGUSR1)
    begin = time.monotonic()
    assert job.end() == [75, 75]
    assert time.monotonic() - begin < 20
    assert "stopped before the first step" in job.output()
    assert job.status() == "interrupted"  # not "stopped": nothing was saved
    assert not list_checkpoints(tmp_path / "run" / "checkpoints")


@pytest.mark.nightly
def test_workers_of_a_killed_deepspeed_command_save(tmp_path: Path, config: Path) -> None:
    job = Job(tmp_path / "run", config, launcher=(BIN / "deepspeed", "--num_gpus", 2, "--master_port", free_port()))
    job.wait_for_steps()
    job.processes[0].terminate()
    job.end()
    job.wait_until(lambda: job.status() == "stopped")
    job.check_saved()


@pytest.mark.nightly
def test_torchrun_passes_the_signal_on(tmp_path: Path, config: Path) -> None:
    job = Job(tmp_path / "run", config, launcher=(BIN / "torchrun", "--nproc_per_node", 2))
    job.wait_for_steps()
    job.processes[0].terminate()
    job.end()
    job.check_saved()


def test_a_killed_rank_ends_the_others_in_one_line(tmp_path: Path, config: Path) -> None:
    job = Job(tmp_path / "run", config)
    job.wait_for_steps()
    job.processes[0].kill()
    assert job.end() == [-9, 1]
    (line,) = [line for line in job.output().splitlines() if "error: " in line]
    assert line.startswith(f"error: rank 1 on {HOST}: lost another rank, or never connected to it: ")
    assert "Traceback" not in job.output()
    state = run_state(tmp_path / "run")
    assert state.condition == "failed" and state.record.reason.startswith(
        f"rank 1 on {HOST}: lost another rank, or never connected to it"
    )


@pytest.mark.nightly
def test_a_stop_that_cannot_save_ends_within_its_grace(tmp_path: Path, config: Path) -> None:
    job = Job(tmp_path / "run", config, "watchdog.grace=4")
    job.wait_for_steps()
    job.processes[1].send_signal(signal.SIGSTOP)
    job.processes[0].send_signal(signal.SIGTERM)
    assert job.processes[0].wait(timeout=30) == 75
    job.processes[1].kill()
    assert "not saved within watchdog.grace = 4 s of SIGTERM" in job.output()

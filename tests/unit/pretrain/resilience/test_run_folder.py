"""One run at a time in a folder, room for its checkpoints, and what of a run's records survives a resume."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.checkpointing.random_state import random_state, set_random_state
from pretrain.config.run import CheckpointConfig
from pretrain.metrics.stragglers import Shares
from pretrain.resilience import run_folder
from pretrain.resilience.run_folder import RunFolder
from shards.errors import ConfigError

HOLD = "import sys, time; from pathlib import Path; from pretrain.resilience.run_folder import RunFolder; "
HOLD += "folder = RunFolder(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"


def test_two_runs_in_one_folder_are_refused_and_a_killed_one_leaves_it_free(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=rf"another run is at work there \(process {other.pid}\)"):
        RunFolder(tmp_path, patience=0.5)
    other.kill()
    other.wait()
    assert RunFolder(tmp_path).path == tmp_path


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"key 'run.dir': .*file/run: can't be written"):
        RunFolder(tmp_path / "file" / "run")


def test_checkpoints_that_do_not_fit_the_disk_are_refused_at_the_start(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.check_room(CheckpointConfig(keep=3), 10**6, steps=100)
    with pytest.raises(ConfigError, match=r"4 checkpoints of 1000000.00 GB need 4000000.0 GB"):
        folder.check_room(CheckpointConfig(keep=3), 10**15, steps=100)


def test_the_quota_counts_those_kept_for_good(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.check_room(CheckpointConfig(keep=2, quota_gb=3), 10**9, steps=100)
    with pytest.raises(ConfigError, match=r"13 checkpoints of 1.00 GB need 13.0 GB, 3.0 GB are allowed by"):
        folder.check_room(CheckpointConfig(every=10, keep=2, keep_every=10, quota_gb=3), 10**9, steps=100)


def test_status_is_one_json_line(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_status("stopped", 12, 100)
    (line,) = (tmp_path / "status.json").read_text().splitlines()
    assert line.startswith('{"status": "stopped", "step": 12, "steps": 100, ')  # scripts look for it with grep


def test_a_rank_that_sees_another_folder_than_rank_0_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "SEEN_S", 0.2)
    leader = RunFolder(tmp_path / "run")
    run_folder._check_seen(tmp_path / "run", leader.record)
    for name in ("none", "run"):
        other = replace(leader.record, host="n01") if name == "run" else leader.record
        with pytest.raises(ConfigError, match=f"/{name}: not the folder that rank 0 on .* has: is its file system"):
            run_folder._check_seen(tmp_path / name, other)


def test_random_generators_go_on_where_they_were() -> None:
    random.gauss(0, 1)  # half of a pair is kept back
    np.random.randn(3)
    state = random_state()
    drawn = [random.random(), random.gauss(0, 1), np.random.randn(), torch.rand(()).item()]
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    set_random_state(state)
    assert [random.random(), random.gauss(0, 1), np.random.randn(), torch.rand(()).item()] == drawn


def test_the_rank_that_waits_least_is_the_slowest() -> None:
    shares = Shares(torch.tensor([[0.1, 0.6, 0.3], [0.0, 0.98, 0.02], [0.2, 0.5, 0.3]]), ["n01", "n01", "n02"])
    assert shares.slowest == 1
    assert str(shares).endswith(": n01 0: 10%/60%/30%  1*: 0%/98%/2%  n02 2: 20%/50%/30%")
    assert shares.communication == pytest.approx(0.62 / 3)


def test_of_many_ranks_the_slowest_are_shown() -> None:
    shares = Shares(torch.tensor([[0.0, 1 - rank / 100, rank / 100] for rank in range(20)]), ["n01"] * 20)
    assert "7: " in str(shares)
    assert "8: " not in str(shares)
    assert str(shares).endswith("12 ranks wait longer")

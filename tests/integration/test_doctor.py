"""The doctor as users meet it: on two real processes, all well, and with everything broken that can be broken."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import REPOSITORY, free_port

DEMO = REPOSITORY / "configs" / "pretrain" / "mae" / "demo.yaml"
TORCHRUN = Path(sys.executable).parent / "torchrun"

pytestmark = pytest.mark.distributed


def run_doctor(*options: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    launcher = [TORCHRUN, "--nproc_per_node", processes] if processes > 1 else [sys.executable]
    command = [*launcher, "-m", "launch.doctor", "--config", DEMO, *options]
    environment = {name: value for name, value in os.environ.items() if name != "RANK"} | {"DS_ACCELERATOR": "cpu"}
    return subprocess.run(
        [str(part) for part in command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120
    )


def rows(output: str) -> dict[str, tuple[str, str]]:
    """(state, what was found) by check."""
    lines = [line for line in output.splitlines()[:-1] if line[20:27].strip() in ("green", "yellow", "red")]
    return {line[:19].strip(): (line[20:27].strip(), line[28:]) for line in lines}


def damage(folder: Path) -> Path:
    """Flip a bit in every tile of the first shard."""
    tar = folder / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    for offset in json.loads((folder / "shard-000000.index.json").read_text())["tiles"]["offset"]:
        data[offset + 100] ^= 1
    tar.write_bytes(data)
    return tar


def test_two_processes_that_are_well_are_all_green(shards: Path, tmp_path: Path) -> None:
    done = run_doctor(f"run.dir={tmp_path / 'runs' / 'a'}", f"data.shards={shards}", f"data.stage={tmp_path / 'stage'}")
    found = rows(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: state for name, (state, _) in found.items() if state != "green"} == {
        "GPUs": "yellow",
        "attention": "yellow",
    }
    assert found["ranks"][1].startswith("2 on 1 host")
    assert "16 x 2 x 1" in found["DeepSpeed config"][1]
    assert "10 of 10 tiles in the view" in found["shards"][1]
    assert done.stdout.splitlines()[-1] == "12 green, 2 yellow, 0 red"
    assert "\033" not in done.stdout
    assert list(tmp_path.iterdir()) == []  # it leaves nothing behind


@pytest.mark.nightly
def test_what_is_broken_is_red_and_costs_no_other_check(shards: Path, tmp_path: Path) -> None:
    tar = damage(shutil.copytree(shards, tmp_path / "shards"))
    (tmp_path / "file").write_text("in the way")
    done = run_doctor(
        f"run.dir={tmp_path / 'file' / 'run'}",
        f"data.shards={tar.parent}",
        f"data.stage={tmp_path / 'file' / 'stage'}",
        f"run.threads={os.cpu_count()}",
        "train.global_batch=16",
    )
    found = rows(done.stdout)
    red = {name for name, (state, _) in found.items() if state == "red"}
    assert red == {"launcher", "DeepSpeed config", "file system", "shards", "staging", "loader"}
    assert f"key 'run.dir': {tmp_path / 'file'} can't be written to: Not a directory" in found["file system"][1]
    assert f"{tar}: tile '" in found["shards"][1] and "and 1 more of 2 ranks" in found["shards"][1]
    assert "train.micro_batch 16 x 2 processes" in found["DeepSpeed config"][1]
    assert done.stdout.count("fix: ") == len(red) + 2  # the GPUs and their attention are yellow
    assert "launch/doctor" not in done.stderr  # no traceback of ours
    assert done.returncode == 1


def test_misuse_is_one_line_and_code_2() -> None:
    done = run_doctor("data.sharts=x", processes=1)
    assert done.stderr == f"error: {DEMO}: unknown key 'data.sharts'; did you mean 'data.shards'?\n"
    assert (done.stdout, done.returncode) == ("", 2)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from launch.doctor.__main__ import main\n"
        "try: main(['--help'])\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert "--verbose" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_one_ranks_failure_is_gathered_and_a_hanging_rank_is_named() -> None:
    script = REPOSITORY / "tests" / "support" / "doctor_ranks.py"
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=60) for rank in ranks]
    printed = outputs[0][0]
    assert "): /data: Permission denied\n" in printed and printed.startswith("failure: rank 1 (")
    found = rows(printed)
    assert found["clocks"][0] == "green" and found["bandwidth"][0] == "green"
    assert found["shards"][0] == "red" and "not all ranks finished" in found["shards"][1]
    assert "is late: still in 'shards'" in outputs[1][1] and "late" not in outputs[0][1]
    assert [rank.returncode for rank in ranks] == [1, 1]

"""Kills at a memory limit, counted in control groups of both versions."""

from pathlib import Path

import pytest

from pretrain.resilience import memory_limit
from pretrain.resilience.memory_limit import count_oom_kills, oom_clause
from shards.files.processes import host_name


def group(root: Path, path: str, kills: int, limit: str, version: int) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    names = {2: ("memory.max", "memory.events"), 1: ("memory.limit_in_bytes", "memory.oom_control")}[version]
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"low 0\noom 9\noom_kill_disable 0\noom_kill {kills}\noom_group_kill 7\n")


@pytest.mark.parametrize("version", [1, 2])
def test_kills_of_this_group_and_of_limited_ones_above_count(tmp_path, version):
    top = "memory" if version == 1 else "."
    group(tmp_path, f"{top}/job/step/task", 1, "1000000", version)
    group(tmp_path, f"{top}/job/step", 20, "9223372036854771712" if version == 1 else "max", version)
    group(tmp_path, f"{top}/job", 300, "2000000", version)
    own = tmp_path / "own"
    own.write_text("7:blkio:/\n4:memory:/job/step/task\n0::/\n" if version == 1 else "0::/job/step/task\n")
    assert count_oom_kills(tmp_path, own) == 301


def test_without_control_groups_there_are_no_kills(tmp_path):
    assert count_oom_kills(tmp_path, tmp_path / "missing") == 0
    (tmp_path / "own").write_text("0::/job\n")
    assert count_oom_kills(tmp_path, tmp_path / "own") == 0


def test_the_clause_names_host_and_remedy(monkeypatch):
    monkeypatch.setattr(memory_limit, "count_oom_kills", lambda: 3)
    assert oom_clause(3) == ""
    assert f"killed a process on {host_name()} at the memory limit of this job: ask for more memory" in oom_clause(2)

"""Which files of a checkpoint a node keeps on its own disk; that a run restarts from them is in trouble_cases.py."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain import distributed
from pretrain.checkpointing.layout import Layout, TensorSpec
from pretrain.checkpointing.local_copies import LocalCopies
from pretrain.weights.checkpoint_files import SEAL, STATE, seal_of

KINDS = ("weights", "optimizer", "teacher")


def checkpoint(folder: Path, world: int) -> Path:
    """Write a checkpoint of some ranks whose files hold their names."""
    path = folder / "step-00000007"
    path.mkdir(parents=True)
    names = [name for kind in KINDS for name in layout(kind, world).file_names]
    for name in [*names, "random-00000-of-00001.safetensors"]:
        (path / name).write_text(name)
    (path / STATE).write_text(json.dumps({"world_size": world}))
    (path / SEAL).write_text(json.dumps({"files": {file.name: seal_of(file) for file in path.iterdir()}}))
    return path


def layout(kind: str, world: int) -> Layout:
    return Layout(kind, {"w": TensorSpec(torch.float32, (world,))}, [np.array([[0, rank, 1]]) for rank in range(world)])


def on_node(monkeypatch: pytest.MonkeyPatch, disk: Path, path: Path, hosts: list[str], host: str) -> LocalCopies:
    """Return the copies as the first rank of a host sees them."""
    monkeypatch.setattr(distributed, "host_names", lambda: hosts)
    monkeypatch.setattr(distributed, "rank", lambda: hosts.index(host))
    monkeypatch.setattr(distributed, "world_size", lambda: len(hosts))
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [value] * len(hosts))
    return LocalCopies(disk / host, path.parent, zero_stage=3)


def keep(monkeypatch: pytest.MonkeyPatch, disk: Path, path: Path, hosts: list[str]) -> None:
    for host in dict.fromkeys(hosts):
        copies = on_node(monkeypatch, disk, path, hosts, host)
        copies.keep(path)
        copies.join()


@pytest.mark.parametrize("world", [2, 64, 65, 1024])
def test_a_node_keeps_the_files_of_its_ranks_and_of_the_node_before(tmp_path: Path, monkeypatch, world: int) -> None:
    path, hosts = checkpoint(tmp_path / "shared", world), [f"n{rank // 8:03d}" for rank in range(world)]
    own, before = hosts[-1], hosts[-9] if world > 8 else hosts[-1]
    copies = on_node(monkeypatch, tmp_path, path, hosts, own)
    copies.keep(path)
    copies.join()
    kept = {file.name for file in (tmp_path / own).glob("*/*/*")}
    for kind in KINDS:
        files = {layout(kind, world).file_of(rank).name for rank in range(world) if hosts[rank] in (own, before)}
        assert {name for name in kept if name.startswith(kind)} == files | {layout(kind, world).file_names[0]}
    assert "random-00000-of-00001.safetensors" in kept


def test_nodes_that_move_up_by_one_place_have_the_files_of_their_new_place(tmp_path: Path, monkeypatch) -> None:
    path, hosts = checkpoint(tmp_path / "shared", 4), ["a", "b", "c", "d"]
    keep(monkeypatch, tmp_path, path, hosts)
    after = ["a", "c", "d", "spare"]
    for host in ("a", "c", "d"):
        copies = on_node(monkeypatch, tmp_path, path, after, host)
        copies.verify(path)
        for kind in KINDS:
            file = path / layout(kind, 4).file_of(after.index(host)).name
            copy = copies.find(file)
            assert copy != file and copy.read_text() == file.name


def test_copies_of_another_number_of_processes_are_not_used(tmp_path: Path, monkeypatch) -> None:
    path = checkpoint(tmp_path / "shared", 4)
    keep(monkeypatch, tmp_path, path, ["a", "a", "b", "b"])
    copies = on_node(monkeypatch, tmp_path, path, ["a", "a"], "a")
    file = path / layout("weights", 4).file_names[0]
    assert copies.verify(path) == set() and copies.find(file) == file


def test_a_changed_copy_is_named_and_not_used(tmp_path: Path, monkeypatch, capsys) -> None:
    path, hosts = checkpoint(tmp_path / "shared", 2), ["a", "b"]
    keep(monkeypatch, tmp_path, path, hosts)
    name = layout("optimizer", 2).file_names[0]
    next((tmp_path / "a").glob(f"*/*/{name}")).write_text("something else")
    copies = on_node(monkeypatch, tmp_path, path, hosts, "a")
    assert name not in copies.verify(path)
    assert f"{name}: not as it was saved; {path / name} is read instead" in capsys.readouterr().err
    assert copies.find(path / name) == path / name


def test_a_disk_that_cannot_be_written_costs_a_warning(tmp_path: Path, monkeypatch, capsys) -> None:
    path = checkpoint(tmp_path / "shared", 2)
    (tmp_path / "a").write_text("a file where the folder should be")
    copies = on_node(monkeypatch, tmp_path, path, ["a", "b"], "a")
    copies.keep(path)
    copies.join()
    assert "step-00000007: not copied to" in capsys.readouterr().err
    copies.verify(path)
    file = path / layout("weights", 2).file_names[0]
    assert copies.find(file) == file

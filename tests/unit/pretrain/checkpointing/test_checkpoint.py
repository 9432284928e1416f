"""Checkpoint folders made by hand: every damage is found, and the newest whole one is taken."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pretrain.checkpointing.checkpoint import (
    SEAL,
    STATE,
    CheckpointError,
    _load_random_state,
    find_damage,
    list_checkpoints,
    newest_verified,
    prune,
    read_state,
    read_weights,
    set_aside,
    step_of,
)
from pretrain.checkpointing.random_state import random_state

WEIGHTS = "weights-00000-of-00002.safetensors"
FILES = (WEIGHTS, "weights-00001-of-00002.safetensors", "optimizer-00000-of-00002.safetensors", STATE)


def _checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    first = {"encoder.vit_core.norm.weight": torch.full((3,), float(step)), "decoder.mask_token": torch.ones(2)}
    second = {"encoder.running_mean": torch.zeros(4), "encoder": torch.ones(1), "encoder2.weight": torch.ones(5)}
    save_file(first, path / FILES[0])
    save_file(second, path / FILES[1])
    save_file({"decoder.mask_token/exp_avg": torch.ones(2)}, path / FILES[2])
    (path / STATE).write_text(json.dumps({"format": 2, "step": step, "samples_seen": 16 * step}))
    seals = {
        name: {
            "size": len((path / name).read_bytes()),
            "sha256": hashlib.sha256((path / name).read_bytes()).hexdigest(),
        }
        for name in FILES
    }
    (path / SEAL).write_text(json.dumps({"format": 1, "files": seals}, indent=1))
    return path


@pytest.fixture
def folder(tmp_path):
    """Three whole checkpoints."""
    for step in (5, 10, 100):
        _checkpoint(tmp_path / "checkpoints", step)
    return tmp_path / "checkpoints"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 0x04
    path.write_bytes(data)


def _grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = {"cut": _cut, "flip": _flip, "grow": _grow, "missing": Path.unlink, "folder": _folder_instead}
TOLD = {"cut": "bytes, but", "flip": "its content changed", "grow": "bytes, but", "missing": "missing", "folder": ""}


def test_a_whole_checkpoint_has_no_damage(folder):
    assert [find_damage(path) for path in list_checkpoints(folder)] == [None] * 3


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_of_any_file_is_found_and_named(folder, name, kind):
    path = folder / "step-00000100"
    DAMAGE[kind](path / name)
    problem = find_damage(path)
    assert problem.startswith(f"{path / name}: ")
    assert TOLD[kind] in problem
    assert "\n" not in problem


@pytest.mark.parametrize("kind", ["cut", "missing", "folder"])
def test_damage_of_the_seal_is_found(folder, kind):
    path = folder / "step-00000100"
    DAMAGE[kind](path / SEAL)
    assert find_damage(path) == f"{path / SEAL}: missing or unreadable"


@pytest.mark.parametrize("text", ["", "[]", "{}", "7", '{"files": 3}', '{"files": {"state.json": 5}}', '{"files": []}'])
def test_a_seal_that_is_no_seal_is_damage(folder, text):
    path = folder / "step-00000100"
    (path / SEAL).write_text(text)
    assert find_damage(path) is not None


def test_a_flipped_bit_anywhere_in_the_seal_is_damage(tmp_path):
    """But for its format number, which checks nothing."""
    path = _checkpoint(tmp_path, 1)
    whole = (path / SEAL).read_bytes()
    begin = whole.index(b'"files"')
    unseen = []
    for place in range(begin, len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << (place % 7)
        (path / SEAL).write_bytes(data)
        if find_damage(path) is None:
            unseen.append(whole[max(0, place - 10) : place + 10])
    assert unseen == []


def test_what_is_being_written_is_no_checkpoint(folder):
    shutil.copytree(folder / "step-00000100", folder / "step-00000200.tmp")
    assert [path.name for path in list_checkpoints(folder)] == ["step-00000005", "step-00000010", "step-00000100"]
    assert newest_verified(folder) == (folder / "step-00000100", {})


def test_the_newest_whole_one_is_taken_and_each_newer_one_explained(folder):
    _flip(folder / "step-00000100" / WEIGHTS)
    (folder / "step-00000010" / STATE).unlink()
    path, damaged = newest_verified(folder)
    assert path == folder / "step-00000005"
    assert damaged == {
        folder / "step-00000100": f"{folder / 'step-00000100' / WEIGHTS}: its content changed since it was written",
        folder / "step-00000010": f"{folder / 'step-00000010' / STATE}: missing",
    }


def test_only_those_before_a_step_are_looked_at(folder):
    assert newest_verified(folder, before=100) == (folder / "step-00000010", {})
    assert newest_verified(folder, before=5) == (None, {})


def test_damaged_ones_are_set_aside_and_no_longer_counted(folder):
    set_aside([folder / "step-00000100"])
    assert [path.name for path in list_checkpoints(folder)] == ["step-00000005", "step-00000010"]
    assert (folder / "step-00000100.damaged" / STATE).exists()


def test_the_last_ones_and_every_nth_are_kept(folder):
    for step in (200, 300):
        _checkpoint(folder, step)
    prune(folder, keep=2, keep_every=10)
    assert [step_of(path) for path in list_checkpoints(folder)] == [10, 100, 200, 300]
    prune(folder, keep=2, keep_every=0)
    assert [step_of(path) for path in list_checkpoints(folder)] == [200, 300]


def test_files_of_a_checkpoint_are_shared_out_for_looking(folder):
    path = folder / "step-00000100"
    _flip(path / WEIGHTS)
    assert sum(find_damage(path, part, 2) is not None for part in range(2)) == 1


def test_damage_of_an_older_one_is_not_asked_for(folder):
    _flip(folder / "step-00000010" / WEIGHTS)
    assert newest_verified(folder) == (folder / "step-00000100", {})


def test_no_whole_one_left_is_an_error_and_no_fresh_start(folder):
    for path in list_checkpoints(folder):
        _cut(path / WEIGHTS)
    with pytest.raises(CheckpointError) as raised:
        newest_verified(folder)
    text = str(raised.value)
    assert text.startswith(f"{folder}: no complete checkpoint left")
    assert "step-00000100" in text
    assert "\n" not in text


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_checkpoints_is_a_fresh_start(tmp_path, exists):
    folder = tmp_path / "checkpoints"
    if exists:
        (folder / "step-00000001.tmp").mkdir(parents=True)
    assert newest_verified(folder) == (None, {})


def test_weights_below_a_prefix_are_read_from_all_parts(folder):
    weights = read_weights(folder / "step-00000100", "encoder")
    assert weights.keys() == {"vit_core.norm.weight", "running_mean"}
    assert torch.equal(weights["vit_core.norm.weight"], torch.full((3,), 100.0))
    assert torch.equal(weights["running_mean"], torch.zeros(4))


def test_a_prefix_is_a_whole_word_and_stripped_once(tmp_path):
    path = tmp_path / "step-00000001"
    path.mkdir()
    save_file({"a.a.b": torch.ones(1), "ab.c": torch.ones(2), "x.a.b": torch.ones(3)}, path / WEIGHTS)
    assert {name: len(tensor) for name, tensor in read_weights(path, "a").items()} == {"a.b": 1}
    assert read_weights(path, "none") == {}


def test_state_is_what_was_written(folder):
    assert read_state(folder / "step-00000010") == {"format": 2, "step": 10, "samples_seen": 160}


@pytest.mark.parametrize(("prefix", "restored"), [("", True), ("00000-of-00001.", True), ("00000-of-00002.", False)])
def test_random_generators_are_restored_if_as_many_processes_saved_theirs(tmp_path, prefix, restored):
    torch.manual_seed(1)
    state = {f"{prefix}{name}": value for name, value in random_state().items()}
    save_file(state, tmp_path / "random-00000-of-00001.safetensors")  # with "" as by format 2 on one process
    drawn = torch.rand(())
    torch.manual_seed(2)
    _load_random_state(tmp_path)
    assert bool(torch.rand(()) == drawn) is restored


def test_state_of_another_format_is_refused(folder):
    (folder / "step-00000010" / STATE).write_text('{"format": 1, "step": 10}')
    with pytest.raises(CheckpointError, match="checkpoint of format 1, but this version continues formats 2 and 3"):
        read_state(folder / "step-00000010")

"""Saves in the background on one process: complete, failed, killed; on several, see tests/distributed/test_guard.py."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.checkpointing.folders import CheckpointNotWritten, find_damage, list_checkpoints, publish
from pretrain.checkpointing.layout import Layout, TensorSpec
from pretrain.checkpointing.snapshot import Snapshot
from pretrain.checkpointing.tensor_files import NonFiniteState, TensorFiles
from pretrain.checkpointing.writer import CheckpointWriter
from pretrain.engine.sharding import Piece

KINDS = {"weights": {"a": 1000, "b": 7}, "optimizer": {"a/exp_avg": 1000}, "random": {"00000-of-00001.torch": 16}}


def snapshot(value: float = 1.0, scale: int = 1) -> Snapshot:
    """Return a state of one process, of about 8 kB times ``scale``."""
    pieces, layouts = {}, {}
    for kind, sizes in KINDS.items():
        pieces[kind] = {name: Piece(0, torch.full((size * scale,), value)) for name, size in sizes.items()}
        specs = {name: TensorSpec(torch.float32, (size * scale,)) for name, size in sizes.items()}
        rows = np.array([(number, 0, spec.numel) for number, spec in enumerate(specs.values())], np.int64)
        layouts[kind] = Layout(kind, specs, [rows], files=1)
    return Snapshot(pieces, layouts, {"adam_step": 3.0})


def begin(folder: Path, step: int, state: Snapshot, publishing=publish) -> CheckpointWriter:
    final = folder / f"step-{step:08d}"
    return CheckpointWriter(final, state, {"step": step}, publishing)


def test_a_complete_save_passes_verification_and_is_read_again(tmp_path: Path) -> None:
    writer = begin(tmp_path, 1, snapshot(2.0))
    writer.finish()
    assert list_checkpoints(tmp_path) == [tmp_path / "step-00000001"] == [writer.final]
    assert find_damage(writer.final) is None
    with TensorFiles(writer.final, "weights") as files:
        assert files.get("a").tolist() == [2.0] * 1000


def test_a_save_counts_only_when_it_is_published(tmp_path: Path) -> None:
    go_on = threading.Event()

    def publish_later(staged: Path, final: Path) -> None:
        go_on.wait()
        publish(staged, final)

    writer = begin(tmp_path, 1, snapshot(), publish_later)
    assert not writer.has_ended and not list_checkpoints(tmp_path)
    go_on.set()
    writer.finish()
    assert len(list_checkpoints(tmp_path)) == 1


def test_a_failed_save_is_one_line_and_leaves_the_one_before_it(tmp_path: Path) -> None:
    begin(tmp_path, 1, snapshot()).finish()

    def fail(staged: Path, final: Path) -> None:
        raise OSError(5, "Input/output error")

    writer = begin(tmp_path, 2, snapshot(), fail)
    with pytest.raises(CheckpointNotWritten) as error:
        writer.finish()
    line = str(error.value)
    assert "step-00000002: can't be written: rank 0 on " in line and "Input/output error" in line
    assert "the last one, step-00000001, is untouched" in line and "\n" not in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]
    assert find_damage(tmp_path / "step-00000001") is None


def test_non_finite_values_are_found_in_the_background(tmp_path: Path) -> None:
    writer = begin(tmp_path, 1, snapshot(float("nan")))
    with pytest.raises(NonFiniteState, match="weights: 'a' has 1000 non-finite values of 1000"):
        writer.finish()
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_read_back_as_written_fails_the_save(tmp_path: Path, monkeypatch) -> None:
    pwrite = os.pwrite

    def flip(descriptor: int, data: memoryview, offset: int) -> int:
        changed = bytearray(data)
        changed[-1] ^= 1
        return pwrite(descriptor, changed if offset else data, offset)

    monkeypatch.setattr(os, "pwrite", flip)
    writer = begin(tmp_path, 1, snapshot())
    with pytest.raises(CheckpointNotWritten, match=r"weights-00000-of-00001\.safetensors is not read back as it was"):
        writer.finish()
    assert not list_checkpoints(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_fails_the_save_and_names_the_file(small_disk: Path) -> None:
    begin(small_disk, 1, snapshot()).finish()
    writer = begin(small_disk, 2, snapshot(scale=100))
    with pytest.raises(CheckpointNotWritten, match=r"weights-00000-of-00001\.safetensors: No space left on device"):
        writer.finish()
    assert [path.name for path in list_checkpoints(small_disk)] == ["step-00000001"]
    begin(small_disk, 3, snapshot()).finish()  # the failed one has left its room
    assert find_damage(small_disk / "step-00000003") is None


def test_a_kill_within_the_write_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[4])]}\n"
        "from pathlib import Path; import os, signal, test_writer\n"
        "folder = Path(sys.argv[1])\n"
        "test_writer.begin(folder, 1, test_writer.snapshot()).finish()\n"
        "kill = lambda staged, final: os.kill(os.getpid(), signal.SIGKILL)\n"
        "test_writer.begin(folder, 2, test_writer.snapshot(), kill).finish()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]
    assert find_damage(tmp_path / "step-00000001") is None
    assert (tmp_path / "step-00000002.tmp" / "checkpoint.json").exists()


def test_a_folder_that_cannot_be_created_fails_the_save_and_not_its_begin(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    writer = begin(tmp_path / "checkpoints", 1, snapshot())
    with pytest.raises(CheckpointNotWritten, match="step-00000001: can't be written: rank 0 on "):
        writer.finish()

"""What messages say about errors of real file systems: full, without inodes, read-only, gone."""

import os
import subprocess
from pathlib import Path

import pytest
from support.machine import SmallDisk

from shards.files.atomic import write_atomic
from shards.files.lock import Lock
from shards.files.processes import ProcessId
from shards.files.system_errors import error_text, remedy


def failure(path: Path, data: bytes = b"x") -> OSError:
    with pytest.raises(OSError) as raised:
        write_atomic(path, data)
    assert raised.value.filename == str(path)
    return raised.value


def test_a_full_disk_names_the_file_and_leaves_nothing_of_it(tmp_path):
    with SmallDisk(tmp_path / "disk", megabytes=1) as disk:
        error = failure(disk.folder / "a", bytes(2 << 20))
        assert error_text(error) == "No space left on device"
        assert remedy(error, disk.folder / "a") == "free some space"
        assert not os.listdir(disk.folder)
        write_atomic(disk.folder / "a", bytes(1 << 19))


def test_a_disk_without_inodes_is_told_from_a_full_one(tmp_path):
    with SmallDisk(tmp_path / "disk", megabytes=1, inodes=10) as disk:
        disk.use_up_inodes()
        error = failure(disk.folder / "a")
        assert error_text(error) == "No space left on device"
        assert remedy(error, disk.folder / "a") == "remove files: the file system has no inodes left (df -i)"
        disk.mend()
        write_atomic(disk.folder / "a", b"x")


def test_a_read_only_disk_and_a_missing_folder(tmp_path):
    with SmallDisk(tmp_path / "disk", megabytes=1) as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk.folder], check=True)
        error = failure(disk.folder / "a")
        assert remedy(error, disk.folder / "a").startswith("mount it writable again")
    error = failure(tmp_path / "nowhere" / "a")
    assert remedy(error, "a") == "put its folder back, or mount its file system again"


def test_a_lock_of_a_dead_process_on_a_read_only_disk_is_an_error_and_no_wait(tmp_path):
    with SmallDisk(tmp_path / "disk", megabytes=1) as disk:
        path = disk.folder / "lock"
        own = ProcessId.own()
        path.write_text(f"{own.host} 999999999 1 {own.machine} x\n")
        subprocess.run(["mount", "-o", "remount,ro", disk.folder], check=True)
        with pytest.raises(OSError, match="Read-only file system"):
            Lock(path).acquire()


def test_an_unknown_error_has_a_remedy_too(tmp_path):
    assert remedy(OSError("strange"), tmp_path) == "check the file system"
    assert error_text(OSError("strange")) == "strange"

"""Real faults of a machine, made by the kernel: full, broken and read-only disks, and limits of memory.

Everything needs root and is skipped with a reason where it may not be done.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


def _mount(*words: object) -> None:
    """Call mount, or skip the test where it is not allowed."""
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a file system is not allowed here: {done.stderr.strip()}")


class SmallDisk:
    """A file system in memory (tmpfs) with a limited number of bytes and files; a context manager.

    Args:
        folder: where it is mounted; created if missing.
        megabytes, inodes: its limits.
    """

    def __init__(self, folder: Path, megabytes: float = 64, inodes: int = 10_000) -> None:
        self.folder, self._bytes, self._inodes = folder, int(megabytes * (1 << 20)), inodes

    def __enter__(self) -> "SmallDisk":
        self.folder.mkdir(parents=True, exist_ok=True)
        _mount("-t", "tmpfs", "-o", f"size={self._bytes},nr_inodes={self._inodes}", "tmpfs", self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)

    def fill(self, leave: int = 0) -> None:
        """Use up all but ``leave`` bytes."""
        with open(self.folder / "filler", "wb") as file:
            for _ in range(100):  # others may write meanwhile
                free = os.statvfs(self.folder)
                with suppress(OSError):
                    os.posix_fallocate(file.fileno(), 0, max(free.f_bavail * free.f_frsize - leave, 1))
                    return

    def grow(self, megabytes: float) -> None:
        """Change the limit of bytes."""
        subprocess.run(["mount", "-o", f"remount,size={int(megabytes * (1 << 20))}", self.folder], check=True)

    def use_up_inodes(self) -> None:
        """Make empty files until no more can be made."""
        folder = self.folder / "files"
        with suppress(OSError):
            folder.mkdir()
            for number in range(self._inodes):
                (folder / str(number)).touch()

    def mend(self) -> None:
        """Remove what `fill` and `use_up_inodes` made."""
        (self.folder / "filler").unlink(missing_ok=True)
        shutil.rmtree(self.folder / "files", ignore_errors=True)


class BrokenDisk:
    """An ext4 file system on a block device whose sectors can get lost; a context manager.

    The device is a loop device over a file. Where the file was cut off, the device can't be read (EIO). If the file is
    on a BrokenDisk that has turned read-only, the device can't be written (EIO at fsync).

    Args:
        folder: where it is mounted; created if missing, like ``folder`` with the suffix ``.device``.
        stacked: the file is on a BrokenDisk, for `refuse_writes`.
    """

    def __init__(self, folder: Path, megabytes: int = 64, stacked: bool = False) -> None:
        self.folder, self._bytes = folder, megabytes << 20
        device = folder.with_name(folder.name + ".device")
        self._below = BrokenDisk(device, 2 * megabytes) if stacked else SmallDisk(device, 2 * megabytes)
        self._image, self._copy = self._below.folder / "image", folder.with_name(folder.name + ".copy")

    def __enter__(self) -> "BrokenDisk":
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("mkfs.ext4 is not installed (apt install e2fsprogs)")
        self._below.__enter__()
        with open(self._image, "wb") as file:
            file.truncate(self._bytes)
        subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-m", "0", self._image], check=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._attach()
        except BaseException:
            self._below.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._detach()
        self._below.__exit__()
        self._copy.unlink(missing_ok=True)

    def lose_data(self, path: Path) -> None:
        """Lose the sectors of a file: from now on reads of it fail with EIO."""
        os.sync()
        shutil.copyfile(self._image, self._copy)
        first = subprocess.run(["filefrag", "-v", path], check=True, capture_output=True, text=True).stdout
        extents = [line.split(":")[2].split("..")[0] for line in first.splitlines() if line.strip()[:1].isdigit()]
        os.truncate(self._image, min(map(int, extents)) * 4096)
        self._forget_pages()

    def give_back(self) -> None:
        """Undo `lose_data` while the file system is mounted; it must not have been written to meanwhile."""
        with open(self._copy, "rb") as old, open(self._image, "r+b") as image:
            shutil.copyfileobj(old, image)
        self._forget_pages()

    def refuse_writes(self) -> None:
        """From now on no sector can be written (EIO)."""
        assert isinstance(self._below, BrokenDisk), "a disk that is not stacked"
        os.sync()
        self._below.turn_read_only()

    def turn_read_only(self) -> None:
        """Do what the kernel does after an error: abort the journal and refuse all writes (EROFS)."""
        subprocess.run(["mount", "-o", "remount,abort", self.folder], capture_output=True)

    def mend(self) -> None:
        """Move the file system to a new device, check it, and mount it there.

        The old device may stay in use, by mount namespaces that other processes made meanwhile.
        """
        self._detach()
        self._below.mend()
        old, self._image = self._image, self._image.with_name(self._image.name + "-mended")
        subprocess.run(["cp", "--sparse=always", old, self._image], check=True)
        old.unlink()
        subprocess.run(["e2fsck", "-fy", self._image], capture_output=True)
        self._attach()

    def _attach(self) -> None:
        _mount("-o", "loop,errors=remount-ro,noatime", self._image, self.folder)

    def _detach(self) -> None:
        if subprocess.run(["umount", self.folder], capture_output=True).returncode:  # in use by another device
            subprocess.run(["umount", "--lazy", self.folder], capture_output=True)
        for line in subprocess.run(["losetup", "-j", self._image], capture_output=True, text=True).stdout.splitlines():
            subprocess.run(["losetup", "-d", line.split(":")[0]], capture_output=True)

    def _forget_pages(self) -> None:
        """Drop the page cache of the mounted files."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


class MemoryLimit:
    """A control group with a limit of memory for processes and their children; a context manager."""

    def __init__(self, name: str, megabytes: int) -> None:
        self._is_v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
        base = Path("/sys/fs/cgroup") if self._is_v2 else Path("/sys/fs/cgroup/memory")
        self.folder, self._bytes = base / name, megabytes << 20

    def __enter__(self) -> "MemoryLimit":
        try:
            self.folder.mkdir()
            limit = "memory.max" if self._is_v2 else "memory.limit_in_bytes"
            (self.folder / limit).write_text(str(self._bytes))
        except OSError as error:
            with suppress(OSError):
                self.folder.rmdir()
            pytest.skip(f"control groups can't be made here: {error}")
        return self

    def __exit__(self, *_: object) -> None:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            with suppress(OSError):
                self.folder.rmdir()
                return
            time.sleep(0.1)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Put this process into the group during the block: the processes that it starts stay in it."""
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        own = next(path for _, names, path in groups if names == ("" if self._is_v2 else "memory"))
        (self.folder / "cgroup.procs").write_text("0")
        try:
            yield
        finally:
            (self.folder.parent / own.lstrip("/") / "cgroup.procs").write_text("0")

    @property
    def kills(self) -> int:
        """Processes that were killed at the limit so far."""
        events = (self.folder / ("memory.events" if self._is_v2 else "memory.oom_control")).read_text()
        return int(dict(line.split() for line in events.splitlines())["oom_kill"])

    def run_out(self, victim: int) -> None:
        """Use up the memory from another process of the group until the kernel kills the victim; call it inside."""
        Path(f"/proc/{victim}/oom_score_adj").write_text("1000")
        code = (
            "import time, sys\n"
            "held = []\n"
            "for _ in range(int(sys.argv[1]) // (4 << 20)):\n"
            "    held.append(bytearray(b'x') * (4 << 20)); time.sleep(0.002)\n"
        )
        balloon = subprocess.Popen([sys.executable, "-c", code, str(self._bytes)])
        while self.kills == 0 and balloon.poll() is None:
            time.sleep(0.01)
        balloon.kill()
        balloon.wait()

"""What can happen to a training run: signals, processes that stand still, links, hosts, full disks, flipped bytes.

A fault says when it strikes, what it does, which exit codes may follow, and how it is mended, so that the same command
can go on afterwards.
"""

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from support.hosts import Hosts
from support.preloaded import Preloaded, Process
from support.processes import REPOSITORY

if TYPE_CHECKING:
    from support.faults import Training


@dataclass
class Fault:
    """Nothing happens; the base of all faults.

    Args:
        after: seconds from the start of the launch.
        step: training step that must have been logged, too; 0 for none.

    Attributes:
        ends_alone: the launcher does not see all ranks: it ends none of them for the failure of another.
        codes: exit codes that may follow.
        at_start: it is there before the launch.
        line: part of the output that must follow if any rank ended with another code than 0; "" for any.
    """

    after: float = 0.0
    step: int = 0
    ends_alone: ClassVar[bool] = False
    at_start: ClassVar[bool] = False
    codes: ClassVar[frozenset[int]] = frozenset({0})
    line: ClassVar[str] = ""
    master: str = field(default="127.0.0.1", init=False)

    @contextmanager
    def scene(self, training: "Training", world_size: int) -> Iterator[None]:
        """Prepare the launch, and mend afterwards what the fault broke."""
        yield

    def start(self, rank: int, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
        with open(log, "ab") as output:
            return Preloaded(command, "/", os.environ | environment, output)

    def strike(self, training: "Training", ranks: list[Process]) -> None:
        """Do it."""

    def look(self, ranks: list[Process]) -> None:
        """Called again and again until all ranks have ended."""

    def when(self) -> str:
        return f"after step {self.step}" if self.step else f"after {self.after:.1f} s"


@dataclass
class Signal(Fault):
    """A signal to some ranks."""

    number: signal.Signals = signal.SIGKILL
    ranks: Sequence[int] = ()

    def strike(self, training: "Training", ranks: list[Process]) -> None:
        for rank in self.ranks:
            if ranks[rank].poll() is None:
                ranks[rank].send_signal(self.number)

    def __str__(self) -> str:
        return f"{self.number.name} to {list(self.ranks)} {self.when()}"


@dataclass
class Stand(Fault):
    """A rank stands still (SIGSTOP) for good; the launcher removes it when all others have ended."""

    rank: int = 0
    ends_alone = True
    codes = frozenset({0, 1, 77, -signal.SIGKILL})
    line = "rank"

    def strike(self, training: "Training", ranks: list[Process]) -> None:
        if ranks[self.rank].poll() is None:
            ranks[self.rank].send_signal(signal.SIGSTOP)

    def look(self, ranks: list[Process]) -> None:
        others = [one.poll() for rank, one in enumerate(ranks) if rank != self.rank]
        if None not in others:
            ranks[self.rank].kill()

    def __str__(self) -> str:
        return f"rank {self.rank} stands still {self.when()}"


@dataclass
class LinkCut(Fault):
    """Ranks run on two hosts, and the link of the second is cut: for some seconds, or for good.

    Args:
        seconds: until it is mended; 0 for never.
        dies: the second host dies: its ranks are killed, too.
        hosts_folder: an empty folder for the hosts' files.
        shared: folders that both hosts see.
    """

    seconds: float = 0.0
    dies: bool = False
    hosts_folder: Path = Path()
    shared: Sequence[Path] = ()
    ends_alone = True
    codes = frozenset({0, 1, 77, -signal.SIGKILL})
    line = "rank"

    @contextmanager
    def scene(self, training: "Training", world_size: int) -> Iterator[None]:
        self._first = (world_size + 1) // 2  # rank on the second host
        self.hosts_folder.mkdir(parents=True, exist_ok=True)
        # the run's own disk last: those before it may be mounted over it
        shared = [self.hosts_folder, REPOSITORY, *self.shared, training.folder]
        with Hosts(self.hosts_folder, 2, shared) as self._hosts:
            self.master = self._hosts.address("h1")
            yield

    def start(self, rank: int, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
        return self._hosts.start(self._host(rank), command, log, environment)

    def _host(self, rank: int) -> str:
        return "h1" if rank < self._first else "h2"

    def strike(self, training: "Training", ranks: list[Process]) -> None:
        self._hosts.cut("h2")
        self._mends = time_after(self.seconds) if self.seconds else float("inf")
        for rank, process in enumerate(ranks):
            if self.dies and self._host(rank) == "h2":
                process.kill()

    def look(self, ranks: list[Process]) -> None:
        if time_after(0) > self._mends:
            self._hosts.mend("h2")
            self._mends = float("inf")

    def __str__(self) -> str:
        what = "host dies" if self.dies else f"link cut for {self.seconds or 'ever'}"
        return f"{what} {self.when()}"


@dataclass
class FullDisk(Fault):
    """The disk of the run folder is full until the launch has ended."""

    codes = frozenset({0, 1, 2})
    line = "space"

    @contextmanager
    def scene(self, training: "Training", world_size: int) -> Iterator[None]:
        self._filler = training.folder / "filler"
        try:
            yield
        finally:
            self._filler.unlink(missing_ok=True)

    def strike(self, training: "Training", ranks: list[Process]) -> None:
        with suppress(OSError), open(self._filler, "wb", buffering=0) as file:
            while file.write(bytes(1 << 20)) == 1 << 20:
                pass
            while file.write(bytes(512)):
                pass

    def __str__(self) -> str:
        return f"disk full {self.when()}"


@dataclass
class Flip(Fault):
    """A bit of a file of the dataset is flipped before the launch, and restored after it.

    Args:
        folder: shards.
        place: file and byte, as a share of all bytes of the folder's files.
    """

    folder: Path = Path()
    place: float = 0.0
    at_start = True
    codes = frozenset({0, 1, 2})

    @contextmanager
    def scene(self, training: "Training", world_size: int) -> Iterator[None]:
        self.path, offset = find_byte(self.folder, self.place)
        flip(self.path, offset)
        try:
            yield
        finally:
            flip(self.path, offset)

    def __str__(self) -> str:
        return f"bit of {self.path.name} flipped"


@dataclass
class FlipStaged(Fault):
    """A node dies, and a bit of a staged copy is flipped on its disk."""

    folder: Path = Path()
    place: float = 0.0
    codes = frozenset({0, -signal.SIGKILL})

    def strike(self, training: "Training", ranks: list[Process]) -> None:
        for rank in ranks:
            rank.kill()
        if copies := [path for path in self.folder.rglob("*.tar") if path.stat().st_size]:
            path = copies[int(self.place * len(copies))]
            flip(path, int(self.place * path.stat().st_size))

    def __str__(self) -> str:
        return f"bit of a staged copy flipped {self.when()}"


def time_after(seconds: float) -> float:
    import time

    return time.monotonic() + seconds


def find_byte(folder: Path, share: float) -> tuple[Path, int]:
    """Return file and offset of the byte at a share of all bytes of a folder; tables and manifests weigh as shards."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.stat().st_size)
    number = share * len(files)
    path = files[int(number)]
    return path, int((number - int(number)) * path.stat().st_size)


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 16]))


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """Mount a disk of limited size at a folder; yields False, and mounts nothing, where that isn't allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = bool(shutil.which("mount")) and subprocess.run(words, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


def draw_signal(rng: random.Random, world: int, after: float) -> Signal:
    number = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
    ranks = list(range(world)) if rng.random() < 0.5 else [rng.randrange(world)]
    return Signal(after, number=number, ranks=ranks)

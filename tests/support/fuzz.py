"""Damaged and forged files, and checks of the effects of reading them."""

import random
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.mutations import Mutation, flip

from shards.errors import ForgeError

SLACK = 96 << 20
"""Memory in bytes that reading may use in addition to twice the file size: fixed buffers, a tile or two."""


@dataclass(frozen=True)
class Target:
    """A file to damage and the function that reads it.

    Attributes:
        make: writes a folder with the file and everything that belongs to it.
        file: name of the file in the folder.
        read: reads the folder as a user would; it must succeed or raise ForgeError.
        mutations: mutations of the file, including those that keep a checksum valid.
        count: number of mutations in the short form.
    """

    make: Callable[[Path], None]
    file: str
    read: Callable[[Path], object]
    mutations: tuple[Mutation, ...] = (flip,)
    count: int = 120


def write_file(name: str, content: Callable[[], bytes]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / name).write_bytes(content())

    return make


def _outside(folder: Path, inside: Path) -> dict[str, bytes]:
    """Return all files of a folder except those below another folder."""
    return {
        str(path): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and inside not in path.parents
    }


def try_all(target: Target, real: Path, tmp_path: Path, seeds: range) -> None:
    sandbox = tmp_path / "sandbox"
    (sandbox / "user").mkdir(parents=True)
    for folder in (sandbox, sandbox / "user"):
        (folder / "victim.txt").write_text("not yours")
    original = (real / target.file).read_bytes()
    work = sandbox / "user" / "folder"
    size = sum(path.stat().st_size for path in real.rglob("*") if path.is_file())
    for seed in (None, *seeds):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(real, work)
        if seed is not None:
            mutate = target.mutations[seed % len(target.mutations)]
            (work / target.file).write_bytes(mutate(original, random.Random(seed)))
            if seed % 5 == 0:  # tracing slows everything down
                tracemalloc.start()
        try:
            target.read(work)
        except ForgeError as error:
            assert seed is not None, error  # the undamaged file must be readable
            assert str(error).strip() and str(error).isprintable() and len(str(error)) < 2000, (seed, str(error))
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 2 * size + SLACK, f"seed {seed}: {peak >> 20} MiB for {size >> 10} KiB"
        assert len(_outside(sandbox, work)) == 2, f"seed {seed}: files outside were written or removed"
    assert set(_outside(sandbox, work).values()) == {b"not yours"}

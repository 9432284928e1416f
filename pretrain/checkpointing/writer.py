"""Writes a checkpoint behind the training: each rank has a thread that writes, verifies and seals its part.

A save has three phases. Rank 0 creates a folder, and every rank writes its pieces into its file there and syncs it. The
first rank of a file reads it back as a whole: it must be what all of its ranks have had in memory, and its SHA-256
becomes its seal. When all files are sealed, rank 0 writes the small files and renames the folder. The threads use files
and the store of the process group, and no collectives, which only the main threads may call.
"""

import hashlib
import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from pretrain import distributed
from pretrain.checkpointing.folders import earlier_checkpoint, not_written, staged_folder, staging_path
from pretrain.checkpointing.layout import FileLayout
from pretrain.checkpointing.snapshot import Pieces, Snapshot
from pretrain.checkpointing.tensor_files import NonFiniteState
from pretrain.checkpointing.tensor_sum import MASK, tensor_sum
from pretrain.weights.checkpoint_files import SEAL, STATE, TENSOR_INDEX, seal_of
from pretrain.weights.finite import find_non_finite
from shards.errors import ForgeError
from shards.files.atomic import write_atomic

FORMAT = 3
_NUMBERS = itertools.count()


class _Abandoned(Exception):
    """Another rank's part of the save failed."""


class CheckpointWriter:
    """A save in flight; every rank creates one at the same step.

    Args:
        final: folder that the checkpoint gets when it is complete.
        snapshot: to write; it must not change until the save has ended.
        state: plain JSON, the same on all ranks.
        publish: renames the folder that was written to ``final``; called on rank 0.

    Attributes:
        final: as given.
    """

    def __init__(
        self,
        final: Path,
        snapshot: Snapshot,
        state: dict[str, Any],
        publish: Callable[[Path, Path], None],
    ) -> None:
        self.final, self._staged = final, staging_path(final)
        self._snapshot, self._state, self._publish = snapshot, state, publish
        self._board = _Board()
        self._error: ForgeError | None = None
        self._complete = False
        self._thread = threading.Thread(target=self._run, name="checkpoint writer", daemon=True)
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """Whether this rank's part is done or has failed."""
        return not self._thread.is_alive()

    def join(self) -> None:
        """Wait for this rank's part; no collective."""
        self._thread.join()

    def finish(self) -> None:
        """Wait for all ranks; every rank must call it.

        Raises:
            CheckpointNotWritten: on every rank, if one couldn't write; nothing is left of this checkpoint.
            NonFiniteState: on every rank, if one holds NaN or infinity; nothing is left of this checkpoint.
        """
        while distributed.any_rank(not self.has_ended):  # a rank that has died ends this wait, unlike one for files
            self._thread.join(0.05)
        outcomes = distributed.gather_objects((self._error, self._complete))
        if distributed.is_main():
            self._board.close()
        if all(complete for _, complete in outcomes):
            return
        if distributed.is_main():
            shutil.rmtree(self._staged, ignore_errors=True)
        error = next((error for error, _ in outcomes if error is not None), None)
        raise error or not_written(self.final, "its writers lost each other")

    # ---- the thread ----

    def _run(self) -> None:
        try:
            check_finite(self._snapshot.pieces, self.final)
            self._stage()
            files = {kind: layout.file_of(distributed.rank()) for kind, layout in self._snapshot.layouts.items()}
            for kind, file in files.items():
                self._write(kind, file)
            for file in files.values():
                if distributed.rank() == file.ranks[0]:
                    self._seal(file)
            if distributed.is_main():
                self._finish()
            self._complete = True
        except (_Abandoned, dist.DistError):  # the rank that knows why reports it
            self._board.fail()
        except ForgeError as error:
            self._fail(error)
        except Exception as error:
            self._fail(not_written(self.final, error))

    def _fail(self, error: ForgeError) -> None:
        self._error = error
        self._board.fail()

    def _stage(self) -> None:
        """Create the folder on rank 0, and wait for it on the others."""
        if distributed.is_main():
            staged_folder(self.final)
            self._board.add("staged", 1)
        else:
            self._board.wait("staged", 1)

    def _write(self, kind: str, file: FileLayout) -> None:
        """Write this rank's pieces of a file and report their sum."""
        pieces, total = self._snapshot.pieces[kind], 0
        with _opened(self._staged / file.name) as descriptor:
            if distributed.rank() == file.ranks[0]:
                _write_at(descriptor, file.header, 0)
            for entry in file.entries:
                if entry.rank == distributed.rank():
                    values = pieces[entry.name].values.view(torch.uint8).numpy()
                    _write_at(descriptor, values.data, entry.offset)
                    total += tensor_sum(entry.name, entry.start, values)
            os.fsync(descriptor)
        self._board.add(f"sum/{file.name}", total & MASK)
        self._board.add(f"written/{file.name}", 1)

    def _seal(self, file: FileLayout) -> None:
        """Read a file back when all of its ranks have written, and compare it with what they have had in memory."""
        self._board.wait(f"written/{file.name}", len(file.ranks))
        path, digest, total = self._staged / file.name, hashlib.sha256(), 0
        with open(path, "rb") as content:
            digest.update(content.read(len(file.header)))
            for entry in file.entries:
                values = np.frombuffer(content.read(entry.nbytes), np.uint8)
                digest.update(values.data)
                total += tensor_sum(entry.name, entry.start, values)
            digest.update(rest := content.read())
        if rest or (total - self._board.value(f"sum/{file.name}")) & MASK:
            raise not_written(self.final, f"{file.name} is not read back as it was written: check the file system")
        self._board.set(f"seal/{file.name}", json.dumps({"size": path.stat().st_size, "sha256": digest.hexdigest()}))
        self._board.add("sealed", 1)

    def _finish(self) -> None:
        """Write the small files and rename the folder, when all files are sealed."""
        layouts = self._snapshot.layouts
        names = [name for layout in layouts.values() for name in layout.file_names]
        self._board.wait("sealed", len(names))
        seals = {name: json.loads(self._board.get(f"seal/{name}")) for name in names}
        weights = sum(self._board.value(f"sum/{name}") for name in layouts["weights"].file_names)
        state = self._state | {
            "format": FORMAT,
            **self._snapshot.state,
            "weights_hash": f"{weights & MASK:013x}",
        }
        index = {kind: layout.index for kind, layout in layouts.items() if kind != "random"}
        for name, value in ((TENSOR_INDEX, json.dumps(index)), (STATE, json.dumps(state, indent=1))):
            write_atomic(self._staged / name, value)
            seals[name] = seal_of(self._staged / name)
        write_atomic(self._staged / SEAL, json.dumps({"format": FORMAT, "files": seals}, indent=1))
        self._publish(self._staged, self.final)


class _Board:
    """What the threads of a save tell each other, through the store of the process group."""

    def __init__(self) -> None:
        self._store = dist.PrefixStore(f"checkpoint-{next(_NUMBERS)}", distributed.background_store())
        self._pause = max(0.01, distributed.world_size() / 2000)
        self._keys: set[str] = set()

    def add(self, key: str, value: int) -> int:
        self._keys.add(key)
        return self._store.add(key, value)

    def value(self, key: str) -> int:
        return self.add(key, 0)

    def set(self, key: str, value: str) -> None:
        self._store.set(key, value)

    def get(self, key: str) -> str:
        self._keys.add(key)
        return self._store.get(key).decode()

    def fail(self) -> None:
        """Tell the other ranks that the save has failed."""
        try:
            self._store.set("failed", "")
        except RuntimeError:  # the store has gone with rank 0
            return

    def wait(self, key: str, count: int) -> None:
        """Wait until a number has been reached; raises _Abandoned if a rank has failed."""
        while self.value(key) < count:
            if self._store.check(["failed"]):
                raise _Abandoned
            time.sleep(self._pause)

    def close(self) -> None:
        """Remove this rank's keys, of the many saves of a run."""
        for key in self._keys:
            self._store.delete_key(key)


def check_finite(kinds: Pieces, final: Path) -> None:
    """Check a rank's share before any of it is written: no run recovers from a checkpoint with NaN.

    Raises:
        NonFiniteState: a value is NaN or infinite.
    """
    for kind, pieces in kinds.items():
        problem = find_non_finite({name: piece.values for name, piece in pieces.items()})
        if problem is not None:
            raise NonFiniteState(
                f"{final}: not saved: diverged: {kind}: {problem}; {earlier_checkpoint(final)}; lower optim.lr"
            )


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Yield a descriptor of a file that other ranks may write to, too; errors of the system name the file."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written

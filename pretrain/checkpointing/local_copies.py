"""Copies of the newest checkpoint on the nodes' own disks, so that a restart on the same nodes reads them there.

A node keeps the files that its ranks read when the run goes on, and those of the node before it in the order of ranks:
if a node fails and those behind it move up by one place, each of them has the files of its new place, too. When a save
is complete, a thread of each node's first rank copies them from the shared checkpoint, which was read back just then.
Nobody waits for that, so it needs no messages between nodes, and a copy that fails costs nothing but a warning.

At a restart, the small files are read from the shared checkpoint. A copy is read if its size and SHA-256 are those in
``checkpoint.json``; otherwise the shared file is, which is then verified as without copies.
"""

import hashlib
import os
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pretrain import distributed
from pretrain.checkpointing.layout import FILES
from pretrain.console import log, logger
from pretrain.weights.checkpoint_files import SEAL, STATE, read_json_file, read_seals, seal_of
from pretrain.weights.description import WeightsError
from shards.files.atomic import TEMPORARY

PATIENCE_S = 30.0
"""For copies that are being made when a run ends: an unfinished one is not read."""
_KINDS = ("weights", "optimizer", "teacher")


class LocalCopies:
    """The copies of a run's checkpoints on this node; every rank calls each method.

    Args:
        folder: on the node's own disk; runs share it.
        checkpoints: the run's shared folder of checkpoints.
        zero_stage: at 0, every rank reads all of the state.
    """

    def __init__(self, folder: Path, checkpoints: Path, zero_stage: int) -> None:
        self._folder = folder / hashlib.sha256(str(checkpoints.resolve()).encode()).hexdigest()[:16]
        self._is_divided = zero_stage > 0
        hosts = distributed.host_names()
        nodes = list(dict.fromkeys(hosts))
        place = nodes.index(hosts[distributed.rank()])
        self._own, self._before = (_ranks_of(nodes[number], hosts) for number in (place, place - 1))
        self._hosts = hosts
        self._verified: tuple[Path, frozenset[str]] = (Path(), frozenset())
        self._thread = threading.Thread()

    def keep(self, path: Path) -> None:
        """Begin to copy a complete checkpoint; the copies of earlier ones are removed."""
        if distributed.rank() != self._own[0]:
            return
        if self._thread.is_alive():
            logger.warning(f"{path.name}: not copied to {self._folder}: the copies of the last one are not done")
            return
        self._thread = threading.Thread(target=self._copy, args=(path,), name="local copies", daemon=True)
        self._thread.start()

    def remove(self) -> None:
        """Remove the copies, of a run that is complete."""
        if distributed.rank() == self._own[0]:
            self.join()
            shutil.rmtree(self._folder, ignore_errors=True)

    def join(self) -> None:
        """Wait until the copies are made, but not for long; no collective."""
        if self._thread.ident is not None:
            self._thread.join(PATIENCE_S)

    def verify(self, path: Path) -> set[str]:
        """Look which files of a checkpoint this node has intact copies of; `find` returns these from now on.

        Returns:
            The files of the shared checkpoint that no rank will read, the same on all ranks.
        """
        seals, wanted = distributed.raise_on_all_ranks(lambda: self._wanted_at(path))
        mine = wanted[self._own.index(distributed.rank()) :: len(self._own)]
        intact = [name for name in mine if self._is_intact(path, name, seals[name])]
        everyone = distributed.gather_objects((mine, intact))
        self._verified = path, frozenset(name for rank in self._own for name in everyone[rank][1])
        missing = {name for mine, intact in everyone for name in set(mine) - set(intact)}
        if count := sum(len(intact) for _, intact in everyone):
            log(f"{path.name}: {count} of {sum(len(mine) for mine, _ in everyone)} files from copies on the nodes")
        return {name for mine, _ in everyone for name in mine} - missing

    def find(self, path: Path) -> Path:
        """Return the copy of a checkpoint's file if it was verified, else the file itself."""
        step, intact = self._verified
        return self._copy_of(step, path.name) if path.parent == step and path.name in intact else path

    def _copy_of(self, step: Path, name: str) -> Path:
        return self._folder / step.name / name

    def _wanted_at(self, path: Path) -> tuple[dict[str, Any], list[str]]:
        """Return the seals of a checkpoint, and the files of it that this node's ranks read."""
        try:
            seals, world = read_seals(path / SEAL), read_json_file(path / STATE).get("world_size")
        except WeightsError:  # the verification of the shared checkpoint says what is wrong with it
            return {}, []
        same = world == distributed.world_size()  # others divide the tensors otherwise
        return seals, sorted(self._files_of(self._own, seals)) if same else []

    def _files_of(self, ranks: Iterable[int], seals: dict[str, Any]) -> set[str]:
        """Return the files that some ranks read: their own pieces, the buffers in the first file, the generators."""
        per_file = -(-distributed.world_size() // FILES)
        found = {name for name in seals if name.startswith("random-")}
        for kind in _KINDS:
            names = sorted(name for name in seals if name.startswith(f"{kind}-"))
            own = {0, *(rank // per_file for rank in ranks)}
            found |= {name for number, name in enumerate(names) if number in own or not self._is_divided}
        return found

    def _is_intact(self, path: Path, name: str, seal: dict[str, Any]) -> bool:
        copy = self._copy_of(path, name)
        try:
            found = seal_of(copy)
        except OSError:
            return False
        if any(found[key] != seal.get(key) for key in found):
            logger.warning(f"{copy}: not as it was saved; {path / name} is read instead")
            return False
        return True

    def _copy(self, path: Path) -> None:
        try:
            seals = read_seals(path / SEAL)
            names = self._files_of(self._own, seals) | self._files_of(self._before, seals)
            for old in self._folder.glob("step-*"):
                shutil.rmtree(old, ignore_errors=True)
            self._copy_of(path, "").mkdir(parents=True)
            for name in sorted(names):
                unfinished = self._copy_of(path, name + TEMPORARY)
                shutil.copyfile(path / name, unfinished)
                os.replace(unfinished, self._copy_of(path, name))
        except (OSError, WeightsError) as error:  # the checkpoint itself is complete
            logger.warning(f"{path.name}: not copied to {self._folder}: {error}; a restart reads the shared one")


def _ranks_of(node: str, hosts: list[str]) -> list[int]:
    return [rank for rank, host in enumerate(hosts) if host == node]

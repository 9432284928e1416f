"""The folders of checkpoints: found, verified, published, pruned."""

import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from pretrain import distributed
from pretrain.checkpointing.local_copies import LocalCopies
from pretrain.checkpointing.tensor_files import CheckpointError
from pretrain.weights.checkpoint_files import SEAL, STATE, seal_of
from shards.files.atomic import TEMPORARY, fsync_folder, write_atomic
from shards.files.names import plain_name
from shards.files.processes import rank_name
from shards.files.system_errors import error_text, remedy
from shards.files.untrusted import read_json_value

LATEST = "latest"
DAMAGED = ".damaged"


class CheckpointNotWritten(CheckpointError):
    """A save that failed; the checkpoint before it is complete."""

    exit_code = 1


def not_written(final: Path, error: object) -> CheckpointNotWritten:
    """Return the error of a save that failed on this rank."""
    why, advice = str(error), "check the file system"
    if isinstance(error, OSError) and error.errno:
        file = f"{Path(error.filename).name}: " if error.filename else ""
        why, advice = f"{file}{error_text(error)}", remedy(error, final)
    return CheckpointNotWritten(
        f"{final}: can't be written: {rank_name(distributed.rank())}: {why}; {earlier_checkpoint(final)}; "
        f"{advice} and run the command again"
    )


def staged_folder(final: Path) -> Path:
    """Return the folder in which a checkpoint is written, empty; only rank 0 calls it."""
    for leftover in final.parent.glob(f"step-*{TEMPORARY}"):  # of a killed process: the run folder is locked
        shutil.rmtree(leftover)
    staged = staging_path(final)
    staged.mkdir(parents=True)
    return staged


def staging_path(final: Path) -> Path:
    """Return the path of the folder in which a checkpoint is written."""
    return final.with_name(final.name + TEMPORARY)


def publish(staged: Path, final: Path) -> None:
    """Give a complete checkpoint its name; only rank 0 calls it."""
    fsync_folder(staged)
    if final.exists():  # saved before, and reached again from an older one
        set_aside([final])
    os.rename(staged, final)
    fsync_folder(final.parent)
    write_atomic(final.parent / LATEST, final.name + "\n")
    shutil.rmtree(final.with_name(final.name + DAMAGED), ignore_errors=True)


def newest_verified(
    folder: Path, before: int | None = None, copies: LocalCopies | None = None
) -> tuple[Path | None, dict[Path, str]]:
    """Return the newest checkpoint whose files all match their sizes and hashes; every rank calls it.

    Args:
        before: only consider checkpoints of earlier steps.
        copies: on the nodes' own disks; what will be read of them is verified instead of the shared files.

    Returns:
        The checkpoint, None if there are none; and the newer ones that are damaged, with a line on each.

    Raises:
        CheckpointError: there are checkpoints and all are damaged: to train from scratch would hide the loss.
        HostError: a host does not see them. They are not damaged then.
    """
    damaged: dict[Path, str] = {}
    checkpoints = distributed.broadcast_object(list_checkpoints(folder))
    distributed.raise_on_all_hosts(lambda: _check_seen(checkpoints[-1:]))
    for path in reversed(checkpoints):
        if before is not None and step_of(path) >= before:
            continue
        unread = copies.verify(path) if copies is not None else set[str]()
        damage = find_damage(path, distributed.rank(), distributed.world_size(), unread)
        problem = next((damaged for damaged in distributed.gather_objects(damage) if damaged is not None), None)
        if problem is None:
            return path, damaged
        damaged[path] = problem
    if damaged:
        newest = next(iter(damaged.values()))
        raise CheckpointError(f"{folder}: no complete checkpoint left ({newest}); move the folder away to start over")
    return None, damaged


def _check_seen(checkpoints: Iterable[Path]) -> None:
    for path in checkpoints:
        if not path.is_dir():
            raise CheckpointError(
                f"{path}: no such folder on this host, though others have it: is its file system mounted?"
            )


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal())


def step_of(path: Path) -> int:
    """Return the step after which a checkpoint was saved."""
    return int(path.name.removeprefix("step-"))


def find_damage(path: Path, part: int = 0, parts: int = 1, unread: Collection[str] = ()) -> str | None:
    """Describe what is wrong with a checkpoint in one line that names the file; None if nothing is.

    Args:
        part, parts: only check every ``parts``-th file, beginning with number ``part``.
        unread: files that are not checked.
    """
    try:
        files = read_json_value((path / SEAL).read_bytes())["files"]
        seals = {plain_name(name): {"size": seal["size"], "sha256": seal["sha256"]} for name, seal in files.items()}
        seals[STATE]  # without it, nothing is sealed
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{path / SEAL}: missing or unreadable"
    for name, expected in [seal for seal in seals.items() if seal[0] not in unread][part::parts]:
        try:
            if (path / name).stat().st_size != expected["size"]:
                return f"{path / name}: {(path / name).stat().st_size} bytes, but {expected['size']} were written"
            if seal_of(path / name) != expected:
                return f"{path / name}: its content changed since it was written"
        except OSError:
            return f"{path / name}: missing"
    return None


def prune(folder: Path, keep: int, keep_every: int) -> None:
    """Remove all checkpoints except the last ``keep`` and those at multiples of ``keep_every``; only rank 0 calls it.

    It follows a save, whose files were read back and hashed, so that one of the last ``keep`` is complete.
    """
    for path in list_checkpoints(folder)[:-keep]:
        if not keep_every or step_of(path) % keep_every:
            shutil.rmtree(path)


def set_aside(damaged: Iterable[Path]) -> None:
    """Rename damaged checkpoints, so that they neither count as kept nor are checked again; only rank 0 calls it."""
    for path in damaged:
        aside = path.with_name(path.name + DAMAGED)
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)


def earlier_checkpoint(final: Path) -> str:
    """Describe the newest checkpoint before a save, for messages."""
    before = list_checkpoints(final.parent)
    return f"the last one, {before[-1].name}, is untouched" if before else "there is no earlier one"

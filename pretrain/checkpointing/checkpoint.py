"""Checkpoints as transactions that any world size and any ZeRO stage can load.

::

    RUN/checkpoints/
      latest                                   name of the newest, for people and scripts; loading doesn't use it
      step-00000200/
        weights-00000-of-00002.safetensors     fp32 parameters and buffers by name, split over the writing ranks
        optimizer-00000-of-00002.safetensors   Adam's exp_avg and exp_avg_sq (SGD's momentum) by parameter name
        teacher-00000-of-00002.safetensors     the momentum network of MoCo and DINO, fp32
        random-00000-of-00002.safetensors      random generators of that rank
        state.json                             step, samples seen, guard, config, dataset, hash of all weights
        checkpoint.json                        size and SHA-256 of each file; written last
      step-00000400.tmp/                       being written, or left by a kill: never read
      step-00000300.damaged/                   failed its hashes at a resume, kept until step 300 is saved again

The staged folder is renamed only when the files of all ranks are on disk.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pretrain import distributed
from pretrain.checkpointing.fitted_state import FittedState
from pretrain.checkpointing.random_state import random_state, set_random_state
from pretrain.checkpointing.tensor_files import CheckpointError, NonFiniteState, TensorFiles
from pretrain.engine.momentum import MomentumNetwork
from pretrain.engine.zero import ZeroEngine
from pretrain.engine.zero_state import gather_state, hash_weights, set_state
from pretrain.models.patches import are_positions, fit_positions
from pretrain.weights.finite import find_non_finite
from shards.files.atomic import TEMPORARY, fsync_folder, write_atomic
from shards.files.names import plain_name
from shards.files.untrusted import read_json_value

FORMAT = 2
SEAL, STATE, LATEST = "checkpoint.json", "state.json", "latest"
DAMAGED = ".damaged"


class CheckpointNotWritten(CheckpointError):
    """A save that failed; the checkpoint before it is complete."""

    exit_code = 1


def save_checkpoint(
    engine: ZeroEngine, folder: Path, state: dict[str, Any], momentum: MomentumNetwork | None = None
) -> Path:
    """Write ``folder/step-N``, N from ``state["step"]``; every rank must call it.

    Args:
        momentum: the momentum network that belongs to the engine's weights, if the objective has one.
        state: plain JSON, the same on all ranks; `read_state` returns it.

    Raises:
        CheckpointNotWritten: on every rank, if one couldn't write; nothing is left of this checkpoint.
        NonFiniteState: on every rank, if one holds NaN or infinity; nothing is left of this checkpoint.
    """
    final = folder / f"step-{state['step']:08d}"
    staged = final.with_name(final.name + TEMPORARY)
    distributed.raise_on_all_ranks(lambda: _on_main(lambda: _stage(staged), final))
    owned = gather_state(engine)
    part = f"{distributed.rank():05d}-of-{distributed.world_size():05d}.safetensors"
    kinds = {"weights": owned.weights, "optimizer": owned.moments, "random": random_state()}
    if momentum is not None:
        kinds["teacher"] = momentum.owned_tensors()
    weights_hash = hash_weights(owned.weights)

    def write() -> dict[str, dict[str, Any]]:
        _check_finite(kinds, staged, final)
        return {f"{kind}-{part}": _write_tensors(staged / f"{kind}-{part}", kinds[kind], final) for kind in kinds}

    written = distributed.raise_on_all_ranks(write)
    files = {name: seal for files in distributed.gather_objects(written) for name, seal in files.items()}
    sealed_state = state | {"format": FORMAT, "adam_step": owned.adam_step, "weights_hash": weights_hash}
    distributed.raise_on_all_ranks(lambda: _on_main(lambda: _finish(staged, final, sealed_state, files), final))
    return final


def load_checkpoint(engine: ZeroEngine, path: Path, momentum: MomentumNetwork | None = None) -> dict[str, Any]:
    """Load weights, buffers, moments and random generators into an engine of any world size and ZeRO stage.

    Returns:
        The checkpoint's state. The engine's weights are gathered again afterwards and must have the saved hash.
        Position embeddings of another image size are interpolated, and missing moments begin at zero, with a line on
        the console.

    Raises:
        CheckpointError: it holds another model, or the engine doesn't hold what was loaded.
    """
    state = read_state(path)
    with TensorFiles(path, "weights") as weights, TensorFiles(path, "optimizer") as moments:
        fitted = FittedState(engine, weights, moments, state, path)
        for name, buffer in engine.module.named_buffers():
            if name in weights.names:
                buffer.detach().copy_(fitted.weight(name))
        set_state(engine, fitted.weight, fitted.moment, fitted.adam_step)
        changed = fitted.reshaped or fitted.renewed or weights.renamed
        expected = hash_weights(fitted.owned()) if changed else state["weights_hash"]
    if momentum is not None:
        _load_momentum(momentum, path)
    random = path / f"random-{distributed.rank():05d}-of-{distributed.world_size():05d}.safetensors"
    if random.exists():
        set_random_state(load_file(random))
    engine.adapter.steps = int(state["step"])
    held = hash_weights(gather_state(engine).weights)
    if held != expected:
        raise CheckpointError(
            f"{path}: the engine's weights ({held}) differ from the saved ones ({expected}): this DeepSpeed version "
            "doesn't load them correctly; use the one in constraints.txt"
        )
    return state


# ---- folders ----


def newest_verified(folder: Path, before: int | None = None) -> tuple[Path | None, dict[Path, str]]:
    """Return the newest checkpoint whose files all match their sizes and hashes; every rank calls it.

    Args:
        before: only consider checkpoints of earlier steps.

    Returns:
        The checkpoint, None if there are none; and the newer ones that are damaged, with a line on each.

    Raises:
        CheckpointError: there are checkpoints and all are damaged: to train from scratch would hide the loss.
    """
    damaged: dict[Path, str] = {}
    checkpoints = distributed.broadcast_object(list_checkpoints(folder))
    for path in reversed(checkpoints):
        if before is not None and step_of(path) >= before:
            continue
        damage = find_damage(path, distributed.rank(), distributed.world_size())
        problem = next((damaged for damaged in distributed.gather_objects(damage) if damaged is not None), None)
        if problem is None:
            return path, damaged
        damaged[path] = problem
    if damaged:
        newest = next(iter(damaged.values()))
        raise CheckpointError(f"{folder}: no complete checkpoint left ({newest}); move the folder away to start over")
    return None, damaged


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal())


def step_of(path: Path) -> int:
    """Return the step after which a checkpoint was saved."""
    return int(path.name.removeprefix("step-"))


def find_damage(path: Path, part: int = 0, parts: int = 1) -> str | None:
    """Describe what is wrong with a checkpoint in one line that names the file; None if nothing is.

    Args:
        part, parts: only check every ``parts``-th file, beginning with number ``part``.
    """
    try:
        files = read_json_value((path / SEAL).read_bytes())["files"]
        seals = {plain_name(name): {"size": seal["size"], "sha256": seal["sha256"]} for name, seal in files.items()}
        seals[STATE]  # without it, nothing is sealed
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{path / SEAL}: missing or unreadable"
    for name, expected in list(seals.items())[part::parts]:
        try:
            if (path / name).stat().st_size != expected["size"]:
                return f"{path / name}: {(path / name).stat().st_size} bytes, but {expected['size']} were written"
            if _seal(path / name) != expected:
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


def read_state(path: Path) -> dict[str, Any]:
    """Return the JSON state of a checkpoint.

    Raises:
        CheckpointError: the state is damaged, or of another format.
    """
    try:
        state = read_json_value((path / STATE).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / STATE}: can't be read ({error}): use another checkpoint") from None
    version = state.get("format") if isinstance(state, dict) else None
    if version != FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint of format {version!s:.40}, but this version continues format {FORMAT}: finish the run "
            "with the version that started it"
        )
    return state


# ---- tensors ----


def read_weights(path: Path, prefix: str, kind: Literal["weights", "teacher"] = "weights") -> dict[str, Tensor]:
    """Return all weights and buffers whose names begin with ``prefix.``, without it, from the files of a checkpoint."""
    with TensorFiles(path, kind) as weights:
        return {
            name.removeprefix(f"{prefix}."): weights.get(name)
            for name in weights.names
            if name.startswith(f"{prefix}.")
        }


def _load_momentum(momentum: MomentumNetwork, path: Path) -> None:
    with TensorFiles(path, "teacher") as files:
        wrong = [name for name in momentum.tensor_names() if name not in files.names]
        shapes = {name: (files.shape(name), momentum.shape(name)) for name in momentum.tensor_names() if not wrong}
        wrong += [name for name, (old, new) in shapes.items() if old != new and not are_positions(name, old, new)]
        if wrong:
            raise CheckpointError(f"{path}: its momentum network has no '{wrong[0]}' of this model's shape")
        for name in momentum.tensor_names():
            momentum.set_tensor(name, fit_positions(name, files.get(name), momentum.shape(name)))


# ---- writing ----


def _on_main(work: Callable[[], None], final: Path) -> None:
    """Do rank 0's part of a save; errors of the disk become one line."""
    if distributed.is_main():
        try:
            work()
        except OSError as error:
            raise _not_written(final, error) from None


def _stage(staged: Path) -> None:
    for leftover in staged.parent.glob(f"step-*{TEMPORARY}"):  # of a killed process: the run folder is locked
        shutil.rmtree(leftover)
    staged.mkdir(parents=True)


def _check_finite(kinds: dict[str, dict[str, Tensor]], staged: Path, final: Path) -> None:
    """Check this rank's share before any of it is written: no run recovers from a checkpoint with NaN."""
    for kind, tensors in kinds.items():
        problem = find_non_finite(tensors)
        if problem is not None:
            shutil.rmtree(staged, ignore_errors=True)
            raise NonFiniteState(
                f"{final}: not saved: diverged: {kind}: {problem}; {_earlier_checkpoint(final)}; lower optim.lr"
            )


def _write_tensors(path: Path, tensors: dict[str, Tensor], final: Path) -> dict[str, Any]:
    try:
        save_file(tensors, path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        return _seal(path)
    except (SafetensorError, OSError) as error:
        shutil.rmtree(path.parent, ignore_errors=True)
        raise _not_written(final, error) from None


def _finish(staged: Path, final: Path, state: dict[str, Any], files: dict[str, Any]) -> None:
    try:
        write_atomic(staged / STATE, json.dumps(state, indent=1))
        seals = {**files, STATE: _seal(staged / STATE)}
        write_atomic(staged / SEAL, json.dumps({"format": FORMAT, "files": seals}, indent=1))
        fsync_folder(staged)
        if final.exists():  # saved before, and reached again from an older one
            set_aside([final])
        os.rename(staged, final)
        fsync_folder(final.parent)
        write_atomic(final.parent / LATEST, final.name + "\n")
        shutil.rmtree(final.with_name(final.name + DAMAGED), ignore_errors=True)
    except OSError:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def _not_written(final: Path, error: Exception) -> CheckpointNotWritten:
    return CheckpointNotWritten(
        f"{final}: can't be written: {error}; {_earlier_checkpoint(final)}; free some space and run the command again"
    )


def _earlier_checkpoint(final: Path) -> str:
    before = list_checkpoints(final.parent)
    return f"the last one, {before[-1].name}, is untouched" if before else "there is no earlier one"


def _seal(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}

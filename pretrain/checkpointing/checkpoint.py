"""Checkpoints as transactions that any world size and any ZeRO stage can load.

::

    RUN/checkpoints/
      latest                                   name of the newest, for people and scripts; loading doesn't use it
      step-00000200/
        weights-00000-of-00002.safetensors     fp32 parameters and buffers by name, as the ranks hold them (layout.py)
        optimizer-00000-of-00002.safetensors   Adam's exp_avg and exp_avg_sq (SGD's momentum) by parameter name
        teacher-00000-of-00002.safetensors     the momentum network of MoCo and DINO, fp32
        random-00000-of-00001.safetensors      random generators of all ranks
        index.json                             shape of each tensor, and the files that hold it
        state.json                             step, samples seen, guard, config, dataset, hash of all weights
        checkpoint.json                        size and SHA-256 of each file; written last
      step-00000400.tmp/                       being written, or left by a kill: never read
      step-00000300.damaged/                   failed its hashes at a resume, kept until step 300 is saved again

The staged folder is renamed only when the files of all ranks are on disk and were read back (writer.py).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from pretrain import distributed
from pretrain.checkpointing.fitted_state import FittedState
from pretrain.checkpointing.folders import DAMAGED as DAMAGED
from pretrain.checkpointing.folders import LATEST as LATEST
from pretrain.checkpointing.folders import CheckpointNotWritten as CheckpointNotWritten
from pretrain.checkpointing.folders import find_damage as find_damage
from pretrain.checkpointing.folders import list_checkpoints as list_checkpoints
from pretrain.checkpointing.folders import newest_verified as newest_verified
from pretrain.checkpointing.folders import prune as prune
from pretrain.checkpointing.folders import publish
from pretrain.checkpointing.folders import set_aside as set_aside
from pretrain.checkpointing.folders import step_of as step_of
from pretrain.checkpointing.random_state import set_random_state
from pretrain.checkpointing.snapshot import SnapshotBuffers
from pretrain.checkpointing.tensor_files import CheckpointError, TensorFiles
from pretrain.checkpointing.tensor_files import NonFiniteState as NonFiniteState
from pretrain.checkpointing.tensor_sum import MASK, tensor_sum
from pretrain.checkpointing.writer import FORMAT, CheckpointWriter
from pretrain.engine.momentum import MomentumNetwork
from pretrain.engine.sharding import Piece
from pretrain.engine.zero import ZeroEngine
from pretrain.engine.zero_state import hash_local, held_hash, set_state
from pretrain.models.patches import are_positions, fit_positions
from pretrain.weights.checkpoint_files import SEAL as SEAL
from pretrain.weights.checkpoint_files import STATE as STATE
from shards.files.untrusted import read_json_value

OLD_FORMAT = 2
"""Format of whole tensors, shared by the ranks, without an index; it is read, too."""


def save_checkpoint(
    engine: ZeroEngine, folder: Path, state: dict[str, Any], momentum: MomentumNetwork | None = None
) -> Path:
    """Write ``folder/step-N``, N from ``state["step"]``, and wait for it; every rank must call it.

    Args:
        momentum: the momentum network that belongs to the engine's weights, if the objective has one.
        state: plain JSON, the same on all ranks; `read_state` returns it.

    Raises:
        CheckpointNotWritten: on every rank, if one couldn't write; nothing is left of this checkpoint.
        NonFiniteState: on every rank, if one holds NaN or infinity; nothing is left of this checkpoint.
    """
    writer = begin_checkpoint(SnapshotBuffers(engine, momentum), folder, state)
    writer.finish()
    return writer.final


def begin_checkpoint(
    buffers: SnapshotBuffers,
    folder: Path,
    state: dict[str, Any],
    check: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
) -> CheckpointWriter:
    """Copy the state and return its writer; the training may go on, and every rank must call ``finish`` later.

    But for the first call there is no communication, and no file is touched.

    Args:
        buffers: not in use by another save.
        check: called on rank 0 before the checkpoint gets its name; an error that it raises fails the save.
        after: called on rank 0 when it has its name. Both are called in the writer's thread.
    """

    def publish_checked(staged: Path, final: Path) -> None:
        check()
        publish(staged, final)
        after()

    return CheckpointWriter(folder / f"step-{state['step']:08d}", buffers.take(), state, publish_checked)


def load_checkpoint(
    engine: ZeroEngine,
    path: Path,
    momentum: MomentumNetwork | None = None,
    find: Callable[[Path], Path] = lambda file: file,
) -> dict[str, Any]:
    """Load weights, buffers, moments and random generators into an engine of any world size and ZeRO stage.

    A rank reads the parts of tensors that it holds.

    Args:
        find: from a file of tensors to where it is read, such as a copy of it.

    Returns:
        The checkpoint's state. The engine's weights are hashed afterwards and must have the saved hash. Position
        embeddings of another image size are interpolated, and missing moments begin at zero, with a line on the
        console.

    Raises:
        CheckpointError: it holds another model, or the engine doesn't hold what was loaded.
    """
    state = read_state(path)
    with TensorFiles(path, "weights", find) as weights, TensorFiles(path, "optimizer", find) as moments:
        fitted = FittedState(engine, weights, moments, state, path)
        for name, buffer in engine.module.named_buffers():
            if name in weights.names:
                buffer.detach().copy_(fitted.weight(name))
        set_state(engine, fitted.read_weight, fitted.read_moment, fitted.adam_step)
        changed = fitted.reshaped or fitted.renewed or weights.renamed or state["format"] == OLD_FORMAT
        expected = f"{hash_local(fitted.owned(), _hash) & MASK:013x}" if changed else state["weights_hash"]
    if momentum is not None:
        _load_momentum(momentum, path, find)
    _load_random_state(path, find)
    engine.adapter.steps = int(state["step"])
    held = weights_hash(engine)
    if held != expected:
        raise CheckpointError(
            f"{path}: the engine's weights ({held}) differ from the saved ones ({expected}): this DeepSpeed version "
            "doesn't load them correctly; use the one in constraints.txt"
        )
    return state


def weights_hash(engine: ZeroEngine) -> str:
    """Hash the weights and buffers that the engine holds, however its ranks divide them; every rank must call it."""
    return f"{held_hash(engine, _hash) & MASK:013x}"


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
    if version not in (OLD_FORMAT, FORMAT):
        raise CheckpointError(
            f"{path}: checkpoint of format {version!s:.40}, but this version continues formats {OLD_FORMAT} and "
            f"{FORMAT}: finish the run "
            "with the version that started it"
        )
    return state


def read_weights(path: Path, prefix: str, kind: Literal["weights", "teacher"] = "weights") -> dict[str, Tensor]:
    """Return all weights and buffers whose names begin with ``prefix.``, without it, from the files of a checkpoint."""
    with TensorFiles(path, kind) as weights:
        return {
            name.removeprefix(f"{prefix}."): weights.get(name)
            for name in weights.names
            if name.startswith(f"{prefix}.")
        }


def _load_momentum(momentum: MomentumNetwork, path: Path, find: Callable[[Path], Path]) -> None:
    with TensorFiles(path, "teacher", find) as files:
        wrong = [name for name in momentum.tensor_names() if name not in files.names]
        shapes = {name: (files.shape(name), momentum.shape(name)) for name in momentum.tensor_names() if not wrong}
        wrong += [name for name, (old, new) in shapes.items() if old != new and not are_positions(name, old, new)]
        if wrong:
            raise CheckpointError(f"{path}: its momentum network has no '{wrong[0]}' of this model's shape")

        def read(name: str, start: int, count: int) -> Tensor:
            if files.shape(name) == momentum.shape(name):
                return files.slice(name, start, count)
            return fit_positions(name, files.get(name), momentum.shape(name)).flatten()[start : start + count]

        distributed.raise_on_all_ranks(lambda: momentum.load(read))


def _load_random_state(path: Path, find: Callable[[Path], Path] = lambda file: file) -> None:
    """Restore this rank's generators, if as many ranks saved theirs."""
    prefix = f"{distributed.rank():05d}-of-{distributed.world_size():05d}"
    own, old = (find(path / f"random-{name}.safetensors") for name in ("00000-of-00001", prefix))
    state = {}
    if own.exists():
        with safe_open(own, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(f"{prefix}.")]
            state = {name.removeprefix(f"{prefix}."): file.get_tensor(name) for name in names}
    if not state and old.exists():
        state = load_file(old)
    if "python" in state:  # on one process, both files have the same name, and this one may be of another world
        set_random_state(state)


def _hash(name: str, piece: Piece) -> int:
    return tensor_sum(name, piece.start, piece.values.cpu().contiguous().numpy())

"""Where a run resumes: the newest complete checkpoint, if it is of this run; never silently from the beginning."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain import distributed
from pretrain.checkpointing.checkpoint import CheckpointError, newest_verified, read_state, set_aside
from pretrain.checkpointing.local_copies import LocalCopies
from pretrain.checkpointing.mixture import Mixture, current_mixture, order_begin, saved_mixture, sources_change
from pretrain.config import PretrainConfig
from pretrain.config.optim import TrainConfig
from pretrain.console import log
from pretrain.data.inputs import Inputs
from pretrain.engine.schedules import learning_rate
from pretrain.metrics.json_lines import last_saved_step
from pretrain.models.registry import outline_encoder
from pretrain.registries import OPTIMIZERS
from pretrain.weights.initial_weights import location_hash
from shards.config.renames import rename_keys
from shards.errors import ForgeError
from shards.files.processes import host_name
from shards.order.mixture import MixturePlan

STRUCTURE = {
    "model": ("name", "patch_size", "stem"),
    "objective": ("name", "decoder", "queue", "hidden", "dim", "head_norm", "bottleneck", "prototypes"),
}
"""Keys that decide which weights the model has: a checkpoint can't be continued with another value."""


@dataclass(frozen=True)
class ResumePoint:
    """Where a run resumes.

    Attributes:
        path: the checkpoint.
        order_begin: sample number at which the order of several sources begins; see `order_begin`.
    """

    path: Path
    order_begin: int


def find_resume_point(config: PretrainConfig, inputs: Inputs, copies: LocalCopies | None = None) -> ResumePoint | None:
    """Return where to resume from, None for a new run; every rank calls it.

    Args:
        copies: on the nodes' own disks.

    Raises:
        CheckpointError: the run has made progress, or ``checkpoint.resume`` is ``must``, and no checkpoint is whole;
            or the newest whole one is of another run.
    """
    folder = Path(config.run.dir)
    path, damaged = newest_verified(folder / "checkpoints", copies=copies)
    for problem in damaged.values():
        log(f"WARNING: passed over a damaged checkpoint: {problem}")
    distributed.raise_on_all_ranks(lambda: set_aside(damaged) if distributed.is_main() else None)
    if path is None:
        saved = distributed.broadcast_object(last_saved_step(folder))
        if saved is not None:
            raise CheckpointError(
                f"{folder}: saved at step {saved}, but its checkpoints folder is empty on {host_name()}: restore it, "
                "or move the run folder away to start over"
            )
        if config.checkpoint.resume == "must":
            raise CheckpointError(
                f"key 'checkpoint.resume': must, but {folder}/checkpoints has no checkpoint to continue from"
            )
        if (folder / "metrics.jsonl").exists():
            log(f"WARNING: {folder} ended before its first checkpoint: it starts from step 0 again")
        return None
    state, mixture = read_state(path), current_mixture(inputs)
    renamed, _ = rename_keys(state["config"], PretrainConfig)
    state["config"] = _with_new_keys(renamed, config)
    _check_same_structure(state, config, path)
    _check_bands_fit(state, config, mixture, path)
    several = mixture if isinstance(inputs.plan, MixturePlan) else None
    _check_same_run(state, config, inputs.plan.dataset, inputs.held_out_hash, path, several)
    _announce_rates(state, config)
    begin = order_begin(state, inputs)
    if begin == state["samples_seen"] and begin:
        log(f"the order of the sources begins at sample {begin}")
    return ResumePoint(path, begin)


def _with_new_keys(saved: dict[str, Any], config: PretrainConfig) -> dict[str, Any]:
    """Return a saved config with the defaults of those keys of its named sections that its version did not have."""
    filled = dict(saved)
    for section in ("augment", "model", "objective", "optim"):
        now = getattr(config, section)
        defaults = type(now).model_construct(name=now.name).model_dump(mode="json")
        filled[section] = defaults | filled.get(section, {})
    return filled


def _check_same_structure(state: dict[str, Any], config: PretrainConfig, path: Path) -> None:
    """Refuse changes after which the model has other weights, accepted or not."""
    before, now = state["config"], config.model_dump(mode="json")
    for section, names in STRUCTURE.items():
        old, new = (
            {key: values[section].get(key) for key in names if key in values[section]} for values in (before, now)
        )
        if old == new:
            continue
        key, was, is_now = _changes(old, new, f"{section}.")[0]
        hint = _new_run(path) if section == "objective" else "start over in another run.dir"
        raise CheckpointError(
            f"{path}: checkpoint of another run: {key} differs ({was} then, {is_now} now), so that their weights are "
            f"incompatible: set it back, or {hint}"
        )


def _check_bands_fit(state: dict[str, Any], config: PretrainConfig, mixture: Mixture, path: Path) -> None:
    """Refuse sources of another number of bands than the weights are for; with a stem by wavelength they are for any.

    Args:
        mixture: the sources, also if it is one dataset.
    """
    if config.model.by_wavelength:
        return
    saved = saved_mixture(state).sources[0]
    for number, source in enumerate(mixture.sources):
        bands = len(source.wavelength_nm)
        any_number = outline_encoder(**config.model.model_dump(), bands=bands).bands is None
        fits_any = any_number and config.objective.name != "mae"
        if fits_any or not saved.wavelength_nm or bands == len(saved.wavelength_nm):
            continue
        key = f"data.sources.{number}" if config.data.sources else "data.shards"
        hint = f"{_new_run(path)} checkpoint.accept=[init]" if any_number else "start over in another run.dir"
        raise CheckpointError(
            f"{path}: checkpoint of another run: {key} ({source.name}) has {bands} bands ({source.sensor}), but the "
            f"run has {len(saved.wavelength_nm)} ({saved.sensor}), so that their weights are incompatible: set {key} "
            f"back, or {hint}"
        )


def _new_run(path: Path) -> str:
    return f"start a new run with this encoder: another run.dir and init={path}"


def _check_same_run(
    state: dict[str, Any],
    config: PretrainConfig,
    dataset: str,
    held_out: str,
    path: Path,
    mixture: Mixture | None = None,
) -> None:
    """Refuse changes of what fixes the order of samples and the meaning of weights, unless accepted.

    Args:
        dataset: hash of the tiles of all sources.
        held_out: hash of the held-out locations.
        mixture: the sources, if there are several.
    """
    before, now = state["config"], config.model_dump(mode="json")
    fixed = {
        "init": _init(state, before, now),
        "model": (before["model"], now["model"]),
        "objective": (before["objective"], now["objective"]),
        "run.seed": (before["run"]["seed"], now["run"]["seed"]),
        "data.order": (before["data"].get("order"), now["data"]["order"]),
        "train.global_batch": (before["train"]["global_batch"], now["train"]["global_batch"]),
    }
    if mixture is None:
        fixed["data.holdout"] = _holdout(state, before, now, dataset, held_out)
        fixed["dataset"] = state["data"]["content_hash"], dataset
    else:
        fixed["data.sources"] = saved_mixture(state), mixture
    for key, (old, new) in fixed.items():
        if old == new:
            continue
        if key == "data.sources":
            changed = f"({sources_change(old, new)})"
        else:
            changed = f"({old} then, {new} now)" if not isinstance(old, dict) else _first_change(old, new)
        if key not in config.checkpoint.accept:
            raise CheckpointError(
                f"{path}: checkpoint of another run: {key} differs {changed}; choose another run.dir, or add "
                f"checkpoint.accept=[{key}] to continue anyway"
            )
        log(f"WARNING: {key} differs {changed}: accepted by checkpoint.accept")
    for key, old, new in _changes(before, now):
        if not old and not new:  # a key that the checkpoint's version didn't have
            continue
        if key.split(".")[0] not in ("model", "objective", "checkpoint", "log", "watchdog") and key not in fixed:
            log(f"changed since the checkpoint: {key}: {old} then, {new} now")


def _announce_rates(state: dict[str, Any], config: PretrainConfig) -> None:
    """Log where the learning rate continues, if the schedule is no longer the checkpoint's."""
    before, step = state["config"], state["step"]
    try:
        optim, train = OPTIMIZERS.validate(before["optim"]), TrainConfig.model_validate(before["train"])
    except (ValueError, KeyError):  # of a version with other keys
        return
    planned = config.model_copy(update={"optim": optim, "train": train})
    rates = [
        learning_rate(min(step, each.train.steps - 1), each.train.steps, each.lr, each.optim)
        for each in (planned, config)
    ]
    schedules = [
        (
            each.train.steps,
            each.lr,
            each.optim.min_lr,
            each.optim.warmup_steps,
            each.optim.schedule,
            each.optim.milestones,
        )
        for each in (planned, config)
    ]
    if schedules[0] != schedules[1]:
        steps = f"{config.train.steps} steps"
        steps += "" if train.steps == config.train.steps else f" ({train.steps} before)"
        log(f"learning rate at step {step}: {rates[0]:.3g} before, {rates[1]:.3g} now: the schedule covers {steps}")


def _init(state: dict[str, Any], before: dict[str, Any], now: dict[str, Any]) -> tuple[Any, Any]:
    """Return the files that the run began from, then and now; equal if their contents are equal."""
    old, new = before.get("init"), now["init"]
    saved = (state.get("init") or {}).get("sha256")
    if old == new or new is None or saved is None:
        return old, new
    with suppress(ForgeError, OSError):
        if "://" not in new and location_hash(new) == saved:
            return old, old
    return old, new


def _holdout(
    state: dict[str, Any], before: dict[str, Any], now: dict[str, Any], dataset: str, held_out: str
) -> tuple[Any, Any]:
    """Return the shares that are held out, then and now; a description if the shares agree and the locations don't.

    Another dataset has other locations, and has to be accepted anyway.
    """
    old, new = before["data"]["holdout"], now["data"]["holdout"]
    saved_held_out = state["data"].get("held_out")  # None for versions that held out an exact number of locations
    if (
        old != new
        or old == 0
        or saved_held_out == held_out
        or (saved_held_out and state["data"]["content_hash"] != dataset)
    ):
        return old, new
    return f"{old} of the locations", "by another rule, which would train on some that were held out"


def _first_change(old: dict[str, Any], new: dict[str, Any]) -> str:
    key, was, now = next(iter(_changes(old, new)))
    return f"({key}: {was} then, {now} now)"


def _changes(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Return the dotted keys whose values differ, with both values."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [(prefix.rstrip("."), old, new)]
    changes = []
    for key in new:
        if key in old:
            changes += _changes(old[key], new[key], f"{prefix}{key}.")
    added_or_removed = [key for key in old.keys() ^ new.keys()]
    return changes + [(f"{prefix}{key}", old.get(key), new.get(key)) for key in sorted(added_or_removed)]

"""Where a run continues: the newest whole checkpoint, if it is of this run; never silently from the beginning."""

from pathlib import Path
from typing import Any

from pretrain import distributed
from pretrain.checkpoint import CheckpointError, newest_verified, read_state, set_aside
from pretrain.config import PretrainConfig
from pretrain.telemetry import last_saved_step, say


def find_resume_point(config: PretrainConfig, dataset: str, held_out: str) -> Path | None:
    """The checkpoint to continue from, None for a new run; every rank calls it.

    Args:
        dataset: hash of the tiles that the run trains on.
        held_out: hash of the places that it doesn't train on.

    Raises:
        CheckpointError: the run has made progress, or ``checkpoint.resume`` is ``must``, and no checkpoint is whole;
            or the newest whole one is of another run.
    """
    folder = Path(config.run.dir)
    path, damaged = newest_verified(folder / "checkpoints")
    for problem in damaged.values():
        say(f"WARNING: passed over a damaged checkpoint: {problem}")
    distributed.together(lambda: set_aside(damaged) if distributed.is_main() else None)
    if path is None:
        saved = distributed.from_main(last_saved_step(folder))
        if saved is not None:
            raise CheckpointError(
                f"{folder}: saved at step {saved}, but its checkpoints folder holds none: bring it back, or move the "
                "run folder away to start anew"
            )
        if config.checkpoint.resume == "must":
            raise CheckpointError(f"key 'checkpoint.resume': must, but {folder}/checkpoints holds nothing to continue")
        if (folder / "metrics.jsonl").exists():
            say(f"WARNING: {folder} ended before its first checkpoint: it starts from step 0 again")
        return None
    _check_same_run(read_state(path), config, dataset, held_out, path)
    return path


def _check_same_run(state: dict[str, Any], config: PretrainConfig, dataset: str, held_out: str, path: Path) -> None:
    """What fixes the order of samples and the meaning of weights must not change within a run, unless accepted."""
    before, now = state["config"], config.model_dump(mode="json")
    fixed = {
        "model": (before["model"], now["model"]),
        "objective": (before["objective"], now["objective"]),
        "run.seed": (before["run"]["seed"], now["run"]["seed"]),
        "data.order": (before["data"].get("order"), now["data"]["order"]),
        "data.holdout": _holdout(state, before, now, dataset, held_out),
        "train.global_batch": (before["train"]["global_batch"], now["train"]["global_batch"]),
        "dataset": (state["data"]["content_hash"], dataset),
    }
    for key, (old, new) in fixed.items():
        if old == new:
            continue
        changed = f"({old} then, {new} now)" if not isinstance(old, dict) else _first_change(old, new)
        if key not in config.checkpoint.accept:
            raise CheckpointError(
                f"{path}: checkpoint of another run: {key} differs {changed}; choose another run.dir, or add "
                f"checkpoint.accept=[{key}] to go on all the same"
            )
        say(f"WARNING: {key} differs {changed}: accepted by checkpoint.accept")
    for key, old, new in _changes(before, now):
        if key.split(".")[0] not in ("model", "objective", "checkpoint", "log", "watchdog") and key not in fixed:
            say(f"changed since the checkpoint: {key}: {old} then, {new} now")


def _holdout(
    state: dict[str, Any], before: dict[str, Any], now: dict[str, Any], dataset: str, held_out: str
) -> tuple[Any, Any]:
    """The shares that are held out, then and now; where they agree and the places don't, words that say so.

    Of another dataset, other places are no surprise: that it is another must be accepted anyhow.
    """
    old, new = before["data"]["holdout"], now["data"]["holdout"]
    places = state["data"].get("held_out")  # None of versions that held out an exact number of places
    if old != new or old == 0 or places == held_out or (places and state["data"]["content_hash"] != dataset):
        return old, new
    return f"{old} of the places", "by another rule, which trains on some of those that were held out"


def _first_change(old: dict[str, Any], new: dict[str, Any]) -> str:
    key, was, now = next(iter(_changes(old, new)))
    return f"({key}: {was} then, {now} now)"


def _changes(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Keys, dotted, whose values differ, with both."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [(prefix.rstrip("."), old, new)]
    found = []
    for key in new:
        if key in old:
            found += _changes(old[key], new[key], f"{prefix}{key}.")
    gone = [key for key in old.keys() ^ new.keys()]
    return found + [(f"{prefix}{key}", old.get(key), new.get(key)) for key in sorted(gone)]

"""Where a run continues: the newest whole checkpoint, if it is of this run."""

from pathlib import Path
from typing import Any

from pretrain import distributed
from pretrain.checkpoint import CheckpointError, newest_verified
from pretrain.config import PretrainConfig
from shards.errors import ConfigError


def find_resume_point(folder: Path) -> tuple[Path | None, list[str]]:
    """`newest_verified` on rank 0, which alone reads and hashes the files."""
    if not distributed.is_main():
        return None, []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"key 'run.dir': {folder}: can't be written: {error.strerror}") from None
    return newest_verified(folder)


def check_same_run(state: dict[str, Any], config: PretrainConfig, dataset: str, path: Path) -> None:
    """What fixes the order of samples and the meaning of weights must not change within a run."""
    before, now = state["config"], config.model_dump(mode="json")
    fixed = {
        "model": (before["model"], now["model"]),
        "objective": (before["objective"], now["objective"]),
        "run.seed": (before["run"]["seed"], now["run"]["seed"]),
        "data.order": (before["data"].get("order"), now["data"]["order"]),
        "data.holdout": (before["data"]["holdout"], now["data"]["holdout"]),
        "train.global_batch": (before["train"]["global_batch"], now["train"]["global_batch"]),
        "dataset": (state["data"]["content_hash"], dataset),
    }
    for key, (old, new) in fixed.items():
        if old != new:
            changed = f" ({old} then, {new} now)" if not isinstance(old, dict) else _first_change(old, new)
            raise CheckpointError(f"{path}: checkpoint of another run: {key} differs{changed}; choose another run.dir")


def _first_change(old: dict[str, Any], new: dict[str, Any]) -> str:
    key = next(key for key in new if old.get(key) != new[key])
    return f" ({key}: {old.get(key)} then, {new[key]} now)"

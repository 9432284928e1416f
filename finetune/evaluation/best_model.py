"""The model that an evaluation saves for prediction: the best on validation of those trained on all tiles."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from finetune.encoders.model_file import TaskModel, load_task_model, save_task_model
from finetune.evaluation.parts import Part
from finetune.evaluation.results import Result, read_part, write_part
from finetune.evaluation.selection import is_better
from finetune.heads.registry import HeadConfig
from finetune.metrics.scores import Scores
from finetune.tasks.kinds.kind import TaskKind
from pretrain.console import log
from pretrain.weights.description import WeightsError


class BestModel:
    """Manages ``model.safetensors`` of a run and records which result it belongs to; used by rank 0 only.

    Args:
        folder: run folder.
        select: see FinetuneConfig.
    """

    def __init__(self, folder: Path, kind: TaskKind, select: str) -> None:
        self.file, self.note = folder / "model.safetensors", folder / "parts" / "best-model.npz"
        self.kind, self.select = kind, select
        self._requested: Sequence[Part] | None = None

    def begin(self, parts: Sequence[Part]) -> None:
        """Compare the model to the requested parts.

        A better part whose weights are missing is removed, so that it is recomputed.

        Args:
            parts: parts that this run requests.
        """
        self._requested = parts
        noted = self._noted()
        best, lost = noted, None
        for part in parts:
            for result in read_part(part.path) or []:
                if self._is_better(result, best):
                    best, lost = result, part
        if lost is not None:
            log(f"{self.file.name} doesn't hold the best result: {lost.name} is evaluated again to get its weights")
            lost.path.unlink(missing_ok=True)

    def offer(self, model: TaskModel, head: HeadConfig, weights: dict[str, Tensor], result: Result) -> None:
        """Save a model if it is better than the saved one.

        Args:
            model: encoder and input; its head and weights are ignored.
            weights: weights under ``encoder.`` and ``head.``.
            result: result of its training.
        """
        if self._is_better(result, self._noted()):
            model.head_config = head
            save_task_model(self.file, model, weights)
            write_part(self.note, [result])

    def finish(self) -> None:
        """Update the task's names and colors in the file: they may change without a new training."""
        if self._noted() is None:
            return
        try:
            model = load_task_model(self.file)
        except WeightsError:
            return
        if model.task is not None and model.task != self.kind.task:
            model.task = self.kind.task
            save_task_model(self.file, model)

    def _noted(self) -> Result | None:
        """Return the result that the file belongs to, if it is one of the requested ones."""
        noted = read_part(self.note) if self.file.is_file() else None
        if not noted:
            return None
        known = self._requested is None or any(noted[0].provenance == part.provenance for part in self._requested)
        return noted[0] if known else None

    def _is_better(self, result: Result, other: Result | None) -> bool:
        before = None if other is None else Scores(other.validation)
        return is_better(self.kind, self.select, Scores(result.validation), before)

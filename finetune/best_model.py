"""The model that an evaluation leaves for prediction: of all trained on all tiles, the best by validation."""

from pathlib import Path

from torch import Tensor

from finetune.metrics import Scores
from finetune.model_file import TaskModel, save_task_model
from finetune.results import Result, read_part, write_part
from finetune.scoring import is_better


class BestModel:
    """Keeps ``model.safetensors`` of a run, and remembers its validation scores over restarts; for rank 0 alone.

    Args:
        folder: of the run.
        select: see FinetuneConfig.
    """

    def __init__(self, folder: Path, select: str) -> None:
        self.file, self.note, self.select = folder / "model.safetensors", folder / "parts" / "best-model.npz", select

    def offer(self, model: TaskModel, head_name: str, weights: dict[str, Tensor], result: Result) -> None:
        """Save a model where it is better than those before.

        Args:
            model: encoder and input; its head and weights are not looked at.
            weights: under ``encoder.`` and ``head.``.
            result: of its training.
        """
        assert model.task is not None
        noted = read_part(self.note)
        before = Scores(noted[0].validation) if noted else None
        if is_better(model.task, self.select, Scores(result.validation), before):
            model.head_name = head_name
            save_task_model(self.file, model, weights)
            write_part(self.note, [result])

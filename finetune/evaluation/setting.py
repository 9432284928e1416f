"""What an evaluation works on, read and checked."""

from dataclasses import dataclass

import numpy as np

from finetune.config import FullConfig
from finetune.data.datasets import LabeledSplit
from finetune.data.layouts import Split
from finetune.encoders.encoder import EncoderFile, untrained_twin
from finetune.encoders.model_file import InputDescription, TaskModel
from finetune.evaluation.recipe import Recipe, adapting
from finetune.heads.heads import HeadName
from finetune.tasks import Task


@dataclass(frozen=True)
class Setting:
    """What an evaluation works on.

    Attributes:
        inputs: how tiles become the encoder's input.
        baseline: regression: the training mean of each target.
        seed: of the untrained twin's weights.
    """

    task: Task
    items: Split
    splits: dict[str, LabeledSplit]
    encoder: EncoderFile
    inputs: InputDescription
    recipe: Recipe
    baseline: np.ndarray | None
    seed: int

    def model(self, name: str, bn_group: int | None = None) -> TaskModel:
        """Encoder and input, without a head, on the CPU.

        Args:
            name: ``pretrained`` or ``random``.
        """
        file = self.encoder
        encoder = file.build(bn_group)
        if name == "random":
            untrained_twin(encoder, file.description, self.seed)
        return TaskModel(encoder, file.description, self.inputs, task=self.task, dilate=file.dilate).eval()

    def is_tuned(self, protocol: str) -> bool:
        """Whether the encoder is run in every step of a protocol, and not once for features."""
        return protocol != "knn" and (protocol != "frozen" or self.recipe.frozen.bn == "adapt")

    def tuning(self, protocol: str) -> tuple[FullConfig, HeadName]:
        """Recipe and head of a protocol that runs the encoder in every step."""
        recipe = self.recipe
        if protocol == "frozen":
            return adapting(recipe.frozen, recipe.full), recipe.heads[0]
        return recipe.full, recipe.full_head

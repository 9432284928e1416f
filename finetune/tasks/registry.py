"""The registry of task kinds, with their options.

A kind is imported when the first task of its kind is read; none of ours needs torch.
"""

from typing import TYPE_CHECKING, Annotated

from shards.config import NamedConfig
from shards.registry import Registry

if TYPE_CHECKING:
    from finetune.tasks.kinds.kind import TaskKind


class KindConfig(NamedConfig):
    """Options of a task kind; none of ours has any."""


TASK_KINDS: "Registry[type[TaskKind]]" = Registry("task kind", KindConfig)
TASK_KINDS.add("segmentation", "finetune.tasks.kinds.segmentation:Segmentation")
TASK_KINDS.add("multilabel", "finetune.tasks.kinds.multilabel:Multilabel")
TASK_KINDS.add("classification", "finetune.tasks.kinds.classification:Classification")
TASK_KINDS.add("regression", "finetune.tasks.kinds.regression:Regression")
TASK_KINDS.add("pixel_regression", "finetune.tasks.kinds.pixel_regression:PixelRegression")

KindChoice = Annotated[KindConfig, TASK_KINDS]
"""Value of a task's key ``kind``: the name of a kind, or a mapping with its name and options."""

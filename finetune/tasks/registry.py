"""The registry of task kinds. A kind is imported when the first task of its kind is read; none of ours needs torch."""

from typing import TYPE_CHECKING

from shards.registry import Registry

if TYPE_CHECKING:
    from finetune.tasks.kinds.kind import TaskKind

TASK_KINDS: "Registry[type[TaskKind]]" = Registry("task kind")
TASK_KINDS.add("segmentation", "finetune.tasks.kinds.segmentation:Segmentation")
TASK_KINDS.add("multilabel", "finetune.tasks.kinds.multilabel:Multilabel")
TASK_KINDS.add("classification", "finetune.tasks.kinds.classification:Classification")
TASK_KINDS.add("regression", "finetune.tasks.kinds.regression:Regression")
TASK_KINDS.add("pixel_regression", "finetune.tasks.kinds.pixel_regression:PixelRegression")

"""Segmentation scores from one confusion matrix."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix


@dataclass(frozen=True)
class SegmentationScores:
    """Shares in [0, 1].

    Attributes:
        overall_accuracy: pixels that are right (OA).
        micro_iou: summed over classes before dividing; equals OA / (2 - OA), kept for comparison with the paper.
        macro_iou: mean over the classes that occur in labels or predictions (mIoU).
        class_iou: per class; None where it occurs in neither.
        loss: mean cross-entropy per counted pixel.
    """

    overall_accuracy: float
    micro_iou: float
    macro_iou: float
    class_iou: list[float | None]
    loss: float


class SegmentationMetrics:
    """Collects predictions, then computes; whole numbers until the end."""

    def __init__(self, classes: int, ignore_index: int, device: torch.device) -> None:
        self._matrix = MulticlassConfusionMatrix(classes, ignore_index=ignore_index, sync_on_compute=False).to(device)
        self._ignore = ignore_index
        self._loss = torch.zeros(2, dtype=torch.float64, device=device)

    def update(self, predicted: Tensor, labels: Tensor, loss_sum: Tensor) -> None:
        """Class predictions and labels (B, S, S), and the loss summed over counted pixels."""
        self._matrix.update(predicted, labels)
        self._loss += torch.stack([loss_sum.double(), (labels != self._ignore).sum().double()])

    @property
    def sums(self) -> Tensor:
        """Everything collected as one float64 vector, to be added over ranks."""
        return torch.cat([self._matrix.confmat.double().flatten(), self._loss])

    @staticmethod
    def compute(sums: Tensor, classes: int) -> SegmentationScores:
        """Scores from (added) ``sums``; rows of the matrix are labels, columns predictions."""
        matrix = sums[:-2].view(classes, classes)
        hits = matrix.diagonal()
        union = matrix.sum(0) + matrix.sum(1) - hits
        iou = [float(hit / all_) if all_ > 0 else None for hit, all_ in zip(hits, union, strict=True)]
        present = [value for value in iou if value is not None]
        return SegmentationScores(
            overall_accuracy=float(hits.sum() / matrix.sum().clamp(min=1)),
            micro_iou=float(hits.sum() / union.sum().clamp(min=1)),
            macro_iou=sum(present) / max(len(present), 1),
            class_iou=iou,
            loss=float(sums[-2] / sums[-1].clamp(min=1)),
        )

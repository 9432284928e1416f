"""Soft dice loss, for segmentation with rare classes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.losses.classes import CrossEntropy, weight_map
from finetune.losses.registry import DiceConfig

EPSILON = 1e-6


class Dice(CrossEntropy):
    """Soft dice loss (arXiv 1606.04797) of each tile, plus a share of the cross-entropy.

    A tile's dice loss is 1 - 2 |P∩L| / (|P| + |L|), the mean over the classes in its labels, over pixels that count. It
    weighs as much as the tile's labels do in the cross-entropy, so that the loss of a batch does not depend on how the
    batch is cut.
    """

    config: DiceConfig  # type: ignore[assignment]

    def sum(self, scores: Tensor, labels: Tensor) -> Tensor:
        counted = labels != int(self.kind.fill)
        hot = F.one_hot(labels.long(), self.kind.outputs + 1)[..., :-1].movedim(-1, 1).float()
        probabilities = scores.float().softmax(1) * counted[:, None]
        overlap, total = (probabilities * hot).flatten(2).sum(2), (probabilities + hot).flatten(2).sum(2)
        present = hot.flatten(2).any(2).float()
        if self.weights is not None:
            present = present * self.weights.to(present.device)
        dice = ((1 - 2 * overlap / (total + EPSILON)) * present).sum(1) / present.sum(1).clamp(min=EPSILON)
        loss = (dice * self._tile_weights(labels, counted)).sum()
        return loss + self.config.cross_entropy * super().sum(scores, labels) if self.config.cross_entropy else loss

    def _tile_weights(self, labels: Tensor, counted: Tensor) -> Tensor:
        """Return the weights of tiles (B,), the sums of their labels' weights."""
        weights = counted.float() if self.weights is None else weight_map(labels, self.weights.to(labels.device))
        return weights.flatten(1).sum(1, dtype=torch.float32)

"""Learning rates as pure functions of the step: they have no state to save."""

import math
from collections.abc import Sequence

from pretrain.config.optim import OptimConfig


def warmup_cosine(step: int, steps: int, warmup_steps: int, lr: float, min_lr: float) -> float:
    """Return the rate of a linear warm-up from lr / warmup_steps, then half a cosine to ``min_lr`` at the last step."""
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def warmup_milestones(step: int, steps: int, warmup: int, peak: float, milestones: Sequence[float]) -> float:
    """Return the rate of a linear warm-up to ``peak``, divided by ten at each milestone (share of the training)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.1 ** sum(step >= share * steps for share in milestones)


def learning_rate(step: int, steps: int, peak: float, config: OptimConfig) -> float:
    """Return the learning rate of optimizer step ``step`` (0, 1, ...) in a run of ``steps``."""
    if config.schedule == "milestones":
        return warmup_milestones(step, steps, config.warmup_steps, peak, config.milestones)
    return warmup_cosine(step, steps, config.warmup_steps, peak, config.min_lr)

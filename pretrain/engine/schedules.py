"""Learning rates as pure functions of the step: nothing to save, nothing to restore."""

import math
from collections.abc import Sequence

from pretrain.config.optim import OptimConfig


def warmup_cosine(step: int, steps: int, warmup_steps: int, lr: float, min_lr: float) -> float:
    """Linear warm-up from lr / warmup_steps, then half a cosine down to ``min_lr`` at the last step."""
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def warmup_milestones(step: int, steps: int, warmup: int, peak: float, milestones: Sequence[float]) -> float:
    """Linear warm-up to ``peak``, then a tenth of it from each milestone (share of the training) on."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.1 ** sum(step >= share * steps for share in milestones)


def learning_rate(step: int, steps: int, peak: float, config: OptimConfig) -> float:
    """Of optimizer step ``step`` (0, 1, ...) in a run of ``steps``."""
    if config.schedule == "milestones":
        return warmup_milestones(step, steps, config.warmup_steps, peak, config.milestones)
    return warmup_cosine(step, steps, config.warmup_steps, peak, config.min_lr)

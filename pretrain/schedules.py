"""Learning rates as pure functions of the step: nothing to save, nothing to restore."""

import math


def warmup_cosine(step: int, steps: int, warmup_steps: int, lr: float, min_lr: float) -> float:
    """Linear warm-up from lr / warmup_steps, then half a cosine down to ``min_lr`` at the last step."""
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

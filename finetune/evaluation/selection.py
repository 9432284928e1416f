"""Comparison of epochs, rates and models by their validation scores."""

from finetune.metrics.metric import lower_is_better
from finetune.metrics.scores import Scores
from finetune.tasks.kinds.kind import TaskKind


def is_better(kind: TaskKind, select: str, new: Scores, old: Scores | None) -> bool:
    """Return whether validation scores are better than the best so far, by the task's primary score or by the loss.

    Scores of a diverged head are never better: the argmax of NaN is a valid class, so all scores must be finite.
    """
    if not new.are_finite:
        return False
    if old is None or not old.are_finite:
        return True
    name = "loss" if select == "loss" else kind.primary
    after, before = new.values.get(name), old.values.get(name)
    if after is None or before is None:  # undefined
        return after is not None
    return after < before if lower_is_better(name) else after > before

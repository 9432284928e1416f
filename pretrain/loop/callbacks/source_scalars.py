"""Loss, samples and epochs of each source of a run that reads several."""

import math

from pretrain.data.inputs import Inputs
from pretrain.loop.callback import Callback
from pretrain.loop.loop import Loop
from pretrain.objectives.objective import Objective
from shards.order.mixture import MixturePlan


class SourceScalars(Callback):
    """Logs ``source/NAME/loss``, ``samples`` and ``epochs``: those since the order of the sources began.

    Args:
        inputs: with several sources.
        objective: records the losses.
    """

    def __init__(self, inputs: Inputs, objective: Objective) -> None:
        self._inputs, self._losses = inputs, objective.source_losses

    def scalars(self, loop: Loop) -> dict[str, float]:
        plan = self._inputs.plan
        assert isinstance(plan, MixturePlan)
        values: dict[str, float] = {}
        found = zip(self._inputs.sources, plan.counts(loop.samples_seen).tolist(), self._losses.flush(), strict=True)
        for source, samples, loss in found:
            own = {"samples": samples, "epochs": samples / len(source.plan), "loss": loss}
            values |= {f"source/{source.name}/{name}": value for name, value in own.items() if math.isfinite(value)}
        return values

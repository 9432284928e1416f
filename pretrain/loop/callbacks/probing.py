"""The probe's accuracies in the course of a training."""

from pretrain.console import log
from pretrain.loop.callback import Callback, Outcome
from pretrain.loop.evaluating import evaluating
from pretrain.loop.loop import Loop
from pretrain.loop.probe import EncoderProbe
from pretrain.objectives.objective import Objective


class Probing(Callback):
    """Logs the accuracies of `EncoderProbe` every ``probe.every`` steps and at the end."""

    def __init__(self, probe: EncoderProbe, objective: Objective) -> None:
        self.probe, self._objective = probe, objective

    def after_step(self, loop: Loop, outcome: Outcome) -> None:
        due = loop.is_last or loop.step % self.probe.probe.every == 0
        if due and not loop.stopping:
            with evaluating(loop):
                scores = self.probe.scores(self._objective, loop.engine, loop.watchdog.stop_requested)
                loop.log(scores)
                shown = "  ".join(f"{name.replace('_', ' ')} {value:.1%}" for name, value in scores.items())
                log(f"step {loop.step}  {shown}")

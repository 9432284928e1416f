"""The probe's accuracies in the course of a training."""

from collections.abc import Mapping

from pretrain.console import log
from pretrain.loop.callback import Callback, Outcome
from pretrain.loop.evaluating import evaluating
from pretrain.loop.loop import Loop
from pretrain.loop.probe import EncoderProbe
from pretrain.objectives.objective import Objective


class Probing(Callback):
    """Logs the accuracies of `EncoderProbe` every ``every`` steps and at the end.

    Args:
        probes: by the name of their source; by "" in a run of one.
        every: ``probe.every``.
    """

    def __init__(self, probes: Mapping[str, EncoderProbe], objective: Objective, every: int) -> None:
        self._probes, self._objective, self._every = probes, objective, every

    def after_step(self, loop: Loop, outcome: Outcome) -> None:
        due = loop.is_last or loop.step % self._every == 0
        if due and not loop.stopping:
            with evaluating(loop):
                for source, probe in self._probes.items():
                    scores = probe.scores(self._objective, loop.engine, loop.watchdog.stop_requested)
                    loop.log({f"source/{source}/{name}" if source else name: value for name, value in scores.items()})
                    shown = [f"{name.replace('_', ' ')} {value:.1%}" for name, value in scores.items()]
                    log("  ".join([f"step {loop.step}", *([source] if source else []), *shown]))

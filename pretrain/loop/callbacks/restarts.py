"""Reports restarts within a Slurm job: to ``status.json``, the console and the loggers."""

from pretrain import distributed
from pretrain.console import log
from pretrain.loop.callback import Callback
from pretrain.loop.callbacks.logging import Logging
from pretrain.loop.loop import Loop
from pretrain.resilience.restarts import Restart, name_nodes, read_restarts
from pretrain.resilience.run_folder import RunFolder


class Restarts(Callback):
    """Reports, before the first step, the restart that this process is the result of.

    The scalars ``restarts`` (so far) and ``steps_lost`` are logged with the step that the run resumed from, and the
    text ``restart`` names host and cause.

    Args:
        run: this rank's hold on the run folder.
        logging: logs the text.
    """

    def __init__(self, run: RunFolder, logging: Logging) -> None:
        self._run, self._logging = run, logging

    def on_start(self, loop: Loop) -> None:
        count, line, lost = distributed.broadcast_object(self._find(loop.step) if distributed.is_main() else None)
        if line:
            log(f"restart {count}: {line}")
            self._logging.text(loop, "restart", line)
            loop.log({"restarts": float(count), "steps_lost": float(lost)})

    def _find(self, step: int) -> tuple[int, str, int]:
        """Return the number of restarts, a line on the one before this process, and its lost steps; "" if none was."""
        restarts = read_restarts(self._run.path)
        fresh = _since(restarts, self._run.previous.started if self._run.previous else "")
        if not fresh:
            return len(restarts), "", 0
        lost = max(fresh[-1].step - step, 0)
        causes = "; then ".join(map(str, fresh))
        line = f"{causes}; {lost} steps lost: from step {step} on {name_nodes(fresh[-1].nodes)}"
        self._run.record_restarts(len(restarts), line)
        return len(restarts), line, lost


def _since(restarts: list[Restart], failed: str) -> list[Restart]:
    """Return the last restarts whose failed process is the one before this one."""
    fresh: list[Restart] = []
    for restart in reversed(restarts):
        if not failed or restart.failed != failed:
            break
        fresh.insert(0, restart)
    return fresh

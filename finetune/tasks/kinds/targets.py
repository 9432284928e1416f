"""Base of kinds whose outputs are numbers."""

import numpy as np

from finetune.tasks.kinds.kind import TaskKind


class TargetKind(TaskKind):
    """A kind with T targets, whose labels are float32 values; NaN does not count."""

    form = "value"
    outputs_are = "targets"
    loss = "mse"

    @property
    def fill(self) -> float:
        return float("nan")

    def tally(self, labels: np.ndarray | None) -> np.ndarray:
        """Return the count, the sum and the sum of squares of each target, float64 (3, T)."""
        if labels is None:
            return np.zeros((3, self.outputs))
        values = np.moveaxis(labels, 1, 0).reshape(self.outputs, -1).astype(np.float64)
        return np.stack([np.isfinite(values).sum(1), np.nansum(values, 1), np.nansum(values**2, 1)])

    def known(self, tally: np.ndarray) -> np.ndarray:
        return tally[0] > 0

    def describe_tallies(self, tallies: list[np.ndarray]) -> list[list[str]]:
        rows = []
        for number, target in enumerate(self.task.targets):
            cells = []
            for count, total, squares in (tally[:, number] for tally in tallies):
                mean = total / max(count, 1)
                std = np.sqrt(max(squares / max(count, 1) - mean**2, 0.0))
                cells.append(f"{mean:.2f} ± {std:.2f}" if count else "-")
            rows.append([f"{target.name} ({target.unit})" if target.unit else target.name, *cells])
        return rows

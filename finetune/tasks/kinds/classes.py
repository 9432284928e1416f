"""Base of kinds whose outputs are classes."""

from abc import abstractmethod

import numpy as np

from finetune.tasks import Task
from finetune.tasks.kinds.kind import LabelSummary, TaskKind

UNCOUNTED = "#bebebe"


class ClassKind(TaskKind):
    """A kind with C classes, whose labels are codes of the task."""

    outputs_are = "classes"

    @classmethod
    def check(cls, task: Task) -> None:
        super().check(task)
        if len(task.classes) < 2:
            raise ValueError(
                f"a single class, '{task.classes[0].name}', leaves nothing to distinguish: add a class for the rest"
            )

    @property
    def fill(self) -> float:
        return self.task.ignore_index

    def find_problem(self, raw: np.ndarray) -> str | None:
        unknown = self.task.unknown_codes(raw)
        if not unknown:
            return None
        return f"label code {unknown[0]} is not a class of task {self.task.name}: add it to its classes, or to 'ignore'"

    @abstractmethod
    def count(self, labels: np.ndarray) -> np.ndarray:
        """Count encoded labels (n, ...) by class, int64 (C + 1,), those that don't count last."""

    def tally(self, labels: np.ndarray | None) -> np.ndarray:
        if labels is not None:
            return self.count(labels)
        return np.eye(1, self.outputs + 1, self.outputs, dtype=np.int64)[0]

    def describe_tallies(self, tallies: list[np.ndarray]) -> list[list[str]]:
        names = [*self.task.outputs, "not counted"]
        return [
            [f"{name} ({self.label_unit})", *(f"{tally[number]:,}" for tally in tallies)]
            for number, name in enumerate(names)
        ]

    def known(self, tally: np.ndarray) -> np.ndarray:
        return tally[:-1] > 0

    def summarize(self, labels: np.ndarray) -> LabelSummary:
        return LabelSummary(counts=self.count(labels)[:-1])

    def confidences(
        self, probabilities: np.ndarray, predicted: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        counts = labels < self.outputs
        of_predicted = np.take_along_axis(probabilities, predicted[None], axis=0)[0]
        return of_predicted[counts], np.equal(predicted, labels)[counts]

    def legend(self) -> list[tuple[str, str]]:
        return [*((entry.name, entry.color) for entry in self.task.classes), ("not counted", UNCOUNTED)]

    def color(self, indices: np.ndarray) -> np.ndarray:
        """Paint class indices in the colors of the classes, uint8 (..., 3); gray where nothing counts."""
        table = [list(bytes.fromhex(color[1:])) for _, color in self.legend()]
        return np.array(table, np.uint8)[np.clip(indices, 0, self.outputs)]

"""A training that gets no better ends, and a start after a stop knows it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune.config import FullConfig
from finetune.metrics.scores import Scores
from finetune.protocols.epoch_evaluation import EpochEvaluation
from finetune.tasks import get_task
from finetune.tasks.kinds.kind import kind_of

KIND = kind_of(get_task("sample_materials"))


class Training:
    """A loop of one step per epoch whose evaluations give the scores in a list."""

    def __init__(self, scores: list[float], patience: int | None, start: str = "random") -> None:
        recipe = FullConfig(epochs=len(scores), warmup_epochs=0, patience=patience, start=start)  # type: ignore[arg-type]
        values = iter(scores)
        self.step, self.stopping, self.steps = 0, False, len(scores)
        self.watchdog = SimpleNamespace(begin=lambda *_: None)
        self.evaluation = EpochEvaluation(
            "t",
            KIND,
            "score",
            recipe,
            1,
            lambda: Scores({"mIoU": next(values), "loss": 1.0}),
            None,  # type: ignore[arg-type]
        )

    @property
    def is_last(self) -> bool:
        return self.step >= self.steps

    def save(self, checkpoints: object) -> None:
        """Keep no weights."""

    def run(self, stop_at: int | None = None) -> int:
        """Take steps until the training ends, or is asked to stop after a step; return their number."""
        loop: Any = self
        self.evaluation.on_start(loop)
        while not self.is_last and not self.stopping:
            self.step += 1
            self.stopping = self.step == stop_at
            verdict = SimpleNamespace(loss=0.5)
            self.evaluation.after_step(loop, SimpleNamespace(applied=True, verdict=verdict))  # type: ignore[arg-type]
        return self.step


SCORES = [0.2, 0.5, 0.4, 0.5, 0.3, 0.9]


@pytest.mark.parametrize(("patience", "ended", "best"), [(None, 6, 6), (1, 3, 2), (3, 5, 2), (4, 6, 6), (9, 6, 6)])
def test_it_ends_after_as_many_evaluations_without_a_better_one(patience, ended, best):
    training = Training(SCORES, patience)
    assert training.run() == ended
    assert training.evaluation.best_epoch == best
    assert training.evaluation.is_out_of_patience == (ended < 6)


def test_the_probe_that_training_starts_from_counts_as_an_evaluation():
    training = Training([0.5, 0.4, 0.3, 0.9, 0.9], 2, start="probe")
    assert training.run() == 2
    assert [point["epoch"] for point in training.evaluation.curve] == [0, 1, 2]
    assert training.evaluation.best_epoch == 0


@pytest.mark.parametrize("stop_at", range(1, 6))
def test_a_stopped_training_ends_at_the_same_step(stop_at):
    whole = Training(SCORES, 3)
    whole.run()
    first = Training(SCORES, 3)
    first.run(stop_at)
    state = json.loads(json.dumps(first.evaluation.state(first)))  # type: ignore[arg-type]
    second = Training(SCORES[len(first.evaluation.curve) :] + [0.0] * len(first.evaluation.curve), 3)
    second.step = first.step
    second.evaluation.load_state(second, state, Path())  # type: ignore[arg-type]
    assert second.run() == whole.step
    assert second.evaluation.curve == whole.evaluation.curve

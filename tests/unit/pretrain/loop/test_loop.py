"""The loop: moments in order, skipped steps, and stops that come within a step."""

from pathlib import Path

import pytest
import torch
from support.plain_loop import BATCH, batches, plain_loop

from pretrain.loop.callback import Callback, Outcome
from pretrain.loop.loop import Loop


class Recorder(Callback):
    """Keeps the moments with their steps, and does something at one of them."""

    def __init__(self, at: int | None = None, action=None) -> None:
        self.moments: list[tuple[str, int]] = []
        self.outcomes: list[Outcome] = []
        self.at, self.action = at, action

    def on_start(self, loop: Loop) -> None:
        self.moments.append(("on_start", loop.step))

    def before_step(self, loop: Loop) -> None:
        self.moments.append(("before_step", loop.step))

    def after_step(self, loop: Loop, outcome: Outcome) -> None:
        self.moments.append(("after_step", loop.step))
        self.outcomes.append(outcome)
        if loop.step == self.at:
            self.action(loop)

    def on_end(self, loop: Loop) -> None:
        self.moments.append(("on_end", loop.step))


def test_every_step_has_its_moments_and_samples(tmp_path: Path) -> None:
    recorder = Recorder()
    loop = plain_loop(tmp_path, [recorder], steps=2)
    loop.run(batches())
    steps = [("before_step", 0), ("after_step", 1), ("before_step", 1), ("after_step", 2)]
    assert recorder.moments == [("on_start", 0), *steps, ("on_end", 2)]
    assert [one.samples[0].tolist() for one in recorder.outcomes] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (loop.samples_seen, loop.is_last, loop.stopping) == (2 * BATCH, True, False)
    assert loop.function.followed == [0, 1]
    assert loop.engine.optimizer.param_groups[0]["lr"] == 0.05  # of the schedule's second step


def test_a_loop_goes_on_from_its_step(tmp_path: Path) -> None:
    whole, second = plain_loop(tmp_path, []), plain_loop(tmp_path, [])
    whole.run(batches())
    first = plain_loop(tmp_path, [Recorder(3, lambda loop: setattr(loop, "stopping", True))])
    first.run(batches())
    assert (first.step, first.is_last) == (3, False)
    second.engine.module.load_state_dict(first.engine.module.state_dict())
    second.step, second.samples_seen = first.step, first.samples_seen
    second.run(batches(second.step))
    assert second.samples_seen == whole.samples_seen
    assert torch.equal(second.engine.module.weight, whole.engine.module.weight)


def test_a_request_to_stop_ends_the_training_after_the_next_step(tmp_path: Path) -> None:
    recorder = Recorder(2, lambda loop: loop.watchdog.stop.set("the test"))
    loop = plain_loop(tmp_path, [recorder])
    loop.run(batches())
    assert (loop.step, loop.stopping, loop.is_last) == (3, True, False)
    assert recorder.moments[-1] == ("on_end", 3)


def test_a_step_that_is_not_accepted_moves_nothing_and_counts(tmp_path: Path) -> None:
    weights = []
    recorder = Recorder()

    class Weights(Callback):
        def after_step(self, loop: Loop, outcome: Outcome) -> None:
            weights.append(loop.engine.module.weight.detach().clone())

    loop = plain_loop(tmp_path, [recorder, Weights()], steps=3, bad=[1])
    loop.run(batches())
    assert [one.applied for one in recorder.outcomes] == [True, False, True]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    assert (loop.function.followed, loop.function.dropped, loop.samples_seen) == ([0, 2], 1, 3 * BATCH)
    assert recorder.outcomes[1].verdict.reason is not None


def test_callbacks_are_told_of_the_end_when_a_training_fails(tmp_path: Path) -> None:
    def fail(loop: Loop) -> None:
        raise RuntimeError("lost")

    recorder = Recorder(2, fail)
    with pytest.raises(RuntimeError, match="lost"):
        plain_loop(tmp_path, [recorder]).run(batches())
    assert recorder.moments[-1] == ("on_end", 2)


def test_what_is_logged_reaches_all_callbacks(tmp_path: Path) -> None:
    class Listener(Callback):
        def on_log(self, loop, scalars, figures) -> None:
            heard.append((loop.step, scalars, figures))

    heard: list[tuple] = []
    loop = plain_loop(tmp_path, [Recorder(1, lambda loop: loop.log({"loss": 0.5})), Listener(), Listener()], steps=1)
    loop.run(batches())
    assert heard == [(1, {"loss": 0.5}, {})] * 2

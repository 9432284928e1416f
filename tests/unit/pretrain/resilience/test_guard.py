"""The guard's rule in one process: what is non-finite, what is far above its window, and what is remembered."""

import json
import math

import pytest
import torch

from pretrain.config.run import GuardConfig
from pretrain.resilience.guard import Guard


def judge(guard: Guard, loss: float, norm: float = 1.0) -> str | None:
    return guard.judge(torch.tensor(loss), torch.tensor(norm), stop=False).reason


def settled(guard: Guard, count: int = 8) -> Guard:
    """With losses of 1.0 and 1.2 in turn, norms alike."""
    for step in range(count):
        assert judge(guard, 1.0 + 0.2 * (step % 2), 1.0 + 0.2 * (step % 2)) is None
    return guard


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_skipped_from_the_first_step_on(loss: float) -> None:
    guard = Guard(GuardConfig())
    assert judge(guard, loss) == "loss is non-finite"
    assert (guard.skipped, guard.in_a_row) == (1, 1)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_is_skipped(norm: float) -> None:
    assert judge(Guard(GuardConfig()), 1.0, norm) == "gradient norm is non-finite"


def test_a_spike_is_more_than_sigma_deviations_above_the_mean() -> None:
    guard = settled(Guard(GuardConfig(window=8, sigma=6.0)))
    assert judge(guard, 1.1 + 6.1 * 0.1) is not None
    assert judge(guard, 1.1 + 5.9 * 0.1) is None
    assert judge(guard, 1.1, norm=1.1 + 6.1 * 0.1).startswith("gradient norm 1.71 is above 1.1 + 6 x 0.1")


def test_a_fall_is_no_spike() -> None:
    assert judge(settled(Guard(GuardConfig(window=8))), -50.0, 0.0) is None


def test_half_a_window_is_needed_before_spikes_are_judged() -> None:
    guard = settled(Guard(GuardConfig(window=8)), 3)
    assert judge(guard, 100.0) is None


def test_with_sigma_zero_only_what_is_no_number_is_skipped() -> None:
    guard = settled(Guard(GuardConfig(window=8, sigma=0)))
    assert judge(guard, 1e9) is None
    assert judge(guard, math.nan) is not None


def test_equal_values_leave_room_for_one_percent_steps() -> None:
    guard = Guard(GuardConfig(window=8))
    for _ in range(8):
        judge(guard, 2.0)
    assert judge(guard, 2.1) is None
    assert judge(guard, 2.3) is not None


def test_skipped_values_do_not_enter_the_window() -> None:
    guard = settled(Guard(GuardConfig(window=8)))
    before = guard.state()
    for _ in range(5):
        assert judge(guard, 1e6) is not None
    assert guard.state() == {**before, "skipped": 5, "in_a_row": 5}


def test_patience_counts_skips_in_a_row() -> None:
    guard = settled(Guard(GuardConfig(window=8, patience=2)))
    judge(guard, math.nan)
    judge(guard, 1.0)
    judge(guard, math.nan)
    assert not guard.is_out_of_patience
    judge(guard, math.nan)
    assert guard.is_out_of_patience


def test_a_resumed_guard_decides_as_one_that_went_on() -> None:
    config = GuardConfig(window=8)
    guard = settled(Guard(config), 13)
    judge(guard, math.nan)
    resumed = Guard(config)
    resumed.load(json.loads(json.dumps(guard.state())))
    assert resumed.state() == guard.state()
    for loss in (1.05, 1.9, 1.0, 1.75, 40.0):
        assert judge(resumed, loss) == judge(guard, loss)


def test_going_back_takes_the_window_and_keeps_the_count() -> None:
    guard = settled(Guard(GuardConfig(window=8, patience=1)))
    earlier = guard.state()
    settled(guard, 3)
    judge(guard, math.nan)
    guard.rollback(earlier)
    assert guard.state() == {**earlier, "skipped": 1, "in_a_row": 0}

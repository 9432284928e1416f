"""A simulated year: Young's and Daly's formulas where they hold, what spares and asynchronous saves change."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.planner.goodput import (
    YEAR,
    Reliability,
    Saving,
    best_interval,
    daly,
    expected_share,
    mean_goodput,
    simulate,
    young,
)

DAY = 86400.0
FAILING = Reliability(mtbf=100 * DAY, nodes=400, restart=0.0)
"""A job that fails four times a day, and goes on at once."""


@pytest.mark.parametrize(("interval", "write", "restart"), [(600, 30, 0), (3600, 30, 300), (7200, 600, 900)])
def test_synchronous_saves_leave_what_dalys_model_says(interval: float, write: float, restart: float) -> None:
    reliability = replace(FAILING, restart=restart)
    found = simulate(interval, Saving.synchronous(write), reliability, span=20 * YEAR).trained
    assert found == pytest.approx(expected_share(interval, write, reliability.between_failures, restart), rel=0.01)


def test_the_best_interval_is_youngs_and_dalys() -> None:
    between = FAILING.between_failures
    for write in (5.0, 120.0):
        saving = Saving.synchronous(write)
        interval, best = best_interval(saving, FAILING)
        assert interval == pytest.approx(daly(write, between), rel=0.35)  # goodput is flat around its best
        assert mean_goodput(daly(write, between), saving, FAILING).trained == pytest.approx(best.trained, abs=2e-3)
    assert daly(5, between) == pytest.approx(young(5, between), rel=0.02)
    assert daly(3 * between, between) == between


@settings(max_examples=30, deadline=None)
@given(
    interval=st.floats(60, 1e5),
    copy=st.floats(0, 100),
    write=st.floats(0, 5000),
    nodes=st.integers(1, 500),
    spares=st.integers(0, 3),
    queue=st.floats(0, 1e5),
    seed=st.integers(0, 9),
)
def test_shares_add_up_and_asynchronous_saves_are_no_worse(interval, copy, write, nodes, spares, queue, seed) -> None:
    reliability = Reliability(30 * DAY, nodes, spares, queue=queue, repair=DAY)
    asynchronous = simulate(interval, Saving.asynchronous(min(copy, write), write), reliability, seed, YEAR / 10)
    synchronous = simulate(interval, Saving.synchronous(min(copy, write) + write), reliability, seed, YEAR / 10)
    for year in (asynchronous, synchronous):
        shares = (year.trained, year.lost, year.saving, year.restart, year.queue)
        assert min(shares) >= 0 and sum(shares) == pytest.approx(1)
    assert asynchronous.trained >= synchronous.trained - 1e-12


def test_spares_end_the_waits_in_the_queue_until_there_are_too_few() -> None:
    saving, alone = Saving.asynchronous(1, 60), Reliability(100 * DAY, 100, 0, queue=4 * 3600, repair=DAY)
    none, one, three = (mean_goodput(900, saving, replace(alone, spares=spares)) for spares in (0, 1, 3))
    assert none.requeues == pytest.approx(none.failures)
    assert none.requeues > one.requeues > three.requeues
    assert none.trained < one.trained < three.trained
    assert mean_goodput(900, saving, replace(alone, spares=1, repair=0.0)).requeues == 0


def test_a_save_waits_for_the_one_in_flight() -> None:
    saving = Saving.asynchronous(1, 60)
    assert saving.after(600) == saving
    assert saving.after(20).blocking == 41  # 20 s of training, and the rest of the save before

"""The order of samples and the keyed generator behind it: pure functions, pinned to their values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import keyed
from shards.errors import ConfigError
from shards.plan import SamplePlan, hold_out, rank_samples

LOCATIONS = [f"{i // 3:07d}" for i in range(300)]

# Worked out with Python integers from the published algorithm: another generator or key is another training run.
KEY = 16696152578227770892
UNIFORM = [
    [0.18293336303363628, 0.8528052148646577, 0.6224097420000472],
    [0.4804067662840321, 0.17910864604383414, 0.6477106518138064],
]
PERMUTATION = [1, 8, 5, 7, 0, 9, 4, 6, 3, 2]
ORDER = [6, 7, 1, 3, 2, 0, 5, 4, 3, 5, 2, 6]
HELD_OUT = [2, 5, 8, 17]

few = settings(max_examples=40, deadline=None, database=None)


def _plan(count=37, dataset="a" * 64, seed=0, first=0):
    return SamplePlan(np.arange(first, first + count), dataset, seed)


def _epoch(plan, epoch):
    return plan.tiles(np.arange(len(plan.rows)) + epoch * len(plan.rows))


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5])
def test_no_location_is_both_trained_on_and_held_out(share):
    train, held = hold_out(LOCATIONS, share, seed=0)
    assert sorted([*train, *held]) == list(range(300))
    places = [{LOCATIONS[row] for row in rows} for rows in (train, held)]
    assert places[0].isdisjoint(places[1])
    assert len(places[1]) == max(1, round(share * 100))
    assert np.all(np.diff(train) > 0)
    assert np.all(np.diff(held) > 0)


def test_the_held_out_locations_depend_on_the_seed_and_not_on_the_order_of_rows():
    def names(locations, seed):
        return {locations[row] for row in hold_out(locations, 0.1, seed)[1]}

    assert names(LOCATIONS, 0) == names(LOCATIONS, 0) == names(LOCATIONS[::-1], 0)
    assert names(LOCATIONS, 0) != names(LOCATIONS, 1)


def test_a_share_of_zero_holds_nothing_out():
    train, held = hold_out(LOCATIONS, 0, seed=0)
    assert (len(train), len(held)) == (300, 0)


@pytest.mark.parametrize(("locations", "share"), [(["a", "a"], 0.01), (["a", "b"], 0.9), ([], 0.1)])
def test_too_few_locations_to_hold_out_are_refused(locations, share):
    with pytest.raises(ConfigError, match=r"'data\.holdout'"):
        hold_out(locations, share, seed=0)


@few
@given(st.integers(1, 200), st.integers(0, 2**31), st.integers(0, 1000))
def test_an_epoch_visits_every_tile_once(count, seed, epoch):
    plan = _plan(count, seed=seed, first=5)
    assert sorted(_epoch(plan, epoch)) == list(range(5, 5 + count))


def test_epochs_seeds_and_datasets_have_orders_of_their_own():
    orders = [_epoch(_plan(), 0), _epoch(_plan(), 1), _epoch(_plan(seed=1), 0), _epoch(_plan(dataset="b" * 64), 0)]
    assert len({tuple(order) for order in orders}) == 4
    np.testing.assert_array_equal(_epoch(_plan(), 1), _epoch(_plan(), 1))


@pytest.mark.parametrize("batch", [1, 5, 16, 37, 50, 111])
def test_batches_of_any_size_cut_the_same_sequence(batch):
    plan = _plan()
    whole = np.concatenate([_epoch(plan, epoch) for epoch in range(4)])
    numbers = np.arange(len(whole))
    parts = [plan.tiles(numbers[i : i + batch]) for i in range(0, len(whole), batch)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(plan.epochs(numbers), numbers // 37)


def test_samples_may_be_asked_for_in_any_order():
    plan, numbers = _plan(), np.random.default_rng(0).permutation(37 * 6)
    whole = np.concatenate([_epoch(plan, epoch) for epoch in range(6)])
    np.testing.assert_array_equal(plan.tiles(numbers), whole[numbers])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_ranks_of_any_world_together_take_the_same_samples(world_size):
    plan = _plan()
    steps = [
        np.concatenate([rank_samples(step, 16, rank, world_size) for rank in range(world_size)]) for step in range(9)
    ]
    np.testing.assert_array_equal(np.concatenate(steps), np.arange(9 * 16))
    one = plan.tiles(np.arange(9 * 16))
    np.testing.assert_array_equal(np.concatenate([plan.tiles(step) for step in steps]), one)


def test_the_order_is_pinned():
    assert _plan(8, dataset="0" * 64).tiles(np.arange(12)).tolist() == ORDER


def test_the_held_out_locations_are_pinned():
    assert hold_out([f"{i:07d}" for i in range(20)], 0.2, seed=3)[1].tolist() == HELD_OUT


def test_hashes_are_splitmix64():
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert keyed.hashes(1234567, np.arange(5)).tolist() == published


def test_keys_are_pinned_and_tell_their_parts_apart():
    assert keyed.key(0, "mask") == KEY
    parts = [(1, 2), (12,), (2, 1), (1, "2"), ("1", 2), (1, 2, 0), ("1, 2",)]
    assert len({keyed.key(*part) for part in parts}) == len(parts)


def test_uniform_numbers_are_pinned():
    assert keyed.uniform(keyed.key(0, "mask"), np.array([0, 1]), 3).tolist() == UNIFORM


def test_uniform_numbers_belong_to_the_sample_whatever_the_batch():
    samples = np.array([5, 2**40, 0, 9, 5])
    numbers = keyed.uniform(42, samples, 6)
    for i in range(5):
        np.testing.assert_array_equal(numbers[i], keyed.uniform(42, samples[i : i + 1], 6)[0])
    np.testing.assert_array_equal(numbers[:, :2], keyed.uniform(42, samples, 2))
    np.testing.assert_array_equal(numbers[0], numbers[4])
    assert not np.any(numbers == keyed.uniform(43, samples, 6))


def test_uniform_numbers_are_uniform_and_unrelated():
    numbers = keyed.uniform(keyed.key(0, "flip"), np.arange(20000), 8)
    assert numbers.dtype == np.float64
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=50, range=(0, 1))[0]
    expected = numbers.size / 50
    assert np.sum((counts - expected) ** 2 / expected) < 86  # chi-squared with 49 degrees, p = 0.001
    correlation = np.corrcoef(np.vstack([numbers.T, np.roll(numbers[:, 0], 1)]))
    assert np.abs(correlation - np.eye(9)).max() < 0.03
    assert len(np.unique(numbers)) == numbers.size


@few
@given(st.integers(0, 2**64 - 1), st.integers(0, 300))
def test_a_permutation_has_every_number_once(base, length):
    assert sorted(keyed.permutation(base, length).tolist()) == list(range(length))


def test_permutations_are_pinned():
    assert keyed.permutation(7, 10).tolist() == PERMUTATION


def test_every_place_is_as_likely_in_a_permutation():
    places = np.stack([keyed.permutation(keyed.key(seed), 8) for seed in range(4000)])
    counts = np.stack([np.bincount(places[:, i], minlength=8) for i in range(8)])
    assert np.abs(counts / 500 - 1).max() < 0.2

"""Datasets that grow by appends: who is held out, and what an epoch visits, after each of them."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.tables import make_table

from shards.errors import ConfigError
from shards.order.plan import SamplePlan, rank_samples, train_val_split
from shards.order.selection import OrderConfig

LOCATIONS = st.integers(0, 60).map("{:07d}".format)
APPENDS = st.lists(st.lists(LOCATIONS, max_size=12), min_size=1, max_size=6)
"""The locations of the tiles that each append brings; some of them had tiles before."""

SHARES = st.floats(0.01, 0.9)
SEEDS = st.integers(0, 2**32 - 1)
ORDERS = st.builds(
    OrderConfig,
    shuffle=st.sampled_from(["global", "windowed"]),
    window=st.integers(1, 5),
    sampling=st.sampled_from(["tile", "location"]),
)


def _sides(shards, share, seed):
    """The names of the locations to train on and of those held out, or None where they are too few."""
    table = make_table(shards)
    try:
        return [set(table["location"][rows].tolist()) for rows in train_val_split(table, share, seed)]
    except ConfigError:
        return None


@settings(max_examples=30, deadline=None)
@given(APPENDS, SHARES, SEEDS)
def test_no_location_changes_sides_but_one_that_was_held_out_for_want_of_others(appends, share, seed):
    grown = [_sides(appends[: count + 1], share, seed) for count in range(len(appends))]
    for before, after in pairwise(grown):
        if before is None or after is None:
            continue
        (train, held), (train_later, held_later) = before, after
        assert train <= train_later
        moved = held & train_later
        assert not moved or (moved == held and len(held) == 1)
        assert held - moved <= held_later


@settings(max_examples=30, deadline=None)
@given(APPENDS, SHARES, SEEDS)
def test_a_location_that_is_once_below_the_share_is_held_out_for_good(appends, share, seed):
    """Whether it is shows beside others: then it is one of two or more that are held out."""
    grown = [_sides(appends[: count + 1], share, seed) for count in range(len(appends))]
    below = set()
    for train, held in filter(None, grown):
        assert below.isdisjoint(train)
        below |= held if len(held) > 1 else set()


@settings(max_examples=25, deadline=None)
@given(APPENDS, SHARES, SEEDS, st.randoms(use_true_random=False))
def test_the_split_does_not_depend_on_how_the_dataset_grew(appends, share, seed, random):
    tiles = [place for append in appends for place in append]
    mixed = random.sample(tiles, len(tiles))
    cut = random.randint(0, len(tiles))
    assert _sides(appends, share, seed) == _sides([mixed[:cut], mixed[cut:]], share, seed)


@settings(max_examples=60, deadline=None)
@given(APPENDS, ORDERS, SEEDS, st.integers(1, 4), st.integers(1, 9), st.data())
def test_each_epoch_is_a_permutation_for_any_number_of_ranks_and_batch(appends, order, seed, world, share, data):
    table = make_table(appends)
    assume(len(table))
    rows = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=len(table), max_size=len(table))))
    assume(len(rows))
    plan = SamplePlan(table, rows, "a" * 64, seed, order)
    steps = -(-3 * len(plan) // (world * share))
    batch = world * share
    drawn = [plan.tiles(rank_samples(step, batch, rank, world)) for step in range(steps) for rank in range(world)]
    stream = np.concatenate(drawn)
    units = rows if order.sampling == "tile" else np.unique(table["location_id"][rows])
    for epoch in range(3):
        visited = stream[epoch * len(plan) : (epoch + 1) * len(plan)]
        assert set(visited) <= set(rows)
        found = visited if order.sampling == "tile" else table["location_id"][visited]
        assert sorted(found) == units.tolist()


@pytest.mark.parametrize("window", [1, 2, 16])
def test_a_view_without_the_first_tiles_of_locations_that_grew_is_visited_whole(window):
    """Then the locations' first rows are not in the order of their numbers."""
    table = make_table([["a", "b", "c"], ["c", "a"], ["b", "d"]])
    plan = SamplePlan(
        table, np.arange(2, 7), "a" * 64, 0, OrderConfig(shuffle="windowed", window=window, sampling="location")
    )
    assert (np.diff(plan.units.shard.astype(int)) < 0).any()
    for epoch in range(5):
        visited = plan.tiles(np.arange(4) + 4 * epoch)
        assert sorted(table["location"][visited]) == [b"a", b"b", b"c", b"d"]


@settings(max_examples=40, deadline=None)
@given(APPENDS, ORDERS, SEEDS, st.integers(0, 200))
def test_the_shards_of_an_epoch_are_named_once_and_before_they_are_needed(appends, order, seed, sample):
    table = make_table(appends)
    assume(len(table))
    plan = SamplePlan(table, np.arange(len(table)), "a" * 64, seed, order)
    coming = plan.shards_from(sample).tolist()
    assert sorted(coming) == np.unique(plan.units.shard).tolist()
    if order.shuffle == "windowed" and order.sampling == "tile":
        ahead = table["shard"][plan.tiles(np.arange(sample, (sample // len(plan) + 1) * len(plan)))]
        needed = list(dict.fromkeys(ahead.tolist()))
        assert all(coming.index(shard) // order.window <= place for place, shard in enumerate(needed))

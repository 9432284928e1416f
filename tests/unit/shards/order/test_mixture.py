"""The order over several datasets: exact shares, every source as if it were alone, the same on any number of ranks."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tables import archive_table

from shards.errors import ConfigError
from shards.order.mixture import LONGEST_CYCLE, MixturePlan, SourceOrder, whole_weights
from shards.order.plan import SamplePlan, rank_samples
from shards.order.selection import OrderConfig

few = settings(max_examples=25, deadline=None, database=None)
weight_lists = st.lists(st.integers(1, 20), min_size=1, max_size=5).map(
    lambda found: tuple(weight // math.gcd(*found) for weight in found)
)

# Worked out with Python integers from the published generator: another order is another training run.
SOURCES = [0, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0]
NUMBERS = [0, 0, 2, 4, 6, 8, 10, 2, 4, 12, 14, 16]

TABLES = [archive_table(20, per_shard=9), archive_table(7, per_shard=4), archive_table(50, per_shard=30)]


def _plan(weights=(3, 1, 2), seed=0, block=4, begin=0, shuffle="global"):
    order = OrderConfig(shuffle=shuffle, window=2)
    plans = [
        SamplePlan(table, np.arange(len(table)), letter * 64, seed, order)
        for table, letter in zip(TABLES, "abc", strict=True)
    ]
    first_rows = np.cumsum([0, *map(len, TABLES)])[:-1]
    first_shards = np.cumsum([0, *(int(table["shard"].max()) + 1 for table in TABLES)])[:-1]
    return MixturePlan(plans, first_rows, first_shards, SourceOrder(weights, seed, block), begin)


def test_the_order_is_pinned():
    sources, numbers = SourceOrder((3, 1), 0, 2).locate(np.arange(24))
    assert sources[::2].tolist() == SOURCES
    assert numbers[::2].tolist() == NUMBERS


@few
@given(weight_lists, st.integers(0, 2**31), st.integers(1, 9), st.integers(0, 10**12))
def test_every_cycle_has_exactly_the_shares(weights, seed, block, cycle):
    length = sum(weights) * block
    sources, _ = SourceOrder(weights, seed, block).locate(np.arange(length) + cycle * length)
    assert np.bincount(sources, minlength=len(weights)).tolist() == [weight * block for weight in weights]


@few
@given(weight_lists, st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 60))
def test_the_samples_of_every_source_follow_each_other_without_a_gap(weights, seed, block, blocks):
    sources, numbers = SourceOrder(weights, seed, block).locate(np.arange(blocks * block))
    for source in range(len(weights)):
        own = numbers[sources == source]
        assert own.tolist() == list(range(len(own)))


@few
@given(weight_lists, st.integers(0, 2**31), st.integers(1, 9), st.integers(0, 2000))
def test_samples_are_counted_by_source(weights, seed, block, sample):
    order = SourceOrder(weights, seed, block)
    sources, _ = order.locate(np.arange(sample))
    assert order.counts(sample).tolist() == np.bincount(sources, minlength=len(weights)).tolist()


@few
@given(weight_lists, st.integers(0, 2**31), st.integers(1, 9), st.integers(0, 10**6))
def test_a_block_has_one_source(weights, seed, block, number):
    sources, _ = SourceOrder(weights, seed, block).locate(np.arange(block) + number * block)
    assert len(set(sources.tolist())) == 1


@few
@given(weight_lists, st.integers(0, 2**31), st.lists(st.integers(0, 10**15), min_size=1, max_size=50))
def test_any_request_gives_what_each_sample_alone_gives(weights, seed, samples):
    order = SourceOrder(weights, seed, 4)
    together = order.locate(np.asarray(samples))
    alone = [order.locate(np.asarray([sample])) for sample in samples]
    for part in range(2):
        np.testing.assert_array_equal(together[part], np.concatenate([found[part] for found in alone]))


@few
@given(weight_lists, st.integers(0, 2**31))
def test_the_sources_are_spread_over_a_cycle(weights, seed):
    length = sum(weights)
    sources, _ = SourceOrder(weights, seed, 1).locate(np.arange(length))
    for source, weight in enumerate(weights):
        seen = np.cumsum(sources == source)
        expected = weight * np.arange(1, length + 1) / length
        assert np.abs(seen - expected).max() < len(weights) + 1


def test_cycles_and_seeds_have_orders_of_their_own():
    weights = (5, 4)
    first, second = (SourceOrder(weights, 0, 1).locate(np.arange(9) + begin)[0].tolist() for begin in (0, 9))
    assert first != second
    assert SourceOrder(weights, 1, 1).locate(np.arange(9))[0].tolist() != first


@pytest.mark.parametrize(
    ("weights", "whole"),
    [([3, 1], (3, 1)), ([6, 2], (3, 1)), ([0.5, 1.5], (1, 3)), ([0.1, 0.2, 0.7], (1, 2, 7)), ([2.5], (1,))],
)
def test_weights_become_the_smallest_whole_numbers(weights, whole):
    assert whole_weights(weights) == whole


@pytest.mark.parametrize("weights", [[LONGEST_CYCLE, 1], [0.1 + 0.2, 1], [1e-300, 1]])
def test_weights_that_repeat_too_late_are_refused(weights):
    with pytest.raises(ConfigError, match=r"'data\.sources': weights .*: round them"):
        whole_weights(weights)


# ---- with the orders of the datasets ----


@pytest.mark.parametrize("shuffle", ["global", "windowed"])
def test_each_source_is_visited_as_if_it_were_alone(shuffle):
    plan, samples = _plan(shuffle=shuffle), np.arange(24 * 20)
    sources, tiles, pairs = plan.sources(samples), plan.tiles(samples), plan.pairs(samples)
    begin = 0
    for source, alone in enumerate(plan.plans):
        own = sources == source
        np.testing.assert_array_equal(tiles[own], alone.tiles(np.arange(own.sum())) + begin)
        np.testing.assert_array_equal(pairs[own], alone.pairs(np.arange(own.sum())) + begin)
        np.testing.assert_array_equal(plan.epochs(samples)[own], alone.epochs(np.arange(own.sum())))
        begin += len(TABLES[source])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_a_step_and_any_world_size_makes_the_same_stream(world):
    plan = _plan()
    steps = [
        np.concatenate([plan.tiles(rank_samples(step, 24, rank, world)) for rank in range(world)]) for step in range(20)
    ]
    np.testing.assert_array_equal(np.concatenate(steps), plan.tiles(np.arange(480)))


def test_shards_are_announced_for_the_source_of_a_sample():
    plan = _plan(shuffle="windowed")
    begin = 0
    for source, alone in enumerate(plan.plans):
        sample = int(np.flatnonzero(plan.sources(np.arange(100)) == source)[0])
        np.testing.assert_array_equal(plan.shards_from(sample), alone.shards_from(0) + begin)
        begin += int(TABLES[source]["shard"].max()) + 1


def test_an_order_that_begins_later_is_the_same_order():
    later = _plan(begin=96)
    np.testing.assert_array_equal(later.tiles(np.arange(50) + 96), _plan().tiles(np.arange(50)))
    np.testing.assert_array_equal(_plan().starting_at(96).tiles(np.arange(50) + 96), _plan().tiles(np.arange(50)))


def test_the_hash_changes_with_the_sources_and_their_shares():
    assert _plan().dataset == _plan(seed=1, block=8).dataset
    assert _plan().dataset != _plan((3, 2, 1)).dataset

"""The order of samples and the keyed generator behind it: pure functions, pinned to their values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tables import archive_table, make_table

from shards.errors import ConfigError
from shards.order.plan import SamplePlan, rank_samples, train_val_split
from shards.order.random_bits import fold_in, permute, random_bits, uniform
from shards.order.selection import OrderConfig

TABLE = archive_table(150)
ORDERS = [
    OrderConfig(shuffle=shuffle, window=window, sampling=sampling)
    for shuffle, window in (("global", 16), ("windowed", 1), ("windowed", 3), ("windowed", 1000))
    for sampling in ("tile", "location")
]

# Worked out with Python integers from the published algorithm: another generator or key is another training run.
KEY = 16696152578227770892
UNIFORM = [
    [0.18293336303363628, 0.8528052148646577, 0.6224097420000472],
    [0.4804067662840321, 0.17910864604383414, 0.6477106518138064],
]
PERMUTATION = [8, 2, 6, 9, 4, 1, 7, 3, 5, 0]
ORDER = [
    [4, 6, 5, 3, 2, 0, 1, 3, 4],
    [6, 2, 1, 5, 3, 4, 6, 0, 3],
    [3, 5, 4, 2, 0, 1, 6, 6, 4],
    [3, 5, 2, 1, 6, 6, 4, 3, 0],
]
HELD_OUT = [4, 14, 15, 16]

few = settings(max_examples=15, deadline=None, database=None)


def _plan(rows=None, dataset="a" * 64, seed=0, order=None, table=TABLE):
    return SamplePlan(table, np.arange(len(table)) if rows is None else rows, dataset, seed, order)


def _epoch(plan, epoch):
    return plan.tiles(np.arange(len(plan)) + epoch * len(plan))


def test_the_orders_are_pinned():
    table = make_table([["a", "a", "b"], ["c", "d", "d"], ["e"]])
    found = [_plan(dataset="0" * 64, order=order, table=table).tiles(np.arange(9)).tolist() for order in ORDERS[:4]]
    assert found == ORDER
    assert train_val_split(make_table([[f"{i:07d}" for i in range(20)]]), 0.2, seed=3)[1].tolist() == HELD_OUT


# ---- held-out locations ----


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5])
def test_no_location_is_both_trained_on_and_held_out(share):
    train, held = train_val_split(TABLE, share, seed=0)
    assert sorted([*train, *held]) == list(range(len(TABLE)))
    places = [set(TABLE["location"][rows]) for rows in (train, held)]
    assert places[0].isdisjoint(places[1])
    assert max(1, share * 150 - 20) <= len(places[1]) <= share * 150 + 20
    assert np.all(np.diff(train) > 0)
    assert np.all(np.diff(held) > 0)


def test_the_held_out_locations_depend_on_their_names_and_the_seed_alone():
    def names(table, seed):
        return set(table["location"][train_val_split(table, 0.1, seed)[1]])

    names_of = [name.decode() for name in TABLE["location"]]
    assert names(TABLE, 0) == names(make_table([names_of[::-1]]), 0)
    assert names(TABLE, 0) != names(TABLE, 1)


def test_a_wider_text_column_holds_out_the_same_locations():
    short = make_table([[f"{i:07d}" for i in range(50)]])
    mixed = make_table([[f"{i:07d}" for i in range(50)] + ["a-very-long-name-of-a-place"]])
    held = [set(table["location"][train_val_split(table, 0.1, 3)[1]]) for table in (short, mixed)]
    assert held[0] == held[1] - {b"a-very-long-name-of-a-place"}


@few
@given(st.integers(2, 60), st.integers(1, 60), st.floats(0.02, 0.9), st.integers(0, 2**31), st.randoms())
def test_a_location_keeps_its_side_when_the_dataset_grows(before, more, share, seed, rng):
    names = [f"{rng.randrange(10**7):07d}" for _ in range(before + more)]
    small, large = make_table([names[:before]]), make_table([rng.sample(names, len(names))])
    try:
        (train, held), (train_later, held_later) = (
            [set(table["location"][rows].tolist()) for rows in train_val_split(table, share, seed)]
            for table in (small, large)
        )
    except ConfigError:
        return
    assert train <= train_later
    if len(held) > 1:  # one may be there alone for want of any below the share
        assert held <= held_later


def test_the_share_is_held_out_over_many_seeds():
    counts = [len(set(TABLE["location"][train_val_split(TABLE, 0.1, seed)[1]])) for seed in range(100)]
    assert 14 < np.mean(counts) < 16


def test_only_given_rows_are_split():
    rows = np.arange(10, 60)
    train, held = train_val_split(TABLE, 0.2, 0, rows)
    assert sorted([*train, *held]) == rows.tolist()


def test_a_share_of_zero_holds_nothing_out():
    train, held = train_val_split(TABLE, 0, seed=0)
    assert (len(train), len(held)) == (len(TABLE), 0)


def test_a_view_without_tiles_leaves_none_on_either_side():
    train, held = train_val_split(TABLE, 0.1, 0, np.arange(0))
    assert (len(train), len(held)) == (0, 0)


@pytest.mark.parametrize(("locations", "share"), [(["a", "a"], 0.01), (["a", "b"], 0.9)])
def test_too_few_locations_to_hold_out_are_refused(locations, share):
    with pytest.raises(ConfigError, match=r"'data\.holdout'"):
        train_val_split(make_table([locations]), share, seed=0)


# ---- epochs ----


@few
@given(st.integers(1, 400), st.integers(0, 2**31), st.integers(0, 1000), st.sampled_from(ORDERS))
def test_an_epoch_visits_every_unit_once(locations, seed, epoch, order):
    table = archive_table(locations, per_shard=7)
    rows = np.arange(len(table))[len(table) // 3 :]
    visited = _epoch(_plan(rows, seed=seed, order=order, table=table), epoch)
    if order.sampling == "tile":
        assert sorted(visited) == rows.tolist()
    else:
        assert sorted(table["location_id"][visited]) == sorted(set(table["location_id"][rows]))
        assert set(visited) <= set(rows)


@pytest.mark.parametrize("order", ORDERS)
def test_epochs_seeds_and_datasets_have_orders_of_their_own(order):
    plans = [_plan(order=order), _plan(order=order, seed=1), _plan(order=order, dataset="b" * 64)]
    orders = [_epoch(plans[0], 0), _epoch(plans[0], 1), _epoch(plans[1], 0), _epoch(plans[2], 0)]
    assert len({tuple(order) for order in orders}) == 4
    np.testing.assert_array_equal(_epoch(_plan(order=order), 1), _epoch(plans[0], 1))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("batch", [1, 37, 301, 1000])
def test_batches_of_any_size_cut_the_same_sequence(order, batch):
    plan = _plan(order=order)
    whole = plan.pairs(np.arange(900))
    cut = [plan.pairs(np.arange(begin, min(begin + batch, 900))) for begin in range(0, 900, batch)]
    np.testing.assert_array_equal(np.concatenate(cut), whole)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_share_a_step_and_any_world_size_makes_the_same_stream(order, world):
    plan = _plan(order=order)
    steps = [
        np.concatenate([plan.tiles(rank_samples(step, 12, rank, world)) for rank in range(world)]) for step in range(40)
    ]
    np.testing.assert_array_equal(np.concatenate(steps), plan.tiles(np.arange(480)))


def test_windows_read_few_shards_at_a_time_and_shuffle_inside():
    plan = _plan(order=OrderConfig(shuffle="windowed", window=2))
    shards = TABLE["shard"][_epoch(plan, 0)]
    seen, windows = [], []
    for shard in shards:
        if shard not in seen:
            seen.append(shard)
    for begin in range(0, len(seen), 2):
        here = np.flatnonzero(np.isin(shards, seen[begin : begin + 2]))
        windows.append(here)
        assert here.max() - here.min() == len(here) - 1  # contiguous: no other shard in between
        if len(seen[begin : begin + 2]) == 2:
            assert np.count_nonzero(np.diff(shards[here])) > 5  # mixed, not one after the other
    assert sum(map(len, windows)) == len(TABLE)
    assert [set(plan.shards_from(0)[i : i + 2]) for i in (0, 2, 4)] == [set(seen[i : i + 2]) for i in (0, 2, 4)]
    later = plan.shards_from(int(windows[1][3]))
    assert set(later[:2]) == set(seen[2:4])


def test_location_sampling_draws_all_timestamps_over_the_epochs():
    plan = _plan(order=OrderConfig(sampling="location"))
    counts = np.zeros(len(TABLE), dtype=int)
    for epoch in range(60):
        counts[_epoch(plan, epoch)] += 1
    sizes = np.bincount(TABLE["location_id"])[TABLE["location_id"]]
    assert np.all(counts[sizes == 1] == 60)
    assert counts[sizes == 3].min() > 5
    assert abs(counts[sizes == 3].mean() - 20) < 1e-9


def test_pairs_are_two_timestamps_of_one_location_where_there_are_two():
    plan = _plan(order=OrderConfig(sampling="location"))
    pairs = plan.pairs(np.arange(3 * len(plan)))
    places = TABLE["location_id"][pairs]
    np.testing.assert_array_equal(places[:, 0], places[:, 1])
    single = np.bincount(TABLE["location_id"])[places[:, 0]] == 1
    assert np.all((pairs[:, 0] == pairs[:, 1]) == single)
    np.testing.assert_array_equal(pairs[:, 0], plan.tiles(np.arange(3 * len(plan))))


def test_a_location_that_grew_by_append_is_one_unit():
    table = make_table([["a", "a", "b"], ["c", "a"]])
    plan = _plan(order=OrderConfig(sampling="location"), table=table)
    assert len(plan) == 3
    drawn = {int(row) for epoch in range(40) for row in _epoch(plan, epoch)}
    assert drawn == set(range(5))


def test_no_rows_is_a_clear_error():
    with pytest.raises(ConfigError, match="no tile is left"):
        _plan(np.arange(0))


def test_half_a_million_tiles_cost_a_batch_no_more_than_its_own_numbers():
    """The order is computed for the asked positions: no permutation of the dataset is held or made."""
    count = 540_000
    positions = permute(5, count, np.arange(0, count, 5003))
    assert len(set(positions.tolist())) == len(positions)
    assert positions.max() < count


# ---- the generator ----


def test_hashes_are_splitmix64():
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert random_bits(1234567, np.arange(5)).tolist() == published


def test_keys_are_pinned_and_tell_their_parts_apart():
    assert fold_in(0, "mask") == KEY
    parts = [(1, 2), (12,), (2, 1), (1, "2"), ("1", 2), (1, 2, 0), ("1, 2",)]
    assert len({fold_in(*part) for part in parts}) == len(parts)


def test_uniform_numbers_are_pinned():
    assert uniform(fold_in(0, "mask"), np.array([0, 1]), 3).tolist() == UNIFORM


def test_uniform_numbers_belong_to_the_sample_whatever_the_batch():
    samples = np.array([5, 2**40, 0, 9, 5])
    numbers = uniform(42, samples, 6)
    for i in range(5):
        np.testing.assert_array_equal(numbers[i], uniform(42, samples[i : i + 1], 6)[0])
    np.testing.assert_array_equal(numbers[:, :2], uniform(42, samples, 2))
    np.testing.assert_array_equal(numbers[0], numbers[4])
    assert not np.any(numbers == uniform(43, samples, 6))


def test_uniform_numbers_are_uniform_and_unrelated():
    numbers = uniform(fold_in(0, "flip"), np.arange(20000), 8)
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
@given(st.integers(0, 2**63), st.integers(1, 3000))
def test_permute_is_a_bijection(base, length):
    assert sorted(permute(base, length, np.arange(length))) == list(range(length))


def test_permute_is_pinned():
    assert permute(3, 10, np.arange(10)).tolist() == PERMUTATION


def test_permute_leaves_no_visible_order():
    """Neighbours land far apart, and every position is hit from everywhere alike (chi-square on a 16 x 16 grid)."""
    length = 1 << 14
    moved = permute(11, length, np.arange(length))
    assert abs(np.corrcoef(np.arange(length), moved)[0, 1]) < 0.03
    grid = np.histogram2d(np.arange(length), moved, bins=16)[0]
    assert ((grid - 64) ** 2 / 64).sum() < 330  # 225 degrees of freedom, mean 225, sigma 21

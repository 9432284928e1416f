"""Windows over a scene: read once, and blended without seams."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.predict.sliding_window import WindowPlan, blend, window_weight
from shards.sensors.sensor import NODATA


def test_every_row_is_read_once_and_leaves_as_soon_as_it_is_done():
    plan, asked, given = WindowPlan(45, 30, 16, 8, 4), [], []

    def read(begin, end):
        asked.append((begin, end))
        return np.ones((3, end - begin, 30), np.int16)

    def predict(windows):
        return np.ones((len(windows), 2, 4, 4), np.float32)

    for part in blend(plan, read, predict, 2, 3, lambda *_: None):
        assert np.allclose(part, 1)
        given.append((part.shape, len(asked)))
    assert asked == [(0, 16), (16, 24), (24, 32), (32, 40), (40, 45)]
    assert given == [((2, 2, 8), 1), ((2, 2, 8), 2), ((2, 2, 8), 3), ((2, 2, 8), 4), ((2, 4, 8), 5)]


def test_windows_at_half_overlap_add_up_to_one():
    weight = window_weight(16)
    assert np.allclose(weight[:8, :8] + weight[8:, :8] + weight[:8, 8:] + weight[8:, 8:], 1)
    assert weight.min() > 0


@st.composite
def plans(draw):
    """Scenes from one pixel to several windows, with steps up to the window's size."""
    cell, side = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    step = cell * draw(st.integers(1, side))
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    return WindowPlan(height, width, cell * side, step, cell)


def _blended(plan, values, predict, channels=1, batch=3):
    """The whole map, and the windows that were counted as (predicted, without data)."""
    counts = []

    def read(begin, end):
        assert 0 <= begin < end <= plan.height
        return values[:, begin:end]

    parts = list(blend(plan, read, predict, channels, batch, lambda *counted: counts.append(counted)))
    return np.concatenate(parts, 1), tuple(map(sum, zip(*counts, strict=True)))


def _of_cells(plan, values):
    """The pixels (height, width) of each cell, (down, right, pixels); NaN beyond the scene."""
    down, right = (length * plan.cell for length in plan.grid)
    padded = np.pad(values.astype(float), ((0, down - plan.height), (0, right - plan.width)), constant_values=np.nan)
    cells = padded.reshape(plan.grid[0], plan.cell, plan.grid[1], plan.cell).transpose(0, 2, 1, 3)
    return cells.reshape(*plan.grid, -1)


@settings(max_examples=60, deadline=None)
@given(plans())
def test_every_pixel_is_under_a_window_that_lies_on_the_cells(plan):
    for begins, length in ((plan.rows, plan.height), (plan.columns, plan.width)):
        assert begins == sorted(set(begins)) and begins[0] == 0
        assert all(begin % plan.cell == 0 and begin < length for begin in begins)
        assert set().union(*(range(begin, begin + plan.size) for begin in begins)) >= set(range(length))
        assert begins[-1] + plan.size < max(length, plan.size) + plan.cell


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 512))
def test_weights_are_positive_symmetric_and_greatest_at_the_center(side):
    weight = window_weight(side)
    assert weight.shape == (side, side) and weight.dtype == np.float32 and weight.min() > 0
    np.testing.assert_allclose(weight, weight[::-1, ::-1].T, rtol=1e-5)
    assert weight[side // 2, side // 2] == weight.max()


@settings(max_examples=60, deadline=None)
@given(plans(), st.floats(-1e4, 1e4, width=32), st.integers(1, 9))
def test_what_every_window_says_alike_is_the_map(plan, level, batch):
    side = plan.size // plan.cell

    def predict(windows):
        return np.full((len(windows), 2, side, side), level, np.float32)

    found, counted = _blended(plan, np.ones((3, plan.height, plan.width), np.int16), predict, 2, batch)
    assert found.shape == (2, *plan.grid)
    np.testing.assert_allclose(found, level, rtol=1e-5, atol=1e-30)
    assert counted == (len(plan.rows) * len(plan.columns), 0)


@settings(max_examples=60, deadline=None)
@given(plans(), st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_each_cell_gets_its_own_values_and_cells_without_data_get_none(plan, seed, batch):
    """A prediction of each cell from its own pixels comes out as without windows."""
    rng, side = np.random.default_rng(seed), plan.size // plan.cell
    values = rng.integers(1, 9, (1, plan.height, plan.width)).astype(np.int16)
    values[0, rng.random((plan.height, plan.width)) < rng.choice([0, 0.5, 0.95, 1])] = NODATA

    def predict(windows):
        assert (windows != NODATA).any((1, 2, 3)).all()
        known = np.where(windows == NODATA, 0, windows).astype(np.float32)
        return known.reshape(-1, 1, side, plan.cell, side, plan.cell).sum((3, 5))

    found, (predicted, left_out) = _blended(plan, values, predict, 1, batch)
    cells = _of_cells(plan, np.where(values[0] == NODATA, np.nan, values[0]))
    wanted = np.where(np.isnan(cells).all(-1), np.nan, np.nansum(cells, -1))
    np.testing.assert_allclose(found[0], wanted, rtol=1e-5)
    assert predicted + left_out == len(plan.rows) * len(plan.columns)

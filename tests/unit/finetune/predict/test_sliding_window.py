"""Windows over a scene: read once, and blended without seams."""

import numpy as np

from finetune.predict.sliding_window import WindowPlan, blend, window_weight


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

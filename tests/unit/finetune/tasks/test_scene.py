"""Maps of tiles: every split is a set of regions that don't touch those of another."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.tasks import get_task, task_names
from finetune.tasks.scene import LETTERS, UNUSED, Scene, find_touching
from shards.config import check_config
from shards.errors import ConfigError
from shards.sensors.sensor import get_sensor
from shards.sources.layouts import SPLITS

SCENES = [name for name in task_names() if get_task(name).scene]
VALUES = {"shape": [40, 35, 5], "tile": 10, "split": "T.V\nT..\n..X\nXXX"}


@pytest.mark.parametrize("name", SCENES)
def test_a_published_split_has_tiles_in_every_split(name):
    task = get_task(name)
    assert all(task.scene.tiles_of(split) for split in SPLITS)
    if not task.sensor.endswith(".csv"):  # bands that are not published
        assert get_sensor(task.sensor).num_bands == task.scene.shape[2]


def test_the_tiles_of_a_split_are_in_reading_order():
    scene = check_config(VALUES, Scene, "here")
    assert scene.grid == (4, 3)
    assert scene.tiles_of("test") == [(2, 2), (3, 0), (3, 1), (3, 2)]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"split": "T.V\nT..\n..X"}, "expected 4 lines of 3 letters"),
        ({"split": "T.V\nT..\n..X\nXX"}, "expected 4 lines of 3 letters"),
        ({"split": "T.V\nT..\n..X\nXXS"}, "unknown letter 'S': use T, V, X and '.'"),
        ({"split": "T.V\nT.X\n...\nXXX"}, "the tiles in row 0, column 2 and row 1, column 2 touch"),
        ({"split": "T..\n.V.\n...\nXXX"}, "the tiles in row 0, column 0 and row 1, column 1 touch"),
        ({"shape": [40, 35]}, "shape"),
        ({"tile": 0}, "key 'tile'"),
    ],
)
def test_a_map_that_does_not_fit_is_one_line(values, says):
    with pytest.raises(ConfigError) as raised:
        check_config(VALUES | values, Scene, "here")
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@given(st.lists(st.lists(st.sampled_from([*LETTERS.values(), UNUSED]), min_size=4, max_size=4), min_size=1, max_size=4))
def test_tiles_touch_if_their_distance_is_one(rows):
    letters = np.array(rows)
    tiles = [(row, column) for row, column in np.ndindex(letters.shape) if letters[row, column] != UNUSED]
    touch = any(
        letters[one] != letters[other] and max(abs(one[0] - other[0]), abs(one[1] - other[1])) == 1
        for one in tiles
        for other in tiles
    )
    assert (find_touching(letters) is not None) == touch

"""Windows of labeled tiles: labels and images together, rims, views, and errors that name the tile."""

import numpy as np
import pytest

from finetune.data.datasets import LabeledSplit, cut, orient, resize
from finetune.data.items import Item
from finetune.tasks import Task, get_task
from shards.errors import SourceError
from shards.sensors.sensor import NODATA

TASK = get_task("sample_materials")
CORINE = get_task("enmap_corine")


def _item(number: int, height: int = 6, width: int = 6, **changes) -> Item:
    rng = np.random.default_rng(number)
    image = rng.integers(0, 4000, (3, height, width)).astype(np.int16)
    codes = rng.integers(0, 7, (height, width))
    told = {"image": lambda: image, "label": lambda: codes} | changes
    return Item(f"tile-{number}", f"place-{number}", "scene", "1", **told)


def _split(items: list[Item], size: int, task: Task = TASK, keep: bool = True) -> LabeledSplit:
    return LabeledSplit(items, task, size, threads=2, keep=keep, quiet=True)


def test_windows_are_cut_in_rows_and_the_rim_is_missing_and_not_counted():
    item = _item(0, 5, 7)
    split = _split([_item(1, 4, 4), item], 4)
    assert (len(split), split.tile_of.tolist()) == (5, [0, 1, 1, 1, 1])
    images = split.images(np.arange(5))
    values, codes = item.image(), TASK.to_indices(item.label())
    for window in range(4):
        top, left = 4 * (window // 2), 4 * (window % 2)
        for row in range(4):
            for column in range(4):
                inside = top + row < 5 and left + column < 7
                expected = values[:, top + row, left + column].tolist() if inside else [NODATA] * 3
                assert images[1 + window, :, row, column].tolist() == expected
                assert split.labels[1 + window, row, column] == (codes[top + row, left + column] if inside else 6)


@pytest.mark.parametrize("keep", [True, False])
def test_images_are_read_once_where_they_are_kept(keep):
    reads = []
    image = np.zeros((3, 8, 8), np.int16)
    split = _split(
        [_item(0, 8, 8, image=lambda: reads.append(1) or image, label=lambda: np.ones((8, 8), int))], 4, keep=keep
    )
    split.images(np.array([0, 3]))
    split.images(np.array([1]))
    assert len(reads) == (1 if keep else 2)


def test_batches_are_the_images_of_each_order():
    split = _split([_item(number) for number in range(5)], 6)
    orders = [np.array([3, 1]), np.array([0]), np.array([4, 4, 2])]
    for order, batch in zip(orders, split.batches(orders), strict=True):
        np.testing.assert_array_equal(batch, split.images(order))


def test_a_multilabel_tile_is_one_window_with_the_classes_that_occur():
    codes = np.full((6, 6), 999)
    codes[0, :3] = 112, 523, 111
    split = _split([_item(0, label=lambda: codes)], 6, CORINE)
    assert split.labels.shape == (1, 19)
    assert np.flatnonzero(split.labels[0]).tolist() == [0, 18]


def test_fields_of_any_size_are_resized():
    values = np.linspace(0, 1, 3 * 5 * 9, dtype=np.float32).reshape(3, 5, 9)
    item = Item("7", "field", "field", "1", lambda: values, lambda: np.array([0.1, 0.2, 0.3, 0.4]))
    split = _split([item], 8, get_task("hyperview"))
    image = split.images(np.array([0]))[0]
    assert image.shape == (3, 8, 8)
    np.testing.assert_allclose(
        image[:, [0, 0, -1, -1], [0, -1, 0, -1]], values[:, [0, 0, -1, -1], [0, -1, 0, -1]], rtol=1e-5
    )
    np.testing.assert_allclose(split.labels, [[0.1, 0.2, 0.3, 0.4]], rtol=1e-6)
    np.testing.assert_array_equal(resize(values, 8), image)


def test_the_eight_views_are_all_symmetries_of_a_square():
    square = np.arange(9).reshape(3, 3)
    views = [orient(square, view) for view in range(8)]
    assert len({one.tobytes() for one in views}) == 8
    np.testing.assert_array_equal(views[0], square)
    assert {tuple(sorted((one[0, 0], one[0, 2], one[2, 0], one[2, 2]))) for one in views} == {(0, 2, 6, 8)}


def test_images_and_labels_turn_together():
    item = _item(0)
    split = _split([item], 6)
    for view in range(8):
        image = split.oriented(np.array([0]), np.array([view]))[0]
        np.testing.assert_array_equal(image, orient(item.image(), view))


def test_windows_of_labels():
    labels = np.arange(20).reshape(4, 5)
    windows = cut(labels, 4, 99)
    assert windows.shape == (2, 4, 4)
    np.testing.assert_array_equal(windows[0], labels[:, :4])
    assert windows[1][:, 1:].tolist() == [[99] * 3] * 4


def test_a_code_outside_the_table_is_named():
    with pytest.raises(
        SourceError, match=r"tile-0: label code 7 is not a class of task sample_materials: add it to its classes"
    ):
        _split([_item(0, label=lambda: np.full((6, 6), 7))], 6)


def test_an_image_smaller_than_its_label_is_named():
    split = _split([_item(0, image=lambda: np.zeros((3, 4, 4), np.int16), label=lambda: np.ones((8, 8), int))], 4)
    with pytest.raises(SourceError, match="tile-0: the image is smaller than its label tile"):
        split.images(np.array([3]))


def test_tiles_of_another_size_are_named_where_a_tile_is_one_window():
    split = _split([_item(0, label=lambda: np.full((6, 6), 111))], 8, CORINE)
    with pytest.raises(SourceError, match=r"tile-0: \(6, 6\) px, but the other tiles are 8 px"):
        split.images(np.array([0]))


def test_pixels_without_a_label_do_not_count_in_any_kind():
    codes = np.full((6, 6), 1)
    codes[0] = NODATA
    assert (_split([_item(0, label=lambda: codes)], 6).labels[0, 0] == TASK.ignore_index).all()
    corine = np.where(codes == 1, 111, NODATA)
    assert np.flatnonzero(_split([_item(0, label=lambda: corine)], 6, CORINE).labels[0]).tolist() == [0]


def test_a_multilabel_tile_without_any_label_is_left_out():
    """All zeros would say that no class occurs in it."""
    none, urban = np.full((6, 6), NODATA), np.full((6, 6), 111)
    items = [_item(0, label=lambda: none), _item(1, label=lambda: urban)]
    split = _split(items, 6, CORINE)
    assert [item.name for item in split.items] == ["tile-1"]
    assert (split.tile_of.tolist(), split.labels.shape) == ([0], (1, 19))
    np.testing.assert_array_equal(split.images(np.array([0]))[0], items[1].image())
    with pytest.raises(SourceError, match="tile-0 and 0 more: no tile of this split has a label"):
        _split(items[:1], 6, CORINE)


@pytest.mark.parametrize(("nodata", "declared"), [(1, {1}), (77, set()), (None, set())])
def test_a_class_code_that_a_file_declares_as_nodata_is_kept_for_a_warning(nodata, declared):
    codes = np.full((6, 6), 2)
    codes[0] = NODATA
    assert _split([_item(0, label=lambda: codes, nodata=lambda: nodata)], 6).declared == declared


def test_labels_that_were_corrected_in_place_are_others():
    def hash_of(code: int) -> str:
        codes = np.ones((6, 6), int)
        codes[2, 3] = code
        return _split([_item(0, label=lambda: codes)], 6).labels_hash

    assert hash_of(1) == hash_of(1) != hash_of(2)

"""Labelled tiles: windows, splits without shared places, and errors that name the file."""

import numpy as np
import pytest
from support.tiles import NODATA, spectra, write_tile

from finetune.config import LabelledDataConfig
from finetune.datasets import SPLITS, cut_windows, load_splits, split_by_location
from finetune.tasks import get_task
from shards.errors import SourceError
from shards.sources import TileSource

TASK = get_task("sample_materials")
LOCATIONS = [f"{number:07d}" for number in range(10)]


def _tiles(locations: int, timestamps: int = 3) -> list[TileSource]:
    return [
        TileSource(f"{place:07d}", f"{date:05d}", f"{place:07d}/{date:05d}.tif")
        for place in range(locations)
        for date in range(timestamps)
    ]


@pytest.fixture
def folders(tmp_path):
    """Ten tiles of 6 px with codes 0 to 6."""
    for number, location in enumerate(LOCATIONS):
        write_tile(tmp_path / "images" / "enmap" / location / "00001.tif", spectra(number, 6), nodata=NODATA)
        codes = np.random.default_rng(number).integers(0, 7, (6, 6)).astype(np.uint8)
        write_tile(tmp_path / "labels" / "enmap" / location / "00001.tif", codes)
    return tmp_path


def _config(folders, **changes) -> LabelledDataConfig:
    return LabelledDataConfig(images=str(folders / "images"), labels=str(folders / "labels"), **changes)


def _load(folders, size: int = 6, seed: int = 0, **changes):
    return load_splits(_config(folders, **changes), TASK, size, seed, quiet=True)


def _write_splits(folders, **names) -> str:
    folder = folders / "splits"
    folder.mkdir(exist_ok=True)
    for split in SPLITS:
        if split in names:
            (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names[split]))
    return str(folder)


# ---- windows ----


def test_windows_tile_the_image_in_rows_and_the_rim_is_padded_and_not_counted():
    values = np.arange(2 * 5 * 7, dtype=np.int16).reshape(2, 5, 7)
    labels = np.arange(5 * 7).reshape(5, 7)
    images, masks = cut_windows(values, labels, 4, ignore=99)
    assert images.shape == (4, 2, 4, 4)
    assert masks.shape == (4, 4, 4)
    for window in range(4):
        top, left = 4 * (window // 2), 4 * (window % 2)
        for row in range(4):
            for column in range(4):
                inside = top + row < 5 and left + column < 7
                expected = values[:, top + row, left + column] if inside else [NODATA] * 2
                assert images[window, :, row, column].tolist() == list(expected)
                assert masks[window, row, column] == (labels[top + row, left + column] if inside else 99)


@pytest.mark.parametrize(("height", "width", "count"), [(4, 4, 1), (8, 4, 2), (3, 3, 1), (9, 9, 9)])
def test_all_pixels_are_in_some_window_and_nothing_more(height, width, count):
    values = np.ones((3, height, width), np.int16)
    images, masks = cut_windows(values, np.zeros((height, width), np.int64), 4, ignore=6)
    assert len(images) == len(masks) == count
    assert (masks == 0).sum() == height * width
    assert (images == 1).sum() == 3 * height * width
    assert images.dtype == np.int16


# ---- splits ----


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_place_is_in_two_splits_and_every_tile_in_one(seed):
    tiles = _tiles(50)
    split = split_by_location(tiles, seed)
    assert sorted(tile for part in split.values() for tile in part) == tiles
    places = {name: {tile.location for tile in part} for name, part in split.items()}
    assert {name: len(part) for name, part in places.items()} == {"train": 30, "val": 10, "test": 10}
    assert not places["train"] & places["val"] | places["val"] & places["test"] | places["train"] & places["test"]


def test_splits_depend_on_the_seed_and_not_on_the_order_of_files():
    tiles = _tiles(50)
    shuffled = [tiles[row] for row in np.random.default_rng(0).permutation(len(tiles))]
    for name in SPLITS:
        assert sorted(split_by_location(shuffled, 0)[name]) == split_by_location(tiles, 0)[name]
    assert split_by_location(tiles, 1) != split_by_location(tiles, 0)


@pytest.mark.parametrize("places", [3, 4, 5])
def test_few_places_still_give_three_splits(places):
    assert all(split_by_location(_tiles(places), 0).values())


# ---- loading ----


def test_loaded_windows_are_the_tiles_and_their_remapped_labels(folders):
    loaded = _load(folders)
    assert {name: len(part) for name, part in loaded.items()} == {"train": 6, "val": 2, "test": 2}
    images = np.concatenate([loaded[name].images for name in SPLITS])
    labels = np.concatenate([loaded[name].labels for name in SPLITS])
    for number in range(10):
        row = next(row for row in range(10) if np.array_equal(images[row], spectra(number, 6)))
        codes = np.random.default_rng(number).integers(0, 7, (6, 6))
        np.testing.assert_array_equal(labels[row], np.where(codes == 0, 6, codes - 1))


def test_smaller_windows_stay_in_their_split(folders):
    loaded = _load(folders, size=4)
    assert {name: len(part) for name, part in loaded.items()} == {"train": 24, "val": 8, "test": 8}


def test_published_split_files_decide(folders):
    names = [f"{location}/00001.tif" for location in LOCATIONS]
    splits = _write_splits(folders, train=names[:3], val=["", *names[3:5], ""], test=names[9:])
    loaded = _load(folders, splits=splits)
    assert {name: len(part) for name, part in loaded.items()} == {"train": 3, "val": 2, "test": 1}
    for name, numbers in (("train", [0, 1, 2]), ("val", [3, 4]), ("test", [9])):
        for row, number in enumerate(numbers):  # in the order of the file
            np.testing.assert_array_equal(loaded[name].images[row], spectra(number, 6))


def _error(folders, **changes) -> str:
    with pytest.raises(SourceError) as raised:
        _load(folders, **changes)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_split_names_that_are_not_there_are_counted_and_named(folders):
    names = [f"{location}/00001.tif" for location in LOCATIONS]
    splits = _write_splits(folders, train=names[:3], val=[names[3], "9999999/00001.tif", "x"], test=names[4:])
    assert _error(folders, splits=splits) == f"{splits}/val.txt: 2 of 3 tiles are not there, e.g. 9999999/00001.tif"


def test_a_missing_split_file_is_named(folders):
    splits = _write_splits(folders, train=["0000001/00001.tif"], val=["0000002/00001.tif"])
    assert _error(folders, splits=splits) == f"{splits}/test.txt: missing split file"


def test_an_empty_split_is_an_error(folders):
    names = [f"{location}/00001.tif" for location in LOCATIONS]
    splits = _write_splits(folders, train=names[:3], val=[], test=names[4:])
    assert "no tiles in the 'val' split (10 tiles found)" in _error(folders, splits=splits)


def test_a_tile_without_labels_is_named(folders):
    path = folders / "labels" / "enmap" / LOCATIONS[4] / "00001.tif"
    path.unlink()
    assert _error(folders) == f"{path}: no label tile for this image"


def test_labels_of_another_size_are_named(folders):
    path = folders / "labels" / "enmap" / LOCATIONS[4] / "00001.tif"
    write_tile(path, np.zeros((5, 6), np.uint8))
    assert _error(folders) == f"{path}: (5, 6) px where the image has (6, 6)"


def test_a_missing_folder_of_labels_is_named(folders):
    data = LabelledDataConfig(images=str(folders / "images"), labels=str(folders / "none"))
    with pytest.raises(SourceError, match="none: no such directory of label tiles"):
        load_splits(data, TASK, 6, 0, quiet=True)


def test_shards_packed_with_labels_give_the_same_windows(folders):
    from shards.build import pack
    from shards.scan import Labels, PackConfig

    source = folders / "images"
    pack(source, folders / "shards", PackConfig(), labels=Labels(folders / "labels"))
    packed = load_splits(LabelledDataConfig(shards=str(folders / "shards")), TASK, 6, 0, quiet=True)
    plain = _load(folders, seed=0)
    for name in SPLITS:
        order = [np.lexsort(split.images.reshape(len(split), -1).T[:50]) for split in (packed[name], plain[name])]
        np.testing.assert_array_equal(packed[name].images[order[0]], plain[name].images[order[1]])
        np.testing.assert_array_equal(packed[name].labels[order[0]], plain[name].labels[order[1]])


def test_shards_without_labels_and_two_sources_are_refused(folders):
    from pydantic import ValidationError

    from shards.build import pack
    from shards.scan import PackConfig

    pack(folders / "images", folders / "shards", PackConfig())
    with pytest.raises(SourceError, match="pack with --labels"):
        load_splits(LabelledDataConfig(shards=str(folders / "shards")), TASK, 6, 0, quiet=True)
    with pytest.raises(ValidationError, match="not both"):
        LabelledDataConfig(shards="a", images="b", labels="c")
    with pytest.raises(ValidationError, match="give 'images' and 'labels'"):
        LabelledDataConfig(images="b")

"""Few-shot draws: k places of each class, nested, from any labels."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from finetune.data.datasets import LabeledSplit
from finetune.data.few_shots import FewShots, draw_places
from finetune.data.items import Item
from finetune.tasks import Task, get_task

holdings = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12))
seeds = st.integers(0, 2**63 - 1)


@given(holdings, st.integers(1, 8), seeds)
def test_each_class_has_its_places_and_fewer_shots_are_a_subset(holds, shots, seed):
    drawn = draw_places(holds, shots, seed)
    found, known = holds[drawn].sum(0), holds.sum(0)
    assert (found >= np.minimum(shots, known)).all()
    assert drawn.sum() <= shots * holds.shape[1]
    assert not drawn[~holds.any(1)].any()
    assert (drawn <= draw_places(holds, shots + 1, seed)).all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(1, 8), seeds)
def test_places_of_a_single_class_are_drawn_exactly(classes, shots, seed):
    holds = np.eye(4, dtype=bool)[classes]
    counts = holds[draw_places(holds, shots, seed)].sum(0)
    np.testing.assert_array_equal(counts, np.minimum(shots, holds.sum(0)))


def test_seeds_draw_places_of_their_own():
    holds = np.ones((50, 1), bool)
    assert len({draw_places(holds, 1, seed).argmax() for seed in range(20)}) > 5


def _split(places: list[str], labels: list[np.ndarray], task: Task) -> LabeledSplit:
    def item(number: int) -> Item:
        image, label = np.zeros((3, *labels[number].shape), np.int16), labels[number]
        return Item(f"tile-{number}", places[number], "scene", "1", lambda: image, lambda: label)

    return LabeledSplit([item(number) for number in range(len(labels))], task, 4, threads=1, keep=True, quiet=True)


def test_a_place_holds_the_classes_of_all_its_labels_that_count_and_gives_all_its_windows():
    task = get_task("sample_materials")
    codes = [entry.all_codes[0] for entry in task.classes]
    pure = np.full((4, 8), codes[0])
    mixed = np.full((4, 4), codes[1])
    mixed[0, 0] = codes[2]
    few = FewShots.of(_split(["b", "a", "b"], [pure, mixed, mixed], task))
    assert few.places.tolist() == ["a", "b"]
    assert few.place_of.tolist() == [1, 1, 0, 1]
    assert few.holds[:, :3].tolist() == [[False, True, True], [True, True, True]]
    assert few.rows(1, 0).tolist() in ([0, 1, 3], [0, 1, 2, 3])  # b is the only one of its class
    assert few.rows(2, 0).tolist() == [0, 1, 2, 3]
    assert few.fewer(2) == {0: 1}


def test_labels_and_places_change_the_identity():
    task = get_task("sample_materials")
    codes = [entry.all_codes[0] for entry in task.classes]
    tiles = [np.full((4, 4), code) for code in codes[:2]]
    identities = [
        FewShots.of(_split(places, labels, task)).identity
        for places, labels in ((["a", "b"], tiles), (["a", "c"], tiles), (["a", "b"], tiles[:1] * 2))
    ]
    assert len(set(identities)) == 3

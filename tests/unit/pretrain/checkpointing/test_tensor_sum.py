"""Sums of tensors: the same however they are divided, and different after any change."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pretrain.checkpointing.tensor_sum import BLOCK, MASK, tensor_sum

VALUES = np.random.default_rng(0).standard_normal(BLOCK + 500).astype(np.float32)


@given(st.lists(st.integers(0, len(VALUES)), max_size=6))
def test_the_sums_of_parts_add_up_to_that_of_the_whole(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(VALUES)]
    parts = [tensor_sum("a.weight", low, VALUES[low:high]) for low, high in pairwise(edges)]
    assert sum(parts) & MASK == tensor_sum("a.weight", 0, VALUES)


@given(st.integers(0, 4 * len(VALUES) - 1), st.integers(0, 7))
def test_any_flipped_bit_changes_the_sum(place: int, bit: int) -> None:
    changed = VALUES.copy()
    changed.view(np.uint8)[place] ^= 1 << bit
    assert tensor_sum("a.weight", 0, changed) != tensor_sum("a.weight", 0, VALUES)


def test_a_tensor_in_the_place_of_another_changes_the_sum() -> None:
    whole = tensor_sum("a.weight", 0, VALUES)
    assert len({whole, tensor_sum("b.weight", 0, VALUES), tensor_sum("a.weight", 1, VALUES)}) == 3
    exchanged = np.concatenate([VALUES[BLOCK:], VALUES[:BLOCK]])
    assert tensor_sum("a.weight", 0, exchanged) != whole


def test_elements_of_any_size_have_a_sum() -> None:
    for dtype in (np.uint8, np.float16, np.int64):
        values = np.arange(1, 4).astype(dtype)
        assert tensor_sum("count", 0, values) != tensor_sum("count", 0, values[::-1].copy())
    assert tensor_sum("none", 0, np.zeros(0, np.float32)) == 0

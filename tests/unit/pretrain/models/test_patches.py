"""Positions and patches: tables of sines, the order of pixels, gathering."""

import math

import numpy as np
import pytest
import torch

from pretrain.models.patches import gather_tokens, patchify, sincos_positions
from pretrain.objectives.picture import unpatchify


@pytest.mark.parametrize(("width", "grid"), [(16, 4), (192, 3), (512, 32)])
def test_positions_are_sines_and_cosines_of_column_then_row(width, grid):
    table = sincos_positions(width, grid)
    assert table.shape == (1, 1 + grid * grid, width)
    assert table.dtype == torch.float32
    assert not table[0, 0].any()
    quarter = width // 4
    for row, column in [(0, 0), (0, grid - 1), (grid - 1, 0), (grid // 2, 1)]:
        token = table[0, 1 + row * grid + column].tolist()
        for index in (0, 1, quarter - 1):
            rate = 1 / 10000 ** (4 * index / width)
            expected = [f(place * rate) for place in (column, row) for f in (math.sin, math.cos)]
            assert token[index::quarter] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_a_patch_holds_its_pixels_row_by_row_with_spectra_last(patch_size):
    images = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8)
    patches = patchify(images, patch_size)
    grid = 8 // patch_size
    assert patches.shape == (2, grid**2, patch_size**2, 3)
    for row in range(8):
        for column in range(8):
            patch = (row // patch_size) * grid + column // patch_size
            pixel = (row % patch_size) * patch_size + column % patch_size
            assert torch.equal(patches[:, patch, pixel], images[:, :, row, column])


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_unpatchify_undoes_patchify(patch_size):
    images = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    back = unpatchify(patchify(images, patch_size)[0].numpy(), patch_size)
    np.testing.assert_array_equal(back, images[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("rest", [(), (2,), (3, 2)])
def test_gathered_tokens_are_those_of_the_ids(rest):
    tokens = torch.randn(2, 6, *rest, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[5, 0, 2], [1, 1, 3]])
    picked = gather_tokens(tokens, ids)
    for sample in range(2):
        assert torch.equal(picked[sample], tokens[sample, ids[sample]])

"""Moments of batch-norm groups against those of im2col and of whole tensors, in float64."""

import pytest
import torch

from pretrain.models import spectral_parts
from pretrain.models.spectral_moments import RunningMoments, im2col_moments
from pretrain.models.spectral_parts import split_parts


@pytest.mark.parametrize("bands", [75, 76, 79, 80, 100, 202, 242])
@pytest.mark.parametrize("pixels", [1, 12, 300])
def test_im2col_moments_are_sums_over_all_rows_of_im2col(bands, pixels):
    x = torch.randn(2, pixels, bands, generator=torch.Generator().manual_seed(bands), dtype=torch.float64)
    columns = torch.nn.functional.pad(x, (1, 1)).unfold(2, 7, 5)
    sums, products = im2col_moments(x, 7, 5, columns.shape[2])
    rows = columns.flatten(1, 2)
    torch.testing.assert_close(sums, rows.sum(1), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(products, rows.mT @ rows, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("limit", [4, 7, 20, 1000])
def test_running_moments_of_parts_are_those_of_each_group(limit, monkeypatch):
    monkeypatch.setitem(spectral_parts.PIXELS, "cpu", limit)
    y = 5 + torch.randn(3, 10, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = RunningMoments(y)
    for part in split_parts(y):
        moments.add(part, part.of(y))
    variance, mean = torch.var_mean(y, (1, 2), correction=0)
    for mine, theirs in zip(moments.values, (mean, variance), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-13)

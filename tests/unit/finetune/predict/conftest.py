"""A scene whose edges are missing."""

import pytest
from support.small_encoder import BANDS
from support.tiles import NODATA, spectra


@pytest.fixture(scope="module")
def scene_values():
    """A scene of 17 x 22 px, not a multiple of any size, with missing bands and nodata at two edges."""
    values = spectra(7, 22, BANDS)[:, :17]
    values[:, :, :9] = NODATA
    values[:, 15:, :] = NODATA
    return values

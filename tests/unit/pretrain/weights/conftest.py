"""A small encoder with its description."""

import pytest
from support.small_encoder import small_description, small_encoder

from pretrain.weights.pretrained import PretrainedEncoder


@pytest.fixture(scope="module")
def encoder() -> PretrainedEncoder:
    return PretrainedEncoder(small_encoder(), small_description())

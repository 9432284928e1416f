"""Run Triton kernels without a GPU, in Triton's interpreter (tests/conftest.py chooses it)."""

import os
from importlib.util import find_spec

import pytest

from pretrain.kernels.launching import interpreting


@pytest.fixture
def interpreter():
    """Let kernels run on CPU tensors."""
    if find_spec("triton") is None:
        pytest.skip("Triton has no wheel for this platform")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("kernels are compiled beside a GPU, and run by `make gpu-check`")
    with interpreting():
        yield

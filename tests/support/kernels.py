"""Run Triton kernels without a GPU."""

from importlib.util import find_spec

import pytest


@pytest.fixture
def interpreter(monkeypatch):
    """Let kernels run in Triton's interpreter, which is chosen when a kernel's module is imported: at its first use."""
    if find_spec("triton") is None:
        pytest.skip("Triton has no wheel for this platform")
    monkeypatch.setenv("TRITON_INTERPRET", "1")

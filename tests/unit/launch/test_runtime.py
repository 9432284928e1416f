"""What a rank's environment is before torch loads."""

import os
from pathlib import Path

import pytest

from launch import runtime


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, {"PYTORCH_ALLOC_CONF": "backend:native"}),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}),
    ],
)
def test_the_allocator_expands_unless_the_user_has_set_it(
    given: dict, expected: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    runtime.prepare_environment(2, tmp_path)
    assert {name: value for name, value in os.environ.items() if "ALLOC" in name} == expected
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"].startswith(str(tmp_path))

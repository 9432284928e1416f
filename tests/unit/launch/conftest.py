"""A folder of configs to submit."""

from pathlib import Path

import pytest
from support.job_configs import write_configs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: config.yaml for pretraining, and two for evaluations."""
    monkeypatch.chdir(tmp_path)
    write_configs(tmp_path)
    return tmp_path

"""Every YAML in configs/ is a valid config, and says its command."""

from pathlib import Path

import pytest
from support.processes import REPOSITORY
from support.shipped_configs import CONFIGS, MISSING_IN_BASE, VARIABLES

from finetune.config import FinetuneConfig
from finetune.tasks import get_task
from pretrain.config import PretrainConfig
from shards.config import load_config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(REPOSITORY / "configs")))
def test_it_parses_and_names_what_exists(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, f"/data/{name}")
    text = path.read_text()
    assert text.startswith("# ")
    if "finetune" in path.parts:
        assert get_task(load_config(path, [], FinetuneConfig).task).outputs
        assert "launch/finetune.py" in text or "make demo" in text or path.name == "base.yaml"
    else:
        is_base = path.name == "base.yaml"
        load_config(path, MISSING_IN_BASE if is_base else [], PretrainConfig)
        assert is_base or f"launch/pretrain.py --config {path.relative_to(REPOSITORY)}" in text


def test_there_are_configs() -> None:
    assert len(CONFIGS) >= 5

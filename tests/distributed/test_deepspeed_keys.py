"""``engine.deepspeed``: every key that is passed on trains, refuses steps and resumes as DeepSpeed does without it."""

import json
from pathlib import Path

import pytest
from support.deepspeed_key_cases import cases
from support.processes import run_ranks

WORKER = Path(__file__).resolve().parent.parent / "support" / "deepspeed_key_cases.py"

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    folder = tmp_path_factory.mktemp("keys")
    run_ranks(WORKER, 4, str(folder), timeout=900)
    return json.loads((folder / "results-0.json").read_text())


@pytest.mark.parametrize("name", cases)
def test_case(results: dict[str, str | None], name: str) -> None:
    assert results[name] is None, results[name]

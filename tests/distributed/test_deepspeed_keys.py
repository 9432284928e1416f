"""``engine.deepspeed``: every key that is passed on trains, refuses steps and resumes as DeepSpeed does without it."""

import json
from pathlib import Path

import pytest
from support.deepspeed_key_cases import cases
from support.processes import run_ranks
from support.rank_cases import selected

WORKER = Path(__file__).resolve().parent.parent / "support" / "deepspeed_key_cases.py"

pytestmark = [pytest.mark.distributed, pytest.mark.nightly]


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    folder = tmp_path_factory.mktemp("keys")
    names = selected(request)
    world_size = 4 if any("hpz" in name for name in names) else 2  # two groups of two
    run_ranks(WORKER, world_size, str(folder), *names, timeout=900)
    return json.loads((folder / "results-0.json").read_text())


@pytest.mark.parametrize("name", cases)
def test_case(results: dict[str, str | None], name: str) -> None:
    assert results[name] is None, results[name]

"""ZeRO-3 leaf modules change no digit of a training, and compiled units follow eager ones, on two real processes."""

import json
from pathlib import Path

import pytest
from support.leaf_cases import cases
from support.processes import run_ranks
from support.rank_cases import selected

WORKER = Path(__file__).resolve().parent.parent / "support" / "leaf_cases.py"

pytestmark = [pytest.mark.distributed, pytest.mark.nightly]  # test_zero.py trains with leaf modules


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    folder = tmp_path_factory.mktemp("leaf")
    run_ranks(WORKER, 2, str(folder), *selected(request), timeout=900)
    return json.loads((folder / "results-0.json").read_text())


@pytest.mark.parametrize("name", cases)
def test_case(results: dict[str, str | None], name: str) -> None:
    assert results[name] is None, results[name]

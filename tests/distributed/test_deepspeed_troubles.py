"""What DeepSpeed users have met, each as a regression test on two real processes (cases: support/trouble_cases.py).

Losses, samples and rates across world sizes, stages and resumes are in test_zero.py, hangs in test_watchdog.py.
"""

import json
from pathlib import Path

import pytest
from support.processes import run_ranks
from support.trouble_cases import cases

WORKER = Path(__file__).resolve().parent.parent / "support" / "trouble_cases.py"

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    folder = tmp_path_factory.mktemp("troubles")
    run_ranks(WORKER, 2, str(folder / "two"), timeout=300)
    run_ranks(WORKER, 1, str(folder / "one"), "initial_weights_do_not_depend_on_the_processes", timeout=120)
    hashes = {path.read_text() for path in folder.rglob("initial-*.txt")}
    assert len(hashes) == 1
    assert len(list(folder.rglob("initial-*.txt"))) == 3
    return json.loads((folder / "two" / "results-0.json").read_text())


@pytest.mark.parametrize("name", cases)
def test_trouble(results: dict[str, str | None], name: str) -> None:
    assert results[name] is None, results[name]

"""The planner against real DeepSpeed steps: memory within 10 %, step times in the right order."""

import pytest

from tools.bench_plan import CASES, TOLERANCE, compare, ranking_errors

pytestmark = [pytest.mark.distributed, pytest.mark.nightly]


def test_six_runs_are_predicted() -> None:
    rows = compare(CASES)
    assert len(rows) == 6
    assert max(abs(row.error) for row in rows) <= TOLERANCE
    assert ranking_errors(rows) == 0

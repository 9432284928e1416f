"""Calibration in the report: rows with probabilities, with intervals over test places and a reliability diagram."""

from dataclasses import replace

import numpy as np
import pytest
from support.evaluation_runs import TILES, Page, collect_reports, make_result, write_run

from finetune.evaluation.results import Result, read_part, read_results, write_part
from finetune.metrics.calibration import calibration_error, calibration_sums
from finetune.report.calibration import calibration_table, reliability
from finetune.report.markdown import markdown
from finetune.report.page import page
from finetune.tasks import get_task

CDL = get_task("enmap_cdl")


def _result(seed: int, excess: float, protocol: str = "frozen") -> Result:
    """Return a result whose predictions are right less often than they are confident, by ``excess``."""
    rng = np.random.default_rng(seed)
    confidences = rng.uniform(0.5, 1, (TILES, 400))
    hits = rng.random(confidences.shape) < confidences - excess
    sums = np.stack([calibration_sums(*pair) for pair in zip(confidences, hits, strict=True)]).astype(np.float32)
    result = make_result(CDL, "pretrained", seed, 0.8, protocol)
    return replace(result, calibration=sums, test=result.test | {"ECE": float(calibration_error(sums.sum(0)))})


@pytest.fixture
def run(tmp_path):
    results = [
        _result(seed, excess, protocol) for seed in (0, 1) for excess, protocol in ((0.0, "frozen"), (0.2, "full"))
    ]
    return write_run(tmp_path / "run", "enmap_cdl", [*results, make_result(CDL, "random", 0, 0.6)])


def test_sums_come_back_as_they_were_written_and_may_be_absent(run, tmp_path):
    found = read_results(run).results
    np.testing.assert_array_equal(found[1].calibration, _result(0, 0.2, "full").calibration)
    assert not found[-1].calibration.size
    write_part(tmp_path / "parts" / "one.npz", found)
    again = read_part(tmp_path / "parts" / "one.npz")
    assert [one.calibration.shape for one in again] == [one.calibration.shape for one in found]


def test_rows_with_probabilities_have_an_error_with_its_interval(run):
    (report,) = collect_reports(run)
    _, calibrated, overconfident = calibration_table(report)
    assert [calibrated[1], overconfident[1]] == ["frozen, conv", "full, conv"]
    assert calibrated[3] < "3"
    assert overconfident[3].startswith(("19.", "20."))
    low, high = (float(bound) for bound in overconfident[3].split("[")[1].rstrip("]").split(", "))
    assert 17 < low < 20 < high < 23


def test_the_diagram_has_the_accuracy_of_each_bin_that_is_used(run):
    (report,) = collect_reports(run)
    points, intervals = reliability(next(row for row in report.rows if row.protocol == "full"))
    assert len(points) == 8  # from 0.5
    for (confidence, accuracy), (low, high) in zip(points, intervals, strict=True):
        assert accuracy == pytest.approx(confidence - 0.2, abs=0.05)
        assert low < accuracy < high


def test_the_page_and_the_text_show_calibration_only_where_there_is_some(run, runs):
    reports = collect_reports(run)
    shown = page(reports)
    assert "Calibration" in Page(shown).text
    assert shown.count('class="diagonal"') == 1
    assert "### Calibration" in markdown(reports)
    assert "Calibration" not in page(collect_reports(runs))
    assert "### Calibration" not in markdown(collect_reports(runs))

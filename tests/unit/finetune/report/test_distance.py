"""Scores by the distance to the nearest training tile."""

from dataclasses import replace

import numpy as np
import pytest
from support.evaluation_runs import TILES, Page, collect_reports, make_result, write_run

from finetune.evaluation.results import read_results
from finetune.report.distance import BINS, score_by_distance
from finetune.report.page import page
from finetune.tasks import get_task

CDL = get_task("enmap_cdl")
KM = np.arange(1.0, TILES + 1)


def _report(folder, distance_km: np.ndarray):
    """Return a report whose predictions are good on the first half of the tiles, and worse on the other."""
    near, far = make_result(CDL, "pretrained", 0, 0.9), make_result(CDL, "pretrained", 0, 0.5)
    statistics = np.where((np.arange(TILES) < TILES / 2)[:, None, None], near.statistics, far.statistics)
    run = write_run(folder / "run", CDL.name, [replace(near, statistics=statistics)], distance_km=distance_km)
    (report,) = collect_reports(run)
    return report


def test_scores_are_those_of_the_tiles_in_each_group(tmp_path):
    report = _report(tmp_path, KM)
    found = score_by_distance(report, report.rows[0])
    assert [x for x, _ in found.points] == [3.5, 9.5, 15.5, 21.5]
    (near, near_too, far, far_too), statistics = (y for _, y in found.points), report.rows[0].results[0].statistics
    assert near == pytest.approx(report.kind.scores(statistics[:6]).values["mIoU"])
    assert min(near, near_too) > max(far, far_too) + 0.3
    assert all(low < y < high for (_, y), (low, high) in zip(found.points, found.intervals, strict=True))
    np.testing.assert_array_equal(read_results(tmp_path / "run").distance_km, KM)
    assert "km to the nearest training tile" in Page(page([report])).text


@pytest.mark.parametrize("distance", [np.zeros(0), np.full(TILES, np.nan), np.zeros(TILES)])
def test_nothing_is_drawn_without_positions_or_with_a_single_distance(tmp_path, distance):
    report = _report(tmp_path, distance)
    assert score_by_distance(report, report.rows[0]) is None
    assert "nearest training tile" not in page([report])


def test_tiles_of_unknown_position_are_left_out_and_equal_distances_share_a_group(tmp_path):
    report = _report(tmp_path, np.where(KM < 10, np.nan, np.minimum(KM, 20)))
    found = score_by_distance(report, report.rows[0])
    assert len(found.points) < BINS
    assert found.points[-1][0] == 20

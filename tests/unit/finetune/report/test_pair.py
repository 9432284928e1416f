"""Two rows of a report: the numbers of their comparison, and how rows are named."""

import numpy as np
import pytest
from support.commands import refused
from support.evaluation_runs import collect_reports

from finetune.__main__ import main
from finetune.report.pair import compare_rows, name_of, select


def test_the_numbers_are_those_of_the_rows(runs):
    reports = collect_reports(runs)
    (cdl,) = [report for report in reports if report.task.name == "enmap_cdl"]
    better, worse = [row for row in cdl.rows if not row.is_random_init and row.portion.is_all]
    (pair,) = compare_rows([cdl], name_of(better), name_of(worse))
    assert (pair.comparison.first, pair.comparison.second) == (better, worse)
    assert pair.comparison.difference == pytest.approx(better.mean("mIoU") - worse.mean("mIoU"))
    places = set(cdl.run.places)
    assert len(pair.by_place) == len(places)
    (place, *_) = sorted(places)
    tiles = np.array(cdl.run.places) == place
    of_place = [
        np.mean([cdl.kind.scores(result.statistics[tiles], None).values["mIoU"] for result in row.results])
        for row in (better, worse)
    ]
    assert pair.by_place[0] == pytest.approx(of_place[0] - of_place[1])
    assert pair.effect == pytest.approx(pair.by_place.mean() / pair.by_place.std(ddof=1))
    assert pair.effect > 0 and sum(pair.wins) <= len(places)
    assert pair.confused is not None
    np.testing.assert_allclose(pair.confused.sum(1), 0, atol=1e-9)  # shares of a class add up to one in both
    assert np.trace(pair.confused) > 0


def test_an_effect_is_positive_where_a_lower_score_is_better(runs):
    (soil,) = [report for report in collect_reports(runs) if report.task.name == "hyperview"]
    trained, random = (row for row in soil.rows)
    (pair,) = compare_rows([soil], name_of(trained), name_of(random))
    assert pair.comparison.difference < 0 < pair.by_place.mean()
    assert pair.confused is None


def test_the_command_compares_every_task_that_has_both(runs, capsys):
    assert main(["compare", str(runs), "--first", "mae-b frozen 100", "--second", "random frozen"]) == 0
    out = capsys.readouterr().out
    table = out.split("\n\n")[0].splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == [report.title for report in collect_reports(runs)]
    assert "more of" in out  # confusions


def test_words_that_name_several_rows_or_none_are_one_line(runs, capsys):
    several = refused(main, capsys, "compare", runs / "cdl", "--first", "frozen", "--second", "random")
    assert "'frozen' names 3 rows: add words of one of: runs/mae-b · frozen, conv · 100 %; " in several
    assert "no task has a row of 'nobody'" in refused(
        main, capsys, "compare", runs, "--first", "nobody", "--second", "random"
    )


def test_all_words_must_be_in_a_name(runs):
    (cdl,) = [report for report in collect_reports(runs) if report.task.name == "enmap_cdl"]
    assert select(cdl, "full random") is None

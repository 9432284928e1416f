"""The report: seeds put together, tables with the right numbers, one page that needs nothing else."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from support.evaluation_runs import Page, collect_reports, make_encoders, make_result, write_run

from finetune.__main__ import main
from finetune.evaluation.results import Result, read_part, read_results, write_part
from finetune.report.markdown import markdown
from finetune.tasks import get_task
from finetune.tasks.kinds.kind import kind_of

CDL = get_task("enmap_cdl")


def test_results_come_back_as_they_were_written(runs):
    run = read_results(runs / "cdl" / "seed-1")
    before = make_result(get_task("enmap_cdl"), "pretrained", 1, 0.8)
    after = run.results[0]
    assert (after.test, after.curve, after.by_output) == (before.test, before.curve, before.by_output)
    np.testing.assert_array_equal(after.statistics, before.statistics)
    assert run.task == get_task("enmap_cdl").model_copy(update={"notes": None})


def test_parts_come_back_as_they_were_written(tmp_path):
    part = tmp_path / "parts" / "one.npz"
    assert read_part(part) is None
    before = [make_result(get_task("enmap_corine"), "random", seed, 0.4) for seed in (3, 4)]
    write_part(part, before)
    after = read_part(part)
    assert after is not None
    for one, two in zip(before, after, strict=True):
        assert (one.seed, one.test) == (two.seed, two.test)
        np.testing.assert_array_equal(one.statistics, two.statistics)


def test_seeds_of_several_runs_are_one_row(runs):
    (cdl,) = [report for report in collect_reports(runs) if report.task.name == "enmap_cdl"]
    rows = {(row.identity[:6], row.protocol, row.portion.fraction): row for row in cdl.rows}
    best = rows["aaaaaa", "frozen", 1.0]
    assert [one.seed for one in best.results] == [0, 1, 2]
    expected = [make_result(cdl.task, "pretrained", seed, 0.8).test["mIoU"] for seed in (0, 1, 2)]
    assert best.mean("mIoU") == pytest.approx(np.mean(expected))
    assert best.deviation("mIoU") == pytest.approx(np.std(expected, ddof=1))
    assert best.interval[0] < best.mean("mIoU") < best.interval[1]
    assert cdl.best() is best
    assert best.is_better
    assert not rows["random", "frozen", 1.0].is_better
    assert rows["aaaaaa", "full", 1.0].p is None  # has no random-init baseline


def test_lower_scores_are_better_where_they_are(runs):
    (soil,) = [report for report in collect_reports(runs) if report.task.name == "hyperview"]
    assert soil.best().identity != "random"
    assert soil.best().is_better


def test_what_is_no_better_is_not_flagged(runs):
    (corine,) = [report for report in collect_reports(runs) if report.task.name == "enmap_corine"]
    assert not any(row.is_better for row in corine.rows)


def test_files_are_written_and_the_page_is_whole(runs, tmp_path, capsys):
    assert main(["report", str(runs), "--output", str(tmp_path / "out")]) == 0
    assert "EnMAP-CDL: mIoU" in capsys.readouterr().out
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert not page.outside
    assert page.images
    assert all(image["alt"] for image in page.images)
    for text in ("EnMAP-CORINE", "With fewer labels", "Confusion", "corn", "Hyperview score"):
        assert text in page.text
    assert "Scenes of 10 of 24 test tiles were in the pretraining shards" in page.text
    lines = list(csv.DictReader((tmp_path / "out" / "report.csv").open()))
    chosen = [
        line
        for line in lines
        if (line["task"], line["protocol"], line["metric"], line["fraction"]) == ("enmap_cdl", "frozen", "mIoU", "1.0")
    ]
    assert [line["better"] for line in chosen] == ["True", "False"]
    expected = np.mean([make_result(get_task("enmap_cdl"), "pretrained", seed, 0.8).test["mIoU"] for seed in (0, 1, 2)])
    assert float(chosen[0]["mean"]) == pytest.approx(expected)
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert f"**{100 * expected:.1f} ± " in markdown


def test_what_checkpoints_were_pretrained_on_is_in_a_table_if_their_files_say_it(runs, tmp_path):
    encoders = make_encoders()
    encoders["pretrained"] |= {"objective": "mae", "samples_seen": 12800, "pretrained_on": "enmap 80 %, desis 20 %"}
    results = [make_result(CDL, "pretrained", 0, 0.8), make_result(CDL, "random", 0, 0.6)]
    write_run(tmp_path / "run", "enmap_cdl", results, encoders=encoders)
    assert main(["report", str(tmp_path)]) == 0
    row = ["run/encoder.safetensors", "enmap 80 %, desis 20 %", "mae", "12,800"]
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert [cell.strip() for cell in next(line for line in lines if "12,800" in line).split("|")[1:-1]] == row
    assert "pretrained on" in Page((tmp_path / "report.html").read_text()).text
    written = list(csv.DictReader((tmp_path / "report.csv").open()))
    stated = {line["checkpoint"]: line["pretrained_on"] for line in written}
    assert stated == {row[0]: row[1], "spec_vit_base, random init": ""}
    assert "pretrained on" not in markdown(collect_reports(runs))


def test_undefined_scores_look_undefined(tmp_path):
    result = make_result(CDL, "pretrained", 0, 0.8)
    nothing = np.zeros_like(result.statistics)
    scores = kind_of(get_task("enmap_cdl")).scores(nothing)
    undefined = replace(result, test={"loss": 0.1}, by_output=scores.by_output, statistics=nothing, seed=1)
    write_run(tmp_path / "one", "enmap_cdl", [replace(undefined, protocol="full"), result])
    assert main(["report", str(tmp_path)]) == 0
    page = Page((tmp_path / "report.html").read_text())
    assert "nan" not in page.text
    lines = (tmp_path / "report.md").read_text().split("### Cost")[0].splitlines()
    assert [line.split("|")[5].strip() for line in lines if "full, conv" in line and "100 %" in line] == ["–"]
    (row,) = [
        line
        for line in csv.DictReader((tmp_path / "report.csv").open())
        if line["protocol"] == "full" and line["metric"] == "mIoU"
    ]
    assert (row["mean"], row["low"]) == ("", "")


def test_folders_without_results_are_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: no such folder\n"
    assert main(["report", str(tmp_path)]) == 2
    assert "no results.json at or below" in capsys.readouterr().err
    folder = write_run(tmp_path / "one", "enmap_cdl", [make_result(CDL, "pretrained", 1, 0.4)])
    (folder / "statistics.npz").write_bytes(b"PK")
    assert main(["report", str(folder)]) == 2
    assert "damaged results" in capsys.readouterr().err


def test_synthetic_tasks_and_few_places_are_said(tmp_path, capsys):
    write_run(tmp_path / "demo", "sample_materials", [make_result(get_task("sample_materials"), "pretrained", 0, 0.8)])
    assert main(["report", str(tmp_path / "demo")]) == 0
    assert "synthetic tiles; the numbers only show that the pipeline works." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("sample_covers", ("OA", "macro F1", "F1 by class", "Confusion")),
        ("sample_greenness", ("RMSE", "MAE", "R2", "RMSE by target", "Predictions", "highest greenness")),
    ],
)
def test_every_kind_of_task_has_its_tables_and_drawings(tmp_path, name, shown):
    results = [make_result(get_task(name), "pretrained", 0, 0.9), make_result(get_task(name), "random", 0, 0.4)]
    folder = write_run(tmp_path / "run", name, results)
    (report,) = collect_reports(folder)
    assert report.best().identity == "a" * 64
    assert report.best().is_better
    assert main(["report", str(folder)]) == 0
    page = Page((folder / "report.html").read_text())
    assert [text for text in shown if text not in page.text] == []


def test_statistics_of_an_earlier_version_are_read(tmp_path):
    folder = write_run(tmp_path / "run", "enmap_cdl", [make_result(CDL, "pretrained", 0, 0.8)])
    now = read_results(folder)
    (folder / "statistics.npz").rename(folder / "units.npz")
    np.testing.assert_array_equal(read_results(folder).results[0].statistics, now.results[0].statistics)


def _baseline_results(scores: dict[str, float]) -> list[Result]:
    """Results of an encoder, and of baselines by the names of their models, with two seeds."""
    found = []
    for seed in (0, 1):
        found.append(make_result(CDL, "pretrained", seed, scores["pretrained"]))
        for head in scores.keys() - {"pretrained"}:
            found.append(replace(make_result(CDL, "spectra", seed, scores[head], "baseline"), head=head))
    return found


@pytest.mark.parametrize(
    ("score", "verdict"), [(0.9, "beats"), (0.4, "is worse than"), (0.6, "does not differ significantly from")]
)
def test_the_report_says_whether_an_encoder_beats_the_best_baseline(tmp_path, score, verdict):
    results = _baseline_results({"pretrained": score, "linear": 0.5, "extra_trees": 0.6})
    encoders = make_encoders() | {"spectra": {"name": "spectra", "sha256": "b" * 64, "architecture": "spectra"}}
    folder = write_run(tmp_path / "run", "enmap_cdl", results, encoders=encoders)
    content = json.loads((folder / "results.json").read_text())
    content["data"]["baseline samples"] = {"1": [10000, 25000]}
    (folder / "results.json").write_text(json.dumps(content))
    (report,) = collect_reports(folder)
    assert not report.comparisons  # baselines are not compared with each other
    (comparison,) = report.against_baselines
    assert comparison.second.head == "extra_trees"
    low, high = comparison.interval
    assert low <= comparison.difference <= high
    assert main(["report", str(folder)]) == 0
    said = f"run/encoder.safetensors (frozen, conv) {verdict} the best baseline, spectra (baseline, extra_trees): mIoU "
    drawn = "Baselines were fitted to 10,000 of 25,000 labeled training pixels, drawn by seed."
    for text in ((folder / "report.md").read_text(), Page((folder / "report.html").read_text()).text):
        assert said in text
        assert drawn in text


def test_few_shots_are_rows_of_their_own_with_a_chart_and_an_explanation(tmp_path):
    task = get_task("enmap_cdl")
    results = [make_result(task, "pretrained", seed, 0.8) for seed in (0, 1)]
    for shots in (1, 5):
        drawn = [make_result(task, "pretrained", seed, 0.4 + shots / 20, fraction=0.02 * shots) for seed in (0, 1)]
        results += [replace(one, shots=shots, fraction=one.fraction + one.seed / 100) for one in drawn]
    write_run(tmp_path / "run", "enmap_cdl", results)
    assert main(["report", str(tmp_path)]) == 0
    (report,) = collect_reports(tmp_path)
    assert [(row.portion.name, len(row.results)) for row in report.rows] == [
        ("100 %", 2),
        ("5 shots", 2),
        ("1 shot", 2),
    ]
    assert report.on_all_tiles == report.rows[:1]
    page = Page((tmp_path / "report.html").read_text())
    for text in ("5 shots", "places of each class", "Each seed draws its own places"):
        assert text in page.text
    assert "% of the training tiles" not in page.text
    assert "| 1 shot " in (tmp_path / "report.md").read_text()
    lines = list(csv.DictReader((tmp_path / "report.csv").open()))
    assert {(line["shots"], line["fraction"][:5]) for line in lines} == {("", "1.0"), ("1", "0.025"), ("5", "0.105")}

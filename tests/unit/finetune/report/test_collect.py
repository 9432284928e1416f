"""Which results belong together: rows by all that results depend on, tasks by their test, and what can't be read."""

import json
import shutil
from pathlib import Path

import pytest
from support.evaluation_runs import TILES, Page, collect_reports, make_encoders, make_result, write_run

from finetune.__main__ import main
from finetune.report.rows import Row
from finetune.tasks import get_task

CDL = get_task("enmap_cdl")


def _names(rows: list[Row]) -> list[str]:
    return [f"{row.label} · {row.name}" for row in rows]


def test_results_of_different_settings_are_never_seeds_of_one_row(tmp_path):
    """Named by what differs, in one order, and by nothing else."""
    for number, settings in enumerate(({"epochs": 30}, {"epochs": 50}, {"epochs": 50, "train labels": "b" * 64})):
        told = {"train labels": "c" * 64, "views": 8} | settings
        results = [make_result(CDL, "pretrained", number, 0.6 + number / 10, **told)]
        write_run(tmp_path / str(number), "enmap_cdl", results, encoders=make_encoders())
    (report,) = collect_reports(tmp_path)
    assert _names(report.rows) == [
        "run/encoder.safetensors · frozen, conv · 30 epochs · train labels cccccc",
        "run/encoder.safetensors · frozen, conv · 50 epochs · train labels cccccc",
        "run/encoder.safetensors · frozen, conv · 50 epochs · train labels bbbbbb",
    ]
    assert [len(row.results) for row in report.rows] == [1, 1, 1]
    again = collect_reports(*(tmp_path / str(number) for number in (2, 0, 1)))[0]
    assert sorted(_names(again.rows)) == sorted(_names(report.rows))


def test_encoders_of_one_name_are_told_apart_by_their_weights_and_one_of_two_names_is_one(tmp_path):
    for seed, (folder, letter) in enumerate((("one", "a"), ("two", "b"), ("three", "a"))):
        encoders = make_encoders(letter)
        if folder == "three":
            encoders["pretrained"]["name"] = "copy/of-it.safetensors"
        write_run(tmp_path / folder, "enmap_cdl", [make_result(CDL, "pretrained", seed, 0.8)], encoders=encoders)
    (report,) = collect_reports(tmp_path / "one", tmp_path / "two", tmp_path / "three")
    assert [(row.label, len(row.results)) for row in report.rows] == [
        ("run/encoder.safetensors (aaaaaa)", 2),
        ("run/encoder.safetensors (bbbbbb)", 1),
    ]


def test_untrained_networks_of_other_weights_are_other_rows(tmp_path):
    for seed, letter in enumerate("de"):
        encoders = make_encoders()
        encoders["random"]["sha256"] = letter * 64
        results = [make_result(CDL, "random", seed, 0.4 + seed / 10), make_result(CDL, "pretrained", 7, 0.8)]
        write_run(tmp_path / letter, "enmap_cdl", results, encoders=encoders)
    (report,) = collect_reports(tmp_path)
    assert [row.label for row in report.rows] == [
        "run/encoder.safetensors",
        "spec_vit_base, random init (dddddd)",
        "spec_vit_base, random init (eeeeee)",
    ]


def test_any_two_encoders_are_tested_and_the_better_one_is_named(tmp_path, capsys):
    """As are two settings of one encoder; p are corrected for all of them."""
    for letter, right in (("a", 0.8), ("b", 0.6), ("c", 0.6)):
        results = [make_result(CDL, "pretrained", seed, right) for seed in (0, 1)]
        if letter == "a":
            results += [make_result(CDL, "pretrained", seed, 0.5, epochs=1) for seed in (0, 1)]
        write_run(tmp_path / letter, "enmap_cdl", results, encoders=make_encoders(letter))
    (report,) = collect_reports(tmp_path)
    tested = {
        (one.first.identity[0], one.second.identity[0]): one
        for one in report.comparisons
        if one.first.rest == one.second.rest
    }
    assert set(tested) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert len(report.comparisons) == 4
    assert tested["a", "b"].p < 0.05
    assert tested["a", "b"].difference > 0.1
    assert tested["b", "c"].p > 0.05
    assert all(row.p is None for row in report.rows)
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "two encoders in one setting, and one encoder in two" in text
    assert "(aaaaaa) · frozen, conv · 30 epochs" in text
    assert "Comparisons" in Page((tmp_path / "report.html").read_text()).text


@pytest.mark.parametrize("what", ["labels", "tiles", "classes"])
def test_what_can_not_be_compared_is_apart_and_said(tmp_path, what):
    changes: dict[str, dict[str, object]] = {
        "labels": {
            "data": {
                "labels": {"test": "d" * 64},
                "tiles": {"train": 1, "val": 1, "test": TILES},
                "sensor": "enmap",
                "split": "location",
                "window": 8,
            }
        },
        "tiles": {"tiles": [f"other-{number}" for number in range(TILES)]},
        "classes": {"task": CDL.model_copy(update={"ignore": [77]})},
    }
    write_run(tmp_path / "one", "enmap_cdl", [make_result(CDL, "pretrained", 0, 0.8)])
    write_run(tmp_path / "two", "enmap_cdl", [make_result(CDL, "pretrained", 1, 0.7)], **changes[what])
    reports = collect_reports(tmp_path)
    assert len({report.title for report in reports}) == 2
    assert [len(report.rows) for report in reports] == [1, 1]
    assert not any(report.comparisons for report in reports)
    assert main(["report", str(tmp_path)]) == 0
    page = Page((tmp_path / "report.html").read_text())
    assert "enmap_cdl: runs differ in classes, test tiles or test labels, so that these can't be compared" in page.text


def test_the_same_results_given_twice_count_once(tmp_path):
    folder = write_run(tmp_path / "one", "enmap_cdl", [make_result(CDL, "pretrained", seed, 0.8) for seed in (0, 1)])
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "link").symlink_to(folder)
    (report,) = collect_reports(tmp_path / "copy", folder, tmp_path / "link", tmp_path / "one" / ".." / "one", tmp_path)
    assert [len(row.results) for row in report.rows] == [2]
    assert len(report.costs) == 1


def test_other_scores_of_the_same_seed_are_another_row(tmp_path):
    for name, right in (("one", 0.8), ("two", 0.7)):
        write_run(tmp_path / name, "enmap_cdl", [make_result(CDL, "pretrained", seed, right) for seed in (0, 1)])
    (report,) = collect_reports(tmp_path)
    assert [row.name for row in report.rows] == [f"frozen, conv · run {tmp_path / name}" for name in ("one", "two")]


def _as_earlier_version(folder: Path, config: str | None) -> None:
    path = folder / "results.json"
    content = json.loads(path.read_text())
    content["format"] = 1
    del content["data"]["labels"]
    for one in content["results"]:
        del one["provenance"]
    path.write_text(json.dumps(content))
    if config is not None:
        (folder / "config.yaml").write_text(config)


def test_results_of_an_earlier_version_are_read_and_not_mixed_with_others(tmp_path):
    """Their settings are those of the config beside them; without it, nothing is known to agree."""
    config = (
        "{{frozen: {{epochs: {}}}, full: {{}}, recipe: ours, select: score, data: {{bands: same}}, "
        "engine: {{precision: fp32}}, run: {{seed: 0}}}}"
    )
    epochs = {"a": 20, "b": 20, "c": 40, "d": None, "e": None}
    for seed, (name, count) in enumerate(epochs.items()):
        write_run(tmp_path / name, "enmap_cdl", [make_result(CDL, "pretrained", seed, 0.8)])
        _as_earlier_version(tmp_path / name, None if count is None else config.format(count))
    write_run(tmp_path / "new", "enmap_cdl", [make_result(CDL, "pretrained", 9, 0.8)])
    reports = collect_reports(tmp_path)
    found = sorted([one.seed for one in row.results] for report in reports for row in report.rows)
    assert found == [[0, 1], [2], [3], [4], [9]]
    assert len({(report.title, row.name) for report in reports for row in report.rows}) == 5


def test_runs_that_have_not_ended_and_results_that_can_not_be_read_are_said(runs, tmp_path, capsys):
    shutil.copytree(runs / "cdl", tmp_path / "cdl")
    config = "task: enmap_cdl\ncompare_random: true\nprotocol: [knn, full]\nfractions: [1.0, 0.1]\n"
    failed = tmp_path / "failed"
    failed.mkdir()
    (failed / "config.yaml").write_text(config)
    (failed / "status.json").write_text('{"status": "failed", "step": 5, "steps": 8, "reason": "diverged"}')
    pretraining = tmp_path / "pretraining"
    pretraining.mkdir()
    (pretraining / "config.yaml").write_text("objective: {name: mae}\n")
    assert main(["report", str(tmp_path)]) == 0
    told = f"{failed}: not finished (failed, diverged): 5 of 8 parts done; missing: random full, random knn of 10 %"
    assert told in capsys.readouterr().out
    assert told in Page((tmp_path / "report.html").read_text()).text

    cut = tmp_path / "cdl" / "seed-0" / "results.json"
    cut.write_bytes(cut.read_bytes()[:1000])
    newer = tmp_path / "cdl" / "seed-1" / "results.json"
    newer.write_text(newer.read_text().replace('"format": 2', '"format": 3'))
    assert main(["report", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 2
    assert f"error: {cut}: damaged results" in said.err
    assert f"error: {newer}: format 3, this version reads 2 and earlier ones" in said.err
    assert "seed-0/results.json: damaged results" in (tmp_path / "report.md").read_text()

    shutil.rmtree(tmp_path / "cdl")
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {failed}: not finished")

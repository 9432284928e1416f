"""The tables over all tasks, and of what rows cost."""

from dataclasses import replace

from support.evaluation_runs import collect_reports, make_result, write_run

from finetune.report.cost import cost_legend, cost_table
from finetune.report.markdown import markdown
from finetune.report.over_tasks import over_tasks
from finetune.report.page import page
from finetune.tasks import get_task


def test_encoders_are_ranked_over_the_tasks_that_they_share(runs):
    lines = over_tasks(collect_reports(runs))
    assert [line[0] for line in lines[1:]] == ["runs/mae-b", "spec_vit_base, random init"]
    assert float(lines[1][1].split(" [")[0]) > float(lines[2][1].split(" [")[0])
    assert [line[2] for line in lines[1:]] == ["1.0", "1.7"]  # equal in one task of three
    assert "Over all tasks" in page(collect_reports(runs))
    assert "Over all tasks" in markdown(collect_reports(runs))


def test_one_task_or_one_encoder_is_not_ranked(runs, tmp_path):
    assert len(over_tasks(collect_reports(runs / "cdl"))) == 1
    for name in ("enmap_cdl", "enmap_corine"):
        write_run(tmp_path / name, name, [make_result(get_task(name), "pretrained", 0, 0.7)])
    assert len(over_tasks(collect_reports(tmp_path))) == 1
    assert "Over all tasks" not in page(collect_reports(tmp_path))


def test_the_cost_of_a_row_is_that_of_a_seed(tmp_path):
    results = [make_result(get_task("enmap_cdl"), "pretrained", seed, 0.7) for seed in (1, 3)]
    results = [replace(result, seconds=10.0 * result.seed) for result in results]
    encoders = {"pretrained": {"name": "e", "sha256": "a" * 64, "architecture": "spec_vit_base", "gflops": 12.345}}
    (report,) = collect_reports(write_run(tmp_path / "run", "enmap_cdl", results, encoders=encoders))
    assert cost_table(report)[1] == ["e", "frozen, conv", "100 %", "20.0", "12.3", "–", "–"]


def test_the_cost_of_a_training_has_the_trained_share_and_its_memory(tmp_path):
    size = {"parameters": 40_000_000, "trained": 500_000, "state_bytes": 6_000_000}
    results = [make_result(get_task("enmap_cdl"), "pretrained", seed, 0.7, "lora") for seed in (0, 1)]
    on_cpu = [replace(result, size=size) for result in results]
    (report,) = collect_reports(write_run(tmp_path / "cpu", "enmap_cdl", on_cpu))
    assert [line[5:] for line in cost_table(report)] == [["trained", "state"], ["1.25 %", "6 MB"]]
    on_gpu = [replace(result, size=size | {"peak_bytes": (2 + result.seed) * 10**9}) for result in results]
    (report,) = collect_reports(write_run(tmp_path / "gpu", "enmap_cdl", on_gpu))
    assert [line[7:] for line in cost_table(report)] == [["peak"], ["3 GB"]]
    assert "allocated on its GPU" in cost_legend(report)


def test_results_of_earlier_versions_are_shown_without_operations(runs):
    assert {tuple(line[4:]) for line in cost_table(collect_reports(runs)[0])[1:]} == {("–", "–", "–")}

"""A bound on the errors of labeled tiles is in the record of the data, and on the page of the report."""

from support.evaluation_runs import Page, make_result, write_run
from support.tiles import write_archive

from finetune.__main__ import main
from finetune.evaluate import max_error_of
from finetune.tasks import get_task
from shards.pack.build import pack
from shards.pack.scan import PackConfig


def test_the_bound_of_labeled_shards_is_known(tmp_path):
    write_archive(tmp_path / "source", scenes={"0000017": ("00003",)})
    for name, codec in (("bounded", '{"id": "bounded_predictor", "max_error": "3"}'), ("lossless", "fast")):
        pack(tmp_path / "source", tmp_path / name, PackConfig(codec=codec))
    bounds = [max_error_of(shards) for shards in (str(tmp_path / "bounded"), str(tmp_path / "lossless"), None)]
    assert bounds == ["3", "", ""]


def test_the_report_says_it(tmp_path):
    task = get_task("enmap_cdl")
    results = [make_result(task, "pretrained", 0, 0.8), make_result(task, "random", 0, 0.6)]
    data = {"tiles": {"train": 60, "val": 20, "test": 40}, "labels": {"test": "3"}, "sensor": "enmap"}
    write_run(
        tmp_path / "run", "enmap_cdl", results, data=data | {"split": "published", "window": 8, "max error": "noise/4"}
    )
    assert main(["report", str(tmp_path)]) == 0
    text = Page((tmp_path / "report.html").read_text()).text
    assert "windows of 8 px, stored with a maximum error of noise/4" in text

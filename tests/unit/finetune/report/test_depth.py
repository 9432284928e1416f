"""Scores of linear probes over the depth of an encoder."""

import pytest
from support.evaluation_runs import Page, collect_reports, make_result, write_run

from finetune.report.depth import depth_sentences, depth_table
from finetune.report.markdown import markdown
from finetune.report.page import page
from finetune.tasks import get_task

CDL = get_task("enmap_cdl")


def _report(folder, scores: dict[int, float]):
    results = [make_result(CDL, "pretrained", seed, 0.9) for seed in (0, 1)]
    for encoder, factor in (("pretrained", 1.0), ("random", 0.5)):
        for layer, score in scores.items():
            results += [
                make_result(CDL, encoder, seed, factor * score, f"layer {layer}", layer=layer) for seed in (0, 1)
            ]
    (report,) = collect_reports(write_run(folder / "run", CDL.name, results))
    return report


def test_the_best_layer_is_named_and_compared_with_the_last(tmp_path):
    report = _report(tmp_path, {0: 0.3, 10: 0.8, 2: 0.6, 11: 0.7})
    head, *lines = depth_table(report)
    assert head == ["layer", "runs/mae-b", "spec_vit_base, random init"]
    assert [line[0] for line in lines] == ["0", "2", "10", "11"]
    first, second = depth_sentences(report)
    assert first.startswith("runs/mae-b: layer 10 is best on the validation tiles: test mIoU 67.0")
    assert "; the last layer, 11: 5" in first
    assert second.startswith("spec_vit_base, random init: layer 10 is best on the validation tiles")
    text = Page(page([report])).text
    assert first in text
    assert "layer 10, conv · runs/mae-b" not in text.split("by class")[1].split("Learning")[0]  # bars are of other rows
    assert "counted from 0" in text
    assert first in markdown([report])


def test_the_last_layer_may_be_the_best(tmp_path):
    (first, _) = depth_sentences(_report(tmp_path, {0: 0.3, 1: 0.8}))
    assert first.startswith("runs/mae-b: the last layer, 1, is best on the validation tiles: test mIoU 67.0")


@pytest.mark.parametrize("scores", [{}, {0: 0.5}])
def test_nothing_is_drawn_of_fewer_than_two_layers(tmp_path, scores):
    report = _report(tmp_path, scores)
    assert len(depth_table(report)) == 1
    assert "counted from 0" not in page([report]) + markdown([report])

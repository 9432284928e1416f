"""Tables of the study on real labels, from results that are made up."""

from dataclasses import replace

from support.evaluation_runs import TILES, make_result

from finetune.baselines.registry import SPECTRA
from finetune.tasks import get_task
from tools.study import PROTOCOLS, Findings, tables

TASK = get_task("enmap_cdl")
SEEDS = range(3)


def _findings(pretrained: float, random: float, spectra: float) -> Findings:
    rows = {
        (encoder, protocol): [make_result(TASK, encoder, seed, right, protocol) for seed in SEEDS]
        for encoder, right in (("pretrained", pretrained), ("random", random))
        for protocol in PROTOCOLS
    }
    rows["raw", "knn"] = [make_result(TASK, "raw", 0, spectra, "knn")]
    for number, name in enumerate(("linear", "svm")):
        made = [make_result(TASK, SPECTRA, seed, spectra - number / 10, "baseline") for seed in SEEDS]
        rows[SPECTRA, name] = [replace(result, head=name) for result in made]
    return Findings(TASK, [f"place-{number}" for number in range(TILES)], rows)


def test_encoders_are_compared_with_their_initial_weights_and_with_the_best_model_on_spectra():
    encoders, spectra = tables([_findings(0.9, 0.5, 0.7)])
    assert encoders[0] == "| EnMAP-CDL: mIoU | pretrained | random init | difference | p |"
    assert [line.split()[1] for line in encoders[2:]] == list(PROTOCOLS)
    assert all("| +0." in line and float(line.split("|")[-2]) < 0.05 for line in encoders[2:])
    assert all(line.count("±") == 2 for line in encoders[2:])
    assert [line.split(" |")[0] for line in spectra[2:5]] == ["| knn", "| linear", "| svm"]
    assert "±" not in spectra[2]
    assert " minus linear: +0." in spectra[-1]


def test_an_encoder_that_is_worse_than_spectra_has_a_negative_difference():
    *_, spectra = tables([_findings(0.5, 0.5, 0.9)])
    assert " minus linear: -0." in spectra[-1]


def test_the_tests_of_a_task_are_corrected_together():
    findings = _findings(0.9, 0.5, 0.7)
    few = replace(findings, rows={row: made for row, made in findings.rows.items() if row[1] != "full"})
    (all_tests, _), (fewer, _) = tables([findings]), tables([few])
    assert float(all_tests[2].split("|")[-2]) > float(fewer[2].split("|")[-2]) > 0


def test_the_best_row_is_one_that_sees_all_bands():
    findings = _findings(0.5, 0.5, 0.9)
    shifted = [make_result(TASK, "pretrained", seed, 1.0, "shift to vnir") for seed in SEEDS]
    rows = findings.rows | {("pretrained", "shift to vnir"): shifted, ("random", "shift to vnir"): shifted}
    encoders, spectra = tables([replace(findings, rows=rows)])
    assert encoders[-1].startswith("| shift to vnir |")
    assert "shift" not in spectra[-1]

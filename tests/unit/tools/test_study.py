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
    for encoder in ("pretrained", "random"):  # without a seed
        del rows[encoder, "knn"][1:]
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
    assert [line.count("±") for line in encoders[2:]] == [0, 2, 2, 2, 2]
    assert [line.split(" |")[0] for line in spectra[2:5]] == [
        "| nearest neighbors, mean of a patch",
        "| linear",
        "| svm",
    ]
    assert "±" not in spectra[2]
    assert " minus linear: +0." in spectra[-1]


def test_an_encoder_that_is_worse_than_spectra_has_a_negative_difference():
    *_, spectra = tables([_findings(0.5, 0.5, 0.9)])
    assert " minus linear: -0." in spectra[-1]


def test_tests_of_all_tasks_are_corrected_together():
    alone, _ = tables([_findings(0.9, 0.5, 0.7)])
    both = list(tables([_findings(0.9, 0.5, 0.7)] * 2))
    assert len(both) == 4
    assert float(both[0][2].split("|")[-2]) >= float(alone[2].split("|")[-2])

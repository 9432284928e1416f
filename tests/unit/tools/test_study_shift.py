"""Tables of the study of spectral shift, from results that are made up."""

from dataclasses import replace

import numpy as np
from support.evaluation_runs import TILES, make_result

from finetune.evaluation.neighbors import SAME_PLACE
from finetune.evaluation.results import Result
from finetune.tasks import get_task
from finetune.tasks.kinds.kind import kind_of
from tools.study_shift import _retrieval, _scores

TASK = get_task("enmap_cdl")
PLACES = [f"place-{number}" for number in range(TILES)]


def _result(seed: int, score: float, found: float) -> Result:
    result = make_result(TASK, "pretrained", seed, score, "shift to all")
    scores = dict.fromkeys(SAME_PLACE, found) | {"tile_chance": 0.04, "patch_chance": 0.01}
    return replace(result, test=result.test | scores, same_place=np.full((TILES, len(SAME_PLACE)), found))


def test_tables_have_deviations_over_seeds_and_intervals_over_places():
    seeds = [{"all": _result(seed, 0.8, 1.0), "vnir": _result(seed, 0.4, 0.5)} for seed in range(3)]
    study = {"wave": seeds, "raw spectra": seeds[:1]}
    head, _, wave, raw = _scores(study, kind_of(TASK), PLACES)
    assert head == "| encoder: mIoU | all | vnir |"
    assert wave.count("±") == 2
    assert "(100 %)" in wave
    assert "±" not in raw
    kept = float(wave.rpartition("(")[2].split(" %")[0]) / 100
    scores = [np.mean([seed[bands].test["mIoU"] for seed in seeds]) for bands in ("all", "vnir")]
    assert abs(kept - scores[1] / scores[0]) < 0.02
    head, _, wave, raw = _retrieval(study, "patch", PLACES)
    assert head == "| encoder: same patch found (by chance 0.010), cosine (of others) | vnir |"
    assert wave == "| wave | 0.500 ± 0.000 [0.50, 0.50], 0.50 (0.50) |"
    assert raw == "| raw spectra | 0.500 [0.50, 0.50], 0.50 (0.50) |"

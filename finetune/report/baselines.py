"""Whether encoders beat the best baseline without an encoder, in a sentence for each."""

from finetune.metrics.metric import lower_is_better
from finetune.report.compare import SIGNIFICANT
from finetune.report.rows import Comparison, TaskReport
from finetune.report.tables import difference, number, title

TESTED = (
    "Baselines are models of scikit-learn on spectra, and nearest neighbors of raw spectra. The row of each encoder "
    "with the best validation score is compared with the baseline that has the best test score, which favors the "
    "baselines. Paired permutation tests; p is corrected by Holm for all of these tests on this page."
)


def baseline_sentences(report: TaskReport) -> list[str]:
    """Return a sentence for each encoder and portion of the tiles; none without baselines."""
    return [_sentence(comparison, report) for comparison in report.against_baselines]


def samples_sentence(report: TaskReport) -> str:
    """Return how many labeled pixels or tiles baselines were fitted to; "" if to all of them."""
    what = "training pixels" if report.kind.is_dense else "training tiles"
    drawn = []
    for row in report.rows:
        used, labeled = row.run.data.get("baseline samples", {}).get(row.portion.key, (0, 0))
        if row.is_baseline and used < labeled:
            drawn.append(f"{used:,} of {labeled:,} labeled {what}")
    return f"Baselines were fitted to {', '.join(dict.fromkeys(drawn))}, drawn by seed." if drawn else ""


def _sentence(comparison: Comparison, report: TaskReport) -> str:
    first, second, metric = comparison.first, comparison.second, comparison.metric
    sign = -1 if lower_is_better(metric) else 1
    if comparison.p >= SIGNIFICANT:
        verdict = "does not differ significantly from"
    else:
        verdict = "beats" if sign * comparison.difference > 0 else "is worse than"
    share = "" if first.portion.is_all else f" With {first.portion.of_tiles},"
    scores = f"{number(first.mean(metric), metric)} against {number(second.mean(metric), metric)}"
    return (
        f"{share} {first.label} ({first.name}) {verdict} the best baseline, {second.label} ({second.name}): "
        f"{title(metric)} {scores}, a difference of {difference(comparison)}, p = {comparison.p:.2g}."
    ).strip()

"""One table over all tasks of a report: the interquartile mean and the mean rank of each encoder."""

import numpy as np

from finetune.metrics.aggregate import aggregate
from finetune.metrics.metric import lower_is_better
from finetune.report.leaderboard import RANKED
from finetune.report.rows import TaskReport

LEGEND = f"Over all tasks. {RANKED}"


def over_tasks(reports: list[TaskReport]) -> list[list[str]]:
    """Return head and rows, the best encoder first; only the head unless two encoders share two tasks or more."""
    lines = [["checkpoint", "IQM", "mean rank"]]
    by_report = [_scores(report) for report in reports]
    shared = [label for label in by_report[0] if all(label in scores for scores in by_report)]
    if len({report.task.name for report in reports}) < 2 or len(shared) < 2:
        return lines
    for label, found in aggregate({label: [scores[label] for scores in by_report] for label in shared}).items():
        low, high = found.interval
        lines.append([label, f"{found.iqm:.3f} [{low:.3f}, {high:.3f}]", f"{found.rank:.1f}"])
    return lines


def _scores(report: TaskReport) -> dict[str, np.ndarray]:
    """Return the test scores of the row of each encoder that is best on the validation tiles; higher is better."""
    sign = -1 if lower_is_better(report.primary) else 1
    defined = [row for row in report.on_all_tiles if np.isfinite(row.mean(report.primary))]
    best = {row.label: row for row in reversed(report.ranked_by_validation(defined))}
    return {label: sign * np.array(row.values(report.primary)) for label, row in best.items()}

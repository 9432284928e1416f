"""The report as Markdown."""

from collections.abc import Sequence

from finetune.report.baselines import TESTED, baseline_sentences, samples_sentence
from finetune.report.calibration import calibration_legend, calibration_table
from finetune.report.cost import cost_legend, cost_table
from finetune.report.depth import depth_legend, depth_sentences, depth_table
from finetune.report.over_tasks import LEGEND as OVER_TASKS
from finetune.report.over_tasks import over_tasks
from finetune.report.rows import TaskReport
from finetune.report.same_place import same_place_legend, same_place_table
from finetune.report.shift import shift_legend, shift_table
from finetune.report.tables import COMPARED, LEGEND, comparisons, notes, overlap, pretraining, spread, summary, title


def markdown(reports: list[TaskReport], more: Sequence[str] = ()) -> str:
    """Return the complete report as Markdown.

    Args:
        more: notes in addition to those on the numbers.
    """
    parts = ["# Evaluation", text_table(summary(reports)), LEGEND, *more, *notes(reports)]
    if len(ranking := over_tasks(reports)) > 1:
        parts += [OVER_TASKS, text_table(ranking)]
    known = pretraining(reports)
    if len(known) > 1:
        parts.append(text_table(known))
    for report in reports:
        metrics = report.kind.metrics
        head = ["checkpoint", "protocol", "tiles", "seeds", *(title(metric) for metric in metrics)]
        lines = [head]
        for row in report.rows:
            start = [row.label, row.name, row.portion.name, str(len(row.results))]
            lines.append([*start, *(spread(row, metric) for metric in metrics)])
        parts += [f"## {report.title}", report.task.description, text_table(lines)]
        shift = shift_table(report)
        if len(shift) > 1:
            parts += ["### Spectral shift", shift_legend(report), text_table(shift)]
        found = same_place_table(report)
        if len(found) > 1:
            parts += [same_place_legend(report), text_table(found)]
        depth = depth_table(report)
        if len(depth) > 1:
            parts += ["### Layers", " ".join(depth_sentences(report)), depth_legend(report), text_table(depth)]
        if report.against_baselines:
            sentences = [*baseline_sentences(report), samples_sentence(report), TESTED]
            parts += ["### Against baselines", " ".join(filter(None, sentences))]
        if report.comparisons:
            parts += [COMPARED, text_table(comparisons(report))]
        calibration = calibration_table(report)
        if len(calibration) > 1:
            parts += ["### Calibration", calibration_legend(report), text_table(calibration)]
        parts += ["### Cost", cost_legend(report), text_table(cost_table(report))]
        parts += filter(None, [overlap(report)])
    return "\n\n".join(parts) + "\n"


def text_table(lines: list[list[str]]) -> str:
    """Return a table from its head and rows."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = ["-" * width for width in widths]
    padded = [
        [text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in [lines[0], rule, *lines[1:]]
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)

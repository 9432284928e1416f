"""What the rows of a task cost: seconds of each seed, and operations of the encoder."""

import numpy as np

from finetune.report.rows import TaskReport
from finetune.report.tables import UNDEFINED

LEGEND = (
    "Seconds: training and evaluation of one seed, on the hardware of the run, averaged over seeds; features that were "
    "stored before are not counted. GFLOPs: a forward of the encoder on one window of {} px (a multiply-add is 2)."
)


def cost_table(report: TaskReport) -> list[list[str]]:
    """Return head and rows of the table."""
    lines = [["checkpoint", "protocol", "tiles", "seconds", "GFLOPs"]]
    for row in report.rows:
        seconds = float(np.mean([result.seconds for result in row.results]))
        gflops = row.encoder.get("gflops")
        known = UNDEFINED if gflops is None else f"{gflops:.3g}"
        lines.append([row.label, row.name, f"{100 * row.fraction:g} %", f"{seconds:,.1f}", known])
    return lines


def cost_legend(report: TaskReport) -> str:
    """Return the explanation of the table."""
    windows = sorted({row.run.data["window"] for row in report.rows})
    return LEGEND.format(" or ".join(map(str, windows)))

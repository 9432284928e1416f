"""What the rows of a task cost: seconds of each seed, operations of the encoder, and the memory of training it."""

import numpy as np

from finetune.report.rows import Row, TaskReport
from finetune.report.tables import UNDEFINED

LEGEND = (
    "Seconds: training and evaluation of one seed, on the hardware of the run, averaged over seeds; features that were "
    "stored before are not counted. GFLOPs: a forward of the encoder on one window of {} px (a multiply-add is 2). "
    "Trained: share of the parameters of encoder and head that a training through the encoder updates; state: its "
    "gradients and optimizer states over all processes, from the number of parameters{}."
)
PEAK = "; peak: the most that the first process allocated on its GPU"


def cost_table(report: TaskReport) -> list[list[str]]:
    """Return head and rows of the table."""
    has_peaks = _has_peaks(report)
    head = ["checkpoint", "protocol", "tiles", "seconds", "GFLOPs", "trained", "state"]
    lines = [head + ["peak"] * has_peaks]
    for row in report.rows:
        seconds = float(np.mean([result.seconds for result in row.results]))
        gflops, size = row.encoder.get("gflops"), row.results[0].size
        known = UNDEFINED if gflops is None else f"{gflops:.3g}"
        trained = f"{100 * size['trained'] / size['parameters']:.3g} %" if size.get("parameters") else UNDEFINED
        costs = [f"{seconds:,.1f}", known, trained, _megabytes(size.get("state_bytes"))]
        peak = [_megabytes(_peak(row))] * has_peaks
        lines.append([row.label, row.name, row.portion.name, *costs, *peak])
    return lines


def cost_legend(report: TaskReport) -> str:
    """Return the explanation of the table."""
    windows = sorted({row.run.data["window"] for row in report.rows})
    return LEGEND.format(" or ".join(map(str, windows)), PEAK if _has_peaks(report) else "")


def _has_peaks(report: TaskReport) -> bool:
    return any(_peak(row) is not None for row in report.rows)


def _peak(row: Row) -> int | None:
    """Return the largest peak of the seeds in bytes; None without CUDA."""
    return max((result.size["peak_bytes"] for result in row.results if "peak_bytes" in result.size), default=None)


def _megabytes(size: int | None) -> str:
    return UNDEFINED if size is None else f"{size / 1e6:,.3g} MB" if size < 1e9 else f"{size / 1e9:,.3g} GB"

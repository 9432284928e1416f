"""The leaderboard as Markdown and as one self-contained HTML file."""

from finetune.report import charts
from finetune.report.leaderboard import LEGEND, RANKED, Board, Submission, aggregates, ranked
from finetune.report.markdown import text_table
from finetune.report.page import TaskPage, html_table
from finetune.report.tables import number, title
from finetune.tasks.kinds.kind import kind_of


def markdown(board: Board) -> str:
    """Return the board as Markdown."""
    parts = ["# Leaderboard", LEGEND]
    if len(overall := aggregates(board)) > 1:
        parts += [text_table(overall), RANKED]
    for name, task in board.tasks.items():
        parts += [f"## {task.title or name}", task.description, text_table(_lines(board, name))]
    if board.refused:
        parts += ["## Refused", "\n".join(f"- {line}" for line in board.refused)]
    return "\n\n".join(parts) + "\n"


def page(board: Board) -> str:
    """Return the board as HTML."""
    overall = aggregates(board)
    tasks = [
        TaskPage(task.title or name, task.description, "", html_table(_lines(board, name)), "", [])
        for name, task in board.tasks.items()
    ]
    return charts.TEMPLATES.get_template("page.html").render(
        heading="Leaderboard",
        summary=html_table(overall, "summary") if len(overall) > 1 else "",
        legend=f"{LEGEND} {RANKED}" if len(overall) > 1 else LEGEND,
        notes=board.refused,
        over_tasks="",
        pretraining="",
        tasks=tasks,
    )


def _lines(board: Board, name: str) -> list[list[str]]:
    """Return head and rows of the table of a task; the best score on all training tiles is bold."""
    metrics = kind_of(board.tasks[name]).metrics
    lines = [["lab", "encoder", "protocol", "tiles", "seeds", *(title(metric) for metric in metrics)]]
    for place, one in enumerate(ranked(board, name)):
        texts = [_score(one, metric) for metric in metrics]
        if place == 0 and one.portion.is_all:
            texts[0] = f"**{texts[0]}**"
        lines.append([one.lab, one.encoder, one.way, one.portion.name, str(len(one.entries)), *texts])
    return lines


def _score(one: Submission, metric: str) -> str:
    values = one.scores(metric)
    if not len(values):
        return number(float("nan"), metric)
    mean = number(float(values.mean()), metric)
    return f"{mean} ± {number(float(values.std(ddof=1)), metric)}" if len(values) > 1 else mean

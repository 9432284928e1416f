"""Grouping of the results in run folders into rows, without duplicates."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from finetune.data.hashes import digest
from finetune.evaluation.provenance import task_hash
from finetune.evaluation.results import Provenance, Result, RunResults, read_results
from finetune.report.compare import judge
from finetune.report.names import name_rows, name_tasks
from finetune.report.rows import Row, TaskReport
from finetune.tasks.kinds.kind import kind_of
from shards.config import parse_values
from shards.errors import ConfigError
from shards.files.text import read_text_file

Run = tuple[Path, RunResults]
RunResult = tuple[Path, RunResults, Result]

EARLIER = {"knn": ("knn",), "frozen": ("frozen", "full", "recipe", "select"), "full": ("full", "recipe", "select")}
"""Sections of a run's config.yaml that results depend on, for results without provenance."""


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Return the folders with results at or below the given ones, each once.

    Raises:
        ConfigError: a folder is missing.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder")
        for path in sorted(folder.rglob("results.json")):
            found.setdefault(path.parent.resolve(), path.parent)
    return list(found.values())


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Read the results of all folders; also return a line for each folder that can't be read."""
    runs, problems = [], []
    for folder in folders:
        try:
            runs.append((folder, read_results(folder)))
        except ConfigError as error:
            problems.append(str(error))
    return runs, problems


def collect(runs: Iterable[Run]) -> list[TaskReport]:
    """Group results: results that differ only in the seed form a row; rows of the same task, test tiles and labels form
    a task's report. Duplicates count once."""
    reports: dict[str, TaskReport] = {}
    groups: dict[str, dict[str, list[RunResult]]] = {}
    for folder, run in runs:
        section = digest([run.task.name, task_hash(run.task), run.tiles, run.places, _test_labels(run)])
        reports.setdefault(section, TaskReport(run.task, run))
        for result in run.results:
            encoder = run.encoders[result.encoder]
            network = [encoder.get("sha256"), encoder.get("architecture")]
            key = digest([network, result.protocol, result.head, result.portion.key, _settings(folder, run, result)])
            groups.setdefault(section, {}).setdefault(key, []).append((folder, run, result))
    for section, report in reports.items():
        for group in groups[section].values():
            report.rows += _rows(group, report)
    tasks = sorted(reports.values(), key=lambda report: report.task.name)
    name_tasks(tasks)
    name_rows(tasks)
    for report in tasks:
        _sort(report)
    judge(tasks)
    return tasks


def _rows(group: list[RunResult], report: TaskReport) -> list[Row]:
    """Return one row, or one row per run if runs have different scores for the same seed."""
    by_seed: dict[int, RunResult] = {}
    for folder, run, result in group:
        _, _, before = by_seed.setdefault(result.seed, (folder, run, result))
        if before is not result and not _is_same(before, result):
            several = {str(name): [each for each in group if each[0] == name] for name, _, _ in group}
            return [_row(results, report, {"run": name}) for name, results in several.items()]
    return [_row(list(by_seed.values()), report, {})]


def _sort(report: TaskReport) -> None:
    """Sort rows by encoder and protocol, both in the order in which they were found."""
    labels, protocols = (list(dict.fromkeys(getattr(row, key) for row in report.rows)) for key in ("label", "protocol"))
    report.rows.sort(
        key=lambda row: (row.is_random_init, labels.index(row.label), protocols.index(row.protocol), row.portion.rank)
    )


def _is_same(first: Result, second: Result) -> bool:
    return (first.test, first.validation, first.statistics.shape) == (
        second.test,
        second.validation,
        second.statistics.shape,
    ) and bool((first.statistics == second.statistics).all())


def _row(group: list[RunResult], report: TaskReport, more: Provenance) -> Row:
    group = sorted(group, key=lambda entry: entry[2].seed)
    folder, run, first = group[0]
    for run_folder, each_run, _ in group:
        report.costs[str(run_folder)] = each_run.cost
    encoder = run.encoders[first.encoder]
    sha256 = str(encoder.get("sha256"))
    is_random_init = bool(encoder.get("untrained", sha256 == "random"))
    return Row(
        label=str(encoder.get("name")),
        identity=sha256,
        is_random_init=is_random_init,
        architecture=str(encoder.get("architecture")),
        protocol=first.protocol,
        head=first.head,
        portion=first.portion,
        settings=_settings(folder, run, first) | more,
        run=run,
        folder=folder,
        results=[result for _, _, result in group],
    )


def _test_labels(run: RunResults) -> Any:
    """Return an identifier of the test labels: their hash, or a substitute for results of earlier versions."""
    if "labels" in run.data:
        return run.data["labels"]["test"]
    if not run.results:
        return None
    first = run.results[0].statistics  # confusion matrices, or predictions and labels
    labels = first.sum(2) if kind_of(run.task).is_dense else first[:, 1]
    return ["an earlier version", digest(labels.tolist())]


def _settings(folder: Path, run: RunResults, result: Result) -> Provenance:
    """Return everything a result depends on besides the seed; for earlier versions, as far as the config records it."""
    if result.provenance:
        return {key: value for key, value in result.provenance.items() if key != "encoder"}
    settings: Provenance = {"version": "earlier"}
    try:
        config = parse_values(read_text_file(folder / "config.yaml", f"{folder}/config.yaml"), f"{folder}/config.yaml")
        for section in EARLIER.get(result.protocol, EARLIER["full"]):
            value = config[section]
            settings |= value if isinstance(value, dict) else {section: value}
        settings |= {"bands": config["data"]["bands"], "precision": config["engine"]["precision"]}
        if result.encoder == "random":
            settings["seed of the weights"] = config["run"]["seed"]
    except Exception:  # any content: without a readable file, nothing is known to agree
        settings["run"] = str(folder)
    known = {key: run.data.get(key) for key in ("split", "window", "hash") if key in run.data}
    settings |= {"window": known.pop("window", None)} | {"tiles": digest(known)}
    for key in ("quota_gb", "save_every", "head", "heads"):
        settings.pop(key, None)
    return settings

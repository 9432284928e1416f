"""The results of an evaluation: ``results.json`` for people and scripts, and arrays for the report.

::

    RUN/results.json    task, encoders, data, and one entry per trained head or model
    RUN/statistics.npz  of entry I, for each test tile: result-I: statistics (TaskKind.accumulate); same_place-I:
                        measures of a spectral shift; calibration-I: sums by bin of confidence. Of all entries:
                        distance_km
    RUN/examples.npz    a few test tiles: rgb, labels, and map-I: predictions of entry I

Earlier versions wrote ``units.npz`` instead of ``statistics.npz``; it can still be read.
"""

import io
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from finetune.evaluation.portion import Portion
from finetune.tasks import Task
from shards.console import get_logger
from shards.errors import ConfigError
from shards.files.atomic import write_atomic
from shards.files.untrusted import read_json_value, read_npz
from shards.format.manifest import first_problem

logger = get_logger(__name__)

FORMAT = 2
READABLE = (1, 2)
"""Format 1 has no provenance."""

STRICT = ConfigDict(extra="forbid", strict=True)
Provenance = dict[str, Any]
"""What a result was computed from, by name; see finetune/evaluation/provenance.py."""


@dataclass(frozen=True)
class Entry:
    """A head or model that was trained, selected on validation and tested once, as recorded in ``results.json``.

    Attributes:
        encoder: key into the results' ``encoders``: ``pretrained`` or ``random``.
        protocol, head: how it was trained; kNN has the head ``knn``.
        fraction: fraction of the training tiles; with few shots, of the tiles that this seed has drawn.
        shots: number of places of each class; None where a fraction of all tiles was asked for.
        lr, epoch: chosen by the validation score; None if nothing is trained.
        validation, test: scores by name; undefined ones are left out.
        by_output: test scores as lists over classes or targets.
        curve: one dict per evaluation: epoch, train_loss, validation_loss and the validation scores.
        seconds: duration of its training and evaluation.
        provenance: everything it depends on except the seed; empty in results of earlier versions.
        size: of a training through the encoder: number of ``parameters``, how many are ``trained``, ``state_bytes`` of
            gradients and optimizer over all processes, and with CUDA ``peak_bytes`` that the first process allocated.
    """

    __pydantic_config__ = STRICT

    encoder: str
    protocol: str
    head: str
    seed: int
    fraction: float
    lr: float | None
    epoch: int | None
    validation: dict[str, float]
    test: dict[str, float]
    by_output: dict[str, list[float | None]]
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    provenance: Provenance = field(default_factory=dict, kw_only=True)
    size: dict[str, int] = field(default_factory=dict, kw_only=True)
    shots: int | None = field(default=None, kw_only=True)

    @property
    def portion(self) -> Portion:
        """The portion of the training tiles."""
        return Portion(self.fraction) if self.shots is None else Portion.few(self.shots)


@dataclass(frozen=True)
class Result(Entry):
    """An entry with its arrays.

    Attributes:
        statistics: per-tile statistics of the test tiles, in the order of ``RunResults.tiles``.
        maps: predictions for the example tiles, in the shape of their labels.
        same_place: the measures `SAME_PLACE` of each test tile (n, 6) in a spectral shift, else (0,).
        calibration: sums of each test tile by bin of confidence (n, 3, BINS), see finetune/metrics/calibration.py; (0,)
            for predictions without probabilities of classes, and in results of earlier versions.
    """

    statistics: np.ndarray = field(default_factory=lambda: np.zeros(0))
    maps: np.ndarray = field(default_factory=lambda: np.zeros(0))
    same_place: np.ndarray = field(default_factory=lambda: np.zeros(0))
    calibration: np.ndarray = field(default_factory=lambda: np.zeros(0))


OPTIONAL = ("same_place", "calibration")
"""Arrays that not every result has."""


@dataclass(frozen=True)
class RunHeader:
    """What the results of a run have in common.

    Attributes:
        encoders: by key, a record of each: name, sha256, architecture, objective, samples_seen, pretrained_on, gflops.
        data: tiles per split, hashes of images and labels, sensor, method of splitting.
        tiles: names of the test tiles; places: the place of each, as text; seen: whether the tile's scene was in the
            pretraining shards (None if not checked).
        baseline: training mean of each target; None for classes.
        cost: seconds by part.
    """

    __pydantic_config__ = STRICT

    task: Task
    encoders: dict[str, dict[str, Any]]
    data: dict[str, Any]
    cost: dict[str, float]
    baseline: list[float] | None
    tiles: list[str]
    places: list[str]
    seen: list[bool] | None


@dataclass(frozen=True, kw_only=True)
class RunResults(RunHeader):
    """The complete results of one run.

    Attributes:
        rgb, labels: images of the example tiles, uint8 (n, S, S, 3), and their labels as the task's kind encodes them.
        distance_km: distance of each test tile to the nearest training tile, NaN if unknown; (0,) in results of earlier
            versions.
    """

    results: list[Result]
    rgb: np.ndarray
    labels: np.ndarray
    distance_km: np.ndarray = field(default_factory=lambda: np.zeros(0))


_HEADER, _ENTRIES = TypeAdapter(RunHeader), TypeAdapter(list[Entry])


def write_results(folder: Path, run: RunResults) -> None:
    """Write the three files, ``results.json`` last."""
    entries = [_entry(result) for result in run.results]
    statistics = {f"result-{number}": result.statistics for number, result in enumerate(run.results)}
    for number, result in enumerate(run.results):
        statistics |= _optional_arrays(result, number)
    statistics["distance_km"] = run.distance_km
    examples = {"rgb": run.rgb, "labels": run.labels}
    examples |= {f"map-{number}": result.maps for number, result in enumerate(run.results)}
    _write_arrays(folder / "statistics.npz", statistics)
    _write_arrays(folder / "examples.npz", examples)
    header = {field.name: getattr(run, field.name) for field in fields(RunHeader)}
    header["task"] = run.task.model_dump(mode="json", exclude_defaults=True)
    write_atomic(folder / "results.json", json.dumps({"format": FORMAT, **header, "results": entries}, indent=1) + "\n")


def read_scores(path: Path) -> tuple[RunHeader, list[Entry]]:
    """Read a ``results.json`` alone, without arrays.

    Raises:
        ConfigError: the file is missing, damaged, doesn't fit `results_schema`, or is from a newer version.
    """
    try:
        content = read_json_value(path.read_bytes())
        version = content.pop("format", None) if isinstance(content, dict) else None
        if version not in READABLE:
            is_newer = isinstance(version, int) and version > FORMAT
            hint = "read them with the version that wrote them, or evaluate again" if is_newer else "evaluate again"
            raise ConfigError(f"{path}: format {version!s:.40}, this version reads {FORMAT} and earlier ones: {hint}")
        listed = content.pop("results", None)
        header, entries = _HEADER.validate_json(json.dumps(content)), _ENTRIES.validate_json(json.dumps(listed))
        undescribed = {entry.encoder for entry in entries} - header.encoders.keys()
        if undescribed:
            raise ValueError(f"the encoder '{min(undescribed)}' is not described")
        return header, entries
    except FileNotFoundError:
        raise ConfigError(f"{path.parent}: no results of an evaluation ({path.name} is missing)") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: damaged results ({first_problem(error)}): run the evaluation again") from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: damaged results ({error}): run the evaluation again") from None


def results_schema() -> dict[str, Any]:
    """Return the JSON schema of ``results.json``."""
    schema, entries = _HEADER.json_schema(), _ENTRIES.json_schema(ref_template="#/$defs/{model}")
    definitions = schema.pop("$defs", {}) | entries.pop("$defs", {})
    properties = {"format": {"enum": list(READABLE)}, **schema["properties"], "results": entries}
    required = ["format", *schema["required"], "results"]
    title = "Results of an evaluation"
    return schema | {"title": title, "properties": properties, "required": required, "$defs": definitions}


def read_results(folder: Path) -> RunResults:
    """Read what `write_results` wrote.

    Raises:
        ConfigError: the results are missing, damaged, or from a newer version.
    """
    try:
        header, entries = read_scores(folder / "results.json")
        statistics, examples = _read_statistics(folder), read_npz(folder / "examples.npz")
        results = [
            Result(
                **vars(entry),
                statistics=statistics[f"result-{number}"],
                maps=examples[f"map-{number}"],
                **_read_optional(statistics, number),
            )
            for number, entry in enumerate(entries)
        ]
        return RunResults(
            **vars(header),
            results=results,
            rgb=examples["rgb"],
            labels=examples["labels"],
            distance_km=statistics.get("distance_km", np.zeros(0)),
        )
    except FileNotFoundError as error:
        raise ConfigError(f"{folder}: no results of an evaluation ({Path(error.filename).name} is missing)") from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"{folder}: damaged results ({error}): run the evaluation again") from None
    except KeyError as error:
        raise ConfigError(f"{folder}: damaged results (array {error} is missing): run the evaluation again") from None


def _read_statistics(folder: Path) -> dict[str, np.ndarray]:
    """Read per-tile statistics, under the current or an earlier file name."""
    path, earlier = folder / "statistics.npz", folder / "units.npz"
    return read_npz(earlier if earlier.is_file() and not path.is_file() else path)


def write_part(path: Path, results: list[Result]) -> None:
    """Write the results of one training, which are kept until all are done."""
    arrays: dict[str, np.ndarray] = {"entries": np.array(json.dumps([_entry(result) for result in results]))}
    for number, result in enumerate(results):
        arrays |= {f"statistics-{number}": result.statistics, f"maps-{number}": result.maps}
        arrays |= _optional_arrays(result, number)
    path.parent.mkdir(exist_ok=True)
    _write_arrays(path, arrays)


def read_part(path: Path) -> list[Result] | None:
    """Read what `write_part` wrote; None if it is missing or damaged, so that the training is repeated."""
    try:
        arrays = read_npz(path)
        arrays |= {key.replace("units-", "statistics-"): value for key, value in arrays.items()}  # earlier versions
        entries = _ENTRIES.validate_json(str(arrays["entries"]))
        return [
            Result(
                **vars(entry),
                statistics=arrays[f"statistics-{number}"],
                maps=arrays[f"maps-{number}"],
                **_read_optional(arrays, number),
            )
            for number, entry in enumerate(entries)
        ]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError) as error:  # ValidationError too
        logger.warning(f"{path}: damaged ({type(error).__name__}): this training is repeated")
        return None


def _entry(result: Result) -> dict[str, Any]:
    return {field.name: getattr(result, field.name) for field in fields(Entry)}


def _optional_arrays(result: Result, number: int) -> dict[str, np.ndarray]:
    """Return the `OPTIONAL` arrays of entry ``number`` that it has, by their names in a file."""
    arrays = {f"{name}-{number}": getattr(result, name) for name in OPTIONAL}
    return {key: array for key, array in arrays.items() if array.size}


def _read_optional(arrays: dict[str, np.ndarray], number: int) -> dict[str, Any]:
    """Return the `OPTIONAL` arrays of entry ``number``, empty where a file has none."""
    return {name: arrays.get(f"{name}-{number}", np.zeros(0)) for name in OPTIONAL}


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())

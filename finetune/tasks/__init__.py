"""Tasks as data: a YAML file each, with kind, sensor, classes or targets, layout of the download, published recipe."""

import re
from collections import Counter
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, Field, field_serializer, model_validator

from finetune.tasks.registry import TASK_KINDS, KindChoice, KindConfig
from finetune.tasks.scene import Scene
from shards.config import ConfigModel, check_config, parse_values
from shards.config.fields import (
    Code,
    InnerPath,
    Name,
    NotNegative,
    Positive,
    Rate,
    Scale,
    Switch,
    Unique,
    Weight,
    Wording,
    expand_path,
)
from shards.config.yaml import dump_yaml
from shards.errors import ConfigError
from shards.files.text import decode_text, read_text_file
from shards.sensors.sensor import NODATA
from shards.sources.layouts import SPLITS


def _hex_color(text: str) -> str:
    """Return a color as ``#rrggbb`` in lower case."""
    digits = text.strip().lower().removeprefix("#")
    if not re.fullmatch("#?(?:[0-9a-f]{3}){1,2}", text.strip().lower()):
        raise ValueError(f"expected a color such as '#ffaa00', got {text!r}")
    return "#" + ("".join(2 * digit for digit in digits) if len(digits) == 3 else digits)


Color = Annotated[str, AfterValidator(_hex_color), Wording("a color in quotes, such as '#ffaa00'")]


class TaskClass(ConfigModel):
    """A class of a label tile: its ``code``, or several ``codes`` that count as one."""

    code: Code | None = None
    codes: Unique[Code] = ()
    name: Name
    color: Color

    @model_validator(mode="before")
    @classmethod
    def _british_spelling(cls, data: Any) -> Any:
        """Accept ``colour``, as tasks in models and results of earlier versions spell it."""
        if isinstance(data, dict) and "colour" in data and "color" not in data:
            return {("color" if key == "colour" else key): value for key, value in data.items()}
        return data

    @model_validator(mode="after")
    def _has_codes(self) -> Self:
        if (self.code is None) == (not self.codes):
            raise ValueError(f"class '{self.name}' needs either .code or .codes")
        return self

    @property
    def all_codes(self) -> tuple[int, ...]:
        return self.codes if self.code is None else (self.code,)


class Target(ConfigModel):
    """A number to predict: a column of the tables, or a band of the target rasters, in ``unit``."""

    name: Name
    description: str = ""
    unit: str = ""


class Layout(ConfigModel):
    """Where a download has its files: ``<root>/<folder>/<images>/<tile>`` and the same below ``labels``, which can also
    be the name of a table of classes."""

    folder: InnerPath
    images: InnerPath
    labels: InnerPath | None = None


class PublishedRecipe(ConfigModel):
    """What SpectralEarth's code trains with: AdamW, cosine to zero, the same for frozen and full; ``batch`` over all
    GPUs; ``crop_scale``: range of the crop's share of the tile."""

    lr: Rate
    weight_decay: Weight
    epochs: Positive
    batch: Positive
    crop_scale: Scale


class FetchNotes(ConfigModel):
    """Where the data of a task comes from, in sentences; what stands before a colon is shown in the table of all."""

    source: Name
    size: Name
    license: Name
    citation: Name
    files: Name
    """Which files go where."""
    bands: Name
    """Which bands the tiles have, and how sure their wavelengths are."""
    splits: Name
    defects: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    """What is known to be wrong with the data, or not to be known."""


class Task(ConfigModel):
    """A task, as its YAML has it: output i of a model is ``classes[i]`` or ``targets[i]``; index C means "don't count".

    ``classes`` of segmentation (one a pixel), classification (one a tile) and multilabel (any number a tile), or
    ``targets`` of regression (values of a tile) and pixel_regression (values of a pixel).
    ``ignore``: codes that don't count; ``others`` for all that no class has. ``NODATA``, which marks what a label file
    itself declares to be none, never counts. ``tiles``: how many each split has. ``scene``: a classic scene that
    `finetune cut` turns into tiles. ``notes``: where the data comes from.
    """

    name: Name
    title: str = ""
    description: str
    kind: KindChoice = KindConfig(name="segmentation")
    sensor: Name = "enmap"
    layout: Layout | None = None
    tiles: dict[str, NotNegative] = Field(default={})
    classes: tuple[TaskClass, ...] = Field(default=(), strict=False)
    targets: tuple[Target, ...] = Field(default=(), strict=False)
    ignore: list[Code] | Literal["others"] = Field(default=[])
    published: PublishedRecipe | None = None
    synthetic: Switch = False
    # left out of models and results, which they don't change
    scene: Scene | None = Field(default=None, exclude=True)
    notes: FetchNotes | None = Field(default=None, exclude=True)

    @model_validator(mode="after")
    def _kind_has_outputs(self) -> Self:
        TASK_KINDS[self.kind.name].check(self)
        return self

    @model_validator(mode="after")
    def _codes_are_unique(self) -> Self:
        owner: dict[int, str] = {}
        ignored = self.ignore if isinstance(self.ignore, list) else []
        pairs = [(code, f"class '{entry.name}'") for entry in self.classes for code in entry.all_codes]
        for code, name in [*pairs, *((code, ".ignore") for code in ignored)]:
            if code in owner:
                raise ValueError(f"code {code} is listed twice, by {owner[code]} and by {name}: remove one of them")
            owner[code] = name
        if any(NODATA in entry.all_codes for entry in self.classes):
            raise ValueError(f"code {NODATA} marks pixels without a label: give the class another code")
        return self

    def __eq__(self, other: object) -> bool:
        """Compare what models and results save of a task."""
        return isinstance(other, Task) and self.model_dump() == other.model_dump()

    @field_serializer("kind")
    def _plain_kind(self, kind: KindConfig) -> Any:
        return kind.to_plain()

    @property
    def outputs(self) -> list[str]:
        """Names of classes or targets."""
        return [output.name for output in self.classes or self.targets]

    @property
    def ignore_index(self) -> int:
        """C, one past the last class."""
        return len(self.classes)

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """Known codes, ascending, and the index of each; C for codes to ignore."""
        pairs = [(code, index) for index, entry in enumerate(self.classes) for code in entry.all_codes]
        if isinstance(self.ignore, list):
            pairs += [(code, self.ignore_index) for code in self.ignore]
        codes, indices = zip(*sorted(pairs), strict=True)
        return np.array(codes, np.int64), np.array(indices, np.int64)

    def to_indices(self, codes: np.ndarray) -> np.ndarray:
        """Turn label codes into class indices, int16 of the same shape; C where a code does not count."""
        known, indices = self._table
        index = np.searchsorted(known, codes).clip(max=len(known) - 1)
        return np.where(known[index] == codes, indices[index], self.ignore_index).astype(np.int16)

    def unknown_codes(self, codes: np.ndarray) -> list[int]:
        """Return codes that are neither a class nor to be ignored; none where all others are."""
        if self.ignore == "others":
            return []
        return sorted(set(np.unique(codes).tolist()) - set(self._table[0].tolist()) - {NODATA})

    @property
    def class_codes(self) -> set[int]:
        """Codes of all classes."""
        return {code for entry in self.classes for code in entry.all_codes}

    @property
    def codes_by_name(self) -> dict[str, int]:
        """The code of each class by its name in lower case, for polygons that name classes."""
        return {entry.name.strip().casefold(): entry.all_codes[0] for entry in self.classes}

    def to_multihot(self, codes: np.ndarray) -> np.ndarray:
        """Return which classes occur anywhere in a tile of label codes, uint8 (C,)."""
        present = np.zeros(self.ignore_index + 1, np.uint8)
        present[np.unique(self.to_indices(codes))] = 1
        return present[:-1]


def task_names() -> list[str]:
    """Return the names of the tasks that come with the project, sorted."""
    return sorted(entry.name.removesuffix(".yaml") for entry in files(__name__).iterdir() if ".yaml" in entry.name)


def get_task(name: str) -> Task:
    """Return a task by its name, or by the path of a YAML file.

    Raises:
        ConfigError: unknown name (the known ones are listed) or a file that is not a task.
    """
    path = Path(name)
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        text = read_text_file(path, f"task '{name}'")
        return _with_table_beside(path, parse_task(text, name, path.suffix))
    if name not in task_names():
        raise ConfigError(
            f"key 'task': unknown task '{name}': known are {', '.join(task_names())}, or the path of a .yaml file"
        )
    return parse_task(files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8"), name)


def _with_table_beside(path: Path, task: Task) -> Task:
    """Return the task with the path of the band table that its file names, relative to here or beside the file."""
    if not task.sensor.lower().endswith(".csv"):
        return task
    try:
        sensor = expand_path(task.sensor)
    except ValueError as error:
        raise ConfigError(f"task '{path}': key 'sensor': {error}") from None
    beside = path.parent / sensor
    use_beside = not Path(sensor).exists() and beside.is_file()
    return task.model_copy(update={"sensor": str(beside) if use_beside else sensor})


def parse_task(text: str | bytes, where: str, suffix: str = ".yaml") -> Task:
    """Parse a task from YAML, or JSON by its suffix; bytes in UTF-8 or in what their byte order mark says.

    Raises:
        ConfigError: not a task; the line names ``where``.
    """
    where = f"task '{where}'"
    try:
        text = text if isinstance(text, str) else decode_text(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    task = check_config(parse_values(text, where, suffix), Task, where)
    _check_names(task, where)
    return task


def _check_names(task: Task, where: str) -> None:
    """Check rules of task files, which models and results of earlier versions may break."""
    if unknown := sorted(task.tiles.keys() - set(SPLITS)):
        raise ConfigError(f"{where}: key 'tiles.{unknown[0]}': no such split: use {', '.join(SPLITS)}")
    names = Counter(name.strip().casefold() for name in task.outputs)
    if same := [name for name, count in names.items() if count > 1]:
        raise ConfigError(f"{where}: two outputs have the name '{same[0]}': give each its own name")


def dump_task(task: Task) -> str:
    """Return the task as YAML, for files that must be understood without the registry."""
    return dump_yaml(task.model_dump(mode="json", exclude_defaults=True))

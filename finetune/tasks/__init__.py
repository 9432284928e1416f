"""Tasks as data: one YAML file each, with classes, colours and what to ignore."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import yaml
from pydantic import ValidationError

from shards.config import ConfigModel
from shards.errors import ConfigError


class TaskClass(ConfigModel):
    """A class of a label tile."""

    code: int
    name: str
    colour: str


class TaskFile(ConfigModel):
    """A task's YAML. Codes that are not listed are ignored, those in ``ignore`` by intent."""

    name: str
    description: str
    classes: list[TaskClass]
    ignore: list[int]
    synthetic: bool = False


@dataclass(frozen=True)
class Task:
    """A segmentation task: class i of the model is ``classes[i]``; index C means "don't count"."""

    name: str
    description: str
    classes: tuple[TaskClass, ...]
    synthetic: bool

    @property
    def ignore_index(self) -> int:
        """C, one past the last class."""
        return len(self.classes)

    def to_indices(self, codes: np.ndarray) -> np.ndarray:
        """Label codes of any integer dtype to class indices, int64 of the same shape."""
        indices = np.full(codes.shape, self.ignore_index, dtype=np.int64)
        for index, one in enumerate(self.classes):
            indices[codes == one.code] = index
        return indices


def get_task(name: str) -> Task:
    """A task by registry name, or by the path of a YAML file.

    Raises:
        ConfigError: unknown name (the known ones are listed) or a file that is no task.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"{path}: no such task file")
        text = path.read_text(encoding="utf-8")
    else:
        folder = files("finetune.tasks")
        known = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
        if name not in known:
            raise ConfigError(f"key 'task': unknown task '{name}': known are {', '.join(known)}")
        text = folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    try:
        task = TaskFile.model_validate(yaml.safe_load(text))
    except (ValidationError, yaml.YAMLError) as error:
        raise ConfigError(f"task '{name}': not a task description: {str(error).splitlines()[0]}") from None
    return Task(task.name, task.description, tuple(task.classes), task.synthetic)

"""Maps of complete scenes: classes, probabilities or values, or features for a model without a head."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from finetune.encoders.model_file import TaskModel
from finetune.predict.cog import MapFormat, write_cog
from finetune.predict.scene_bands import Bands, fit_to_scene
from finetune.predict.scene_image import SceneImage, open_scene
from finetune.predict.sliding_window import Predict, WindowPlan, blend
from finetune.tasks import Task
from finetune.tasks.kinds.kind import kind_of
from shards.console import get_logger
from shards.progress import progress
from shards.sources.image import SpectralImage

logger = get_logger(__name__)

NODATA_NAME = "no data"


@dataclass
class Summary:
    """Summary of a map.

    Attributes:
        shape: height and width of the map in pixels.
        windows, skipped: number of windows predicted, and skipped because they hold no data.
        counts: pixels by class name, for a class map; pixels without data under ``no data``.
    """

    shape: tuple[int, int]
    seconds: float = 0.0
    windows: int = 0
    skipped: int = 0
    counts: dict[str, int] = field(default_factory=dict)


def predict_scene(
    model: TaskModel,
    scene: str | Path,
    output: Path,
    overlap: float,
    batch: int,
    device: torch.device,
    masked: Sequence[str] = (),
    bands: Bands = "same",
) -> Summary:
    """Map a scene; ``output`` appears once it is complete.

    Task kinds with one class per pixel or tile give a class map (see `class_values`); others give one float32 band per
    output: probabilities for a multilabel task, values in the target's unit for a regression. If a tile has one label,
    each pixel of the map is a square of pixels that lie under the same windows (half a window at half overlap). A bare
    encoder gives its features, one pixel per patch.

    Args:
        scene: see `open_scene`.
        overlap: fraction of a window that the next one overlaps, in [0, 1).
        batch: windows per batch.
        masked: quality layers of a product whose flagged values are missing.
        bands: see `fit_to_scene`.

    Raises:
        ConfigError, SourceError: the scene has other bands or is unreadable.
        RasterError: the map can't be written.
    """
    began, raster = time.monotonic(), describe_map(model, Path(scene).name)
    with open_scene(scene, masked) as opened:
        model, selected = fit_to_scene(model, opened, bands)
        image = SceneImage(opened, selected)
        plan = plan_windows(model, *image.grid.shape, overlap)
        raster = replace(raster, control_points=image.raster.control_points(plan.cell))
        _warn_about_georeference(image.raster)
        summary, total = Summary(plan.grid), len(plan.rows) * len(plan.columns)
        with progress("predict", total, unit="window") as bar:

            def done(predicted: int, skipped: int) -> None:
                summary.windows += predicted
                summary.skipped += skipped
                bar.update(predicted + skipped)

            predict = predictor(model.to(device), device, plan)
            parts = blend(plan, image.rows, predict, _channels(model), batch, done)
            rows = (
                _classes(parts, model.task, summary) if model.task and kind_of(model.task).map == "classes" else parts
            )
            write_cog(output, raster, image.grid.coarsened(plan.cell), rows)
    summary.seconds = time.monotonic() - began
    return summary


def _warn_about_georeference(scene: SpectralImage) -> None:
    """Warn about parts of the scene's georeference that the map lacks."""
    if scene.grid.transform is not None:
        return
    if scene.control_points():
        logger.warning(f"{scene.name}: the map keeps its ground control points: use them to warp it to a grid")
        return
    rational = (
        ": its rational coefficients (RPC) apply only to its own pixels" if scene.has_rational_coefficients else ""
    )
    logger.warning(f"{scene.name} has no georeference, so neither does the map{rational}")


def plan_windows(model: TaskModel, height: int, width: int, overlap: float) -> WindowPlan:
    """Plan windows of the encoder's image size with a step of full patches."""
    size, stride = model.description.image_size, model.encoder.stride
    step = max(1, round(size * (1 - overlap) / stride)) * stride
    if model.task is None:
        cell = stride
    else:
        cell = (
            1 if kind_of(model.task).is_dense else math.gcd(size, step)
        )  # the largest cell whose pixels all lie under the same windows
    return WindowPlan(height, width, size, step, cell)


def predictor(model: TaskModel, device: torch.device, plan: WindowPlan) -> Predict:
    """Return the model, on ``device``, as a function of windows: probabilities, values or features for each cell."""
    side = plan.size // plan.cell
    kind = None if model.task is None else kind_of(model.task)

    def predict(windows: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            outputs = model.scores(torch.from_numpy(windows).to(device))
            if kind is not None:
                outputs = kind.blendable(outputs)
            if outputs.ndim == 2:
                outputs = outputs[:, :, None, None].expand(-1, -1, side, side)
            return outputs.cpu().numpy()

    return predict


def describe_map(model: TaskModel, scene: str) -> MapFormat:
    """Return the format of the map of a scene."""
    task, encoder = model.task, model.description
    tags = {"scene": scene, "encoder": f"{encoder.architecture}, {encoder.objective or 'objective unknown'}"}
    if task is None:
        return MapFormat(_channels(model), "float32", math.nan, tags=tags)
    tags |= {"task": task.name, "kind": task.kind.name}
    if kind_of(task).map == "values":
        units = tuple(target.unit for target in task.targets)
        return MapFormat(_channels(model), "float32", math.nan, tuple(task.outputs), tags, units=units)
    values, nodata = class_values(task)
    dtype = "uint8" if max(*values, nodata) <= 255 else "uint16"
    classes = {nodata: NODATA_NAME} | dict(zip(values, task.outputs, strict=True))
    colors = {nodata: (0, 0, 0, 0)} | {
        value: (*bytes.fromhex(task_class.color[1:]), 255)
        for value, task_class in zip(values, task.classes, strict=True)
    }
    # A 16-bit color table has 65,536 entries, in the file and in each overview.
    return MapFormat(1, dtype, nodata, (task.title or task.name,), tags, classes, colors if dtype == "uint8" else {})


def class_values(task: Task) -> tuple[list[int], int]:
    """Return the map's value for each class and for "no data".

    These are the task's own codes if every class has a single code of at most 65535, with 0 for no data (255 if 0 is a
    class); else 1, 2, 3, ... in the task's order, and 0.
    """
    codes = [task_class.all_codes for task_class in task.classes]
    single = [code for code, *more in codes if not more and 0 <= code <= np.iinfo(np.uint16).max]
    free = [value for value in (0, 255) if value not in single]
    if len(single) == len(codes) and free:
        return single, free[0]
    return list(range(1, len(codes) + 1)), 0


def _classes(parts: Iterator[np.ndarray], task: Task, summary: Summary) -> Iterator[np.ndarray]:
    """Convert probabilities (C, rows, W), NaN without data, to the map's values (1, rows, W), and count them."""
    values, nodata = class_values(task)
    table = np.array([*values, nodata], np.uint16 if max(*values, nodata) > 255 else np.uint8)
    names = [*task.outputs, NODATA_NAME]
    for probabilities in parts:
        indices = np.where(np.isnan(probabilities[0]), len(values), probabilities.argmax(0))
        for name, count in zip(names, np.bincount(indices.ravel(), minlength=len(names)).tolist(), strict=True):
            summary.counts[name] = summary.counts.get(name, 0) + count
        yield table[indices][None]


def _channels(model: TaskModel) -> int:
    return len(model.task.outputs) if model.task else model.encoder.feature_dim

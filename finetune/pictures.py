"""Class maps of a few test windows: image, labels, and what each run predicts."""

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from finetune.tasks import Task

matplotlib.use("Agg")


def map_figure(images: np.ndarray, maps: dict[str, np.ndarray], task: Task) -> Figure:
    """Draw a row per window.

    Args:
        images: reflectance (n, S, S, 3), red, green, blue.
        maps: class indices (n, S, S) under each column's title; C of the task is drawn white.
    """
    colours = ListedColormap([one.colour for one in task.classes] + ["#ffffff"])
    figure = Figure(figsize=(1.9 * (len(maps) + 1), 1.9 * len(images) + 0.6), layout="constrained")
    axes = figure.subplots(len(images), len(maps) + 1, squeeze=False)
    top = max(float(np.percentile(images, 99)), 1e-3)
    for row, image in zip(axes, images, strict=True):
        row[0].imshow(np.clip(image / top, 0, 1) ** 0.8, interpolation="nearest")
    for column, predicted in enumerate(maps.values(), start=1):
        for row, one in zip(axes, predicted, strict=True):
            row[column].imshow(one, cmap=colours, vmin=0, vmax=len(task.classes), interpolation="nearest")
    for cell, title in zip(axes[0], ["image", *maps], strict=True):
        cell.set_title(title, fontsize=9)
    for cell in axes.flat:
        cell.axis("off")
    legend = [Patch(color=one.colour, label=one.name) for one in task.classes]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), fontsize=8)
    return figure

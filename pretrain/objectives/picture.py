"""The reconstruction picture: a held-out tile as RGB and as spectra, masked, predicted and true."""

import io
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shards.sensors.rgb import stretch, stretch_limits
from shards.sensors.sensor import Sensor
from shards.sensors.spectrum import gaps

matplotlib.use("Agg")

MASKED = 0.35
"""Brightness of masked patches: gray."""

MARGINS = {"left": 0.07, "right": 0.985, "bottom": 0.125, "top": 0.95, "hspace": 0.12, "wspace": 0.05}
"""Those of all figures, as shares of their sides: computing a layout makes drawing a third longer."""


def unpatchify(patches: np.ndarray, patch_size: int) -> np.ndarray:
    """Join patches (T, p*p, C) to an image (H, W, C)."""
    grid = round(len(patches) ** 0.5)
    image = patches.reshape(grid, grid, patch_size, patch_size, -1).transpose(0, 2, 1, 3, 4)
    return image.reshape(grid * patch_size, grid * patch_size, -1)


def reconstruction_figure(
    truth: np.ndarray,
    predicted: np.ndarray,
    masked: np.ndarray,
    patch_size: int,
    sensor: Sensor,
    note: str,
) -> Figure:
    """Draw one tile.

    Args:
        truth, predicted: reflectance (T, p*p, C), 1.0 = all light; ``predicted`` is used where masked.
        masked: grid ids of the masked patches.
        sensor: whose bands they are.
        note: printed below, "" for none.
    """
    hidden = truth.copy()
    hidden[masked] = np.nan
    filled = truth.copy()
    filled[masked] = predicted[masked]
    images = [unpatchify(patches, patch_size)[..., list(sensor.rgb)] for patches in (hidden, filled, truth)]
    limits = stretch_limits(images[2])
    figure = Figure(figsize=(11, 6.5))
    grid = figure.add_gridspec(2, 3, height_ratios=(1, 1.1), **MARGINS)
    for column, (image, title) in enumerate(zip(images, ("masked", "predicted", "true"), strict=True)):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(stretch(image, limits, MASKED), interpolation="nearest")
        axes.set_title(title)
        axes.axis("off")
    _draw_spectra(figure.add_subplot(grid[1, :]), truth, predicted, masked, sensor)
    figure.supxlabel(note, fontsize=8, color="0.35")
    return figure


def _draw_spectra(axes: Axes, truth: np.ndarray, predicted: np.ndarray, masked: np.ndarray, sensor: Sensor) -> None:
    """Draw mean spectra of three masked patches, from dark to bright."""
    order = np.argsort(truth[masked].mean((1, 2)))
    chosen = masked[order[[len(order) // 10, len(order) // 2, -1 - len(order) // 10]]]
    centers, widths = np.asarray(sensor.wavelength_nm), np.asarray(sensor.fwhm_nm)
    bands = np.argsort(centers)
    breaks = gaps(centers[bands], widths[bands])  # those of water vapor are not interpolated
    for patch, color in zip(chosen, ("tab:blue", "tab:green", "tab:orange"), strict=True):
        for values, style, name in ((truth, "-", "true"), (predicted, "--", "predicted")):
            parts = np.split(values[patch].mean(0)[bands], breaks)
            for number, (nm, part) in enumerate(zip(np.split(centers[bands], breaks), parts, strict=True)):
                label = f"patch {patch}, {name}" if number == 0 else None
                axes.plot(nm, part, style, color=color, lw=1.2, label=label)
    axes.set_xlabel("wavelength [nm]")
    axes.set_ylabel("reflectance")
    axes.legend(ncols=3, fontsize=8)
    axes.grid(alpha=0.3)


def band_error_figure(lines: Mapping[str, tuple[Sensor, np.ndarray]]) -> Figure:
    """Draw the mean squared error of bands over wavelength.

    Args:
        lines: sensor and errors (C,) by the name of a dataset.
    """
    figure = Figure(figsize=(9, 4))
    axes = figure.add_subplot(figure.add_gridspec(1, 1, **MARGINS)[0])
    for color, (name, (sensor, errors)) in enumerate(lines.items()):
        centers, widths = np.asarray(sensor.wavelength_nm), np.asarray(sensor.fwhm_nm)
        order = np.argsort(centers, kind="stable")
        for number, part in enumerate(np.split(order, gaps(centers[order], widths[order]))):
            axes.plot(centers[part], errors[part], f".-C{color}", ms=3, lw=1, label=None if number else name)
    axes.set_xlabel("wavelength [nm]")
    axes.set_ylabel("squared error of normalized values")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def draw(figure: Figure) -> bytes:
    """Draw a figure as PNG: once for the run folder and all loggers, since the other ranks wait for it."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    return data.getvalue()

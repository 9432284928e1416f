"""The reconstruction picture: one held-out tile as RGB and as spectra, masked, predicted and true."""

import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shards.atomic import write_atomic

matplotlib.use("Agg")


def unpatchify(patches: np.ndarray, patch_size: int) -> np.ndarray:
    """(T, p*p, C) back to an image (H, W, C)."""
    grid = round(len(patches) ** 0.5)
    image = patches.reshape(grid, grid, patch_size, patch_size, -1).transpose(0, 2, 1, 3, 4)
    return image.reshape(grid * patch_size, grid * patch_size, -1)


def reconstruction_figure(
    truth: np.ndarray,
    predicted: np.ndarray,
    masked: np.ndarray,
    patch_size: int,
    wavelength_nm: np.ndarray,
    rgb: tuple[int, int, int],
    note: str,
) -> Figure:
    """Draw one tile.

    Args:
        truth, predicted: reflectance (T, p*p, C), 1.0 = all light; ``predicted`` is used where masked.
        masked: grid ids of the masked patches.
        wavelength_nm: (C,) band centres.
        rgb: three band positions.
        note: printed below, "" for none.
    """
    hidden = truth.copy()
    hidden[masked] = np.nan
    filled = truth.copy()
    filled[masked] = predicted[masked]
    images = [unpatchify(patches, patch_size)[..., list(rgb)] for patches in (hidden, filled, truth)]
    top = max(float(np.nanpercentile(images[2], 99)), 1e-3)
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(1, 1.1))
    for column, (image, title) in enumerate(zip(images, ("masked", "predicted", "true"), strict=True)):
        axes = figure.add_subplot(grid[0, column])
        shown = np.where(np.isnan(image), 0.35, np.clip(image / top, 0, 1) ** 0.8)
        axes.imshow(shown, interpolation="nearest")
        axes.set_title(title)
        axes.axis("off")
    _draw_spectra(figure.add_subplot(grid[1, :]), truth, predicted, masked, wavelength_nm)
    figure.supxlabel(note, fontsize=8, color="0.35")
    return figure


def _draw_spectra(
    axes: Axes, truth: np.ndarray, predicted: np.ndarray, masked: np.ndarray, wavelength_nm: np.ndarray
) -> None:
    """Mean spectra of three masked patches, spread over the range of brightness."""
    order = np.argsort(truth[masked].mean((1, 2)))
    chosen = masked[order[[len(order) // 10, len(order) // 2, -1 - len(order) // 10]]]
    breaks = np.flatnonzero(np.diff(wavelength_nm) > 40) + 1  # the gaps of water vapour are not interpolated
    for patch, colour in zip(chosen, ("tab:blue", "tab:green", "tab:orange"), strict=True):
        for values, style, name in ((truth, "-", "true"), (predicted, "--", "predicted")):
            parts = np.split(values[patch].mean(0), breaks)
            for number, (nm, part) in enumerate(zip(np.split(wavelength_nm, breaks), parts, strict=True)):
                label = f"patch {patch}, {name}" if number == 0 else None
                axes.plot(nm, part, style, color=colour, lw=1.2, label=label)
    axes.set_xlabel("wavelength [nm]")
    axes.set_ylabel("reflectance")
    axes.legend(ncols=3, fontsize=8)
    axes.grid(alpha=0.3)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG in one step."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    write_atomic(path, data.getvalue())

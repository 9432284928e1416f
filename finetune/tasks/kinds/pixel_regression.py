"""Per-pixel regression: every pixel has a value for each target, from rasters such as canopy height or biomass."""

import warnings
from typing import TYPE_CHECKING

import numpy as np

from finetune.metrics.resampled import mean_of_defined
from finetune.metrics.scores import Scores, moment_scores
from finetune.tasks.kinds.kind import LabelSummary
from finetune.tasks.kinds.targets import TargetKind

if TYPE_CHECKING:
    from torch import Tensor

LOW, HIGH, MISSING = "#440154", "#fde725", "#bebebe"


class PixelRegression(TargetKind):
    """Labels are values in the target's unit, float32 (T, S, S), NaN where there is none.

    A tile's statistics are float64 (5, T): the number of pixels, and sums of absolute errors, of squared errors, of
    true values less the training mean, and of the squares of these. They add up over tiles.
    """

    features = "map"
    labels_from = "target_rasters"
    published_heads = ("conv", "fcn")
    standardize = True
    metrics = ("RMSE", "MAE", "R2")
    by_output = ("rmse", "RMSE by target (lower is better)")
    tile_type = np.float64
    label_unit = "px"

    def encode(self, raw: np.ndarray) -> np.ndarray:
        return raw.astype(np.float32)

    def find_problem(self, raw: np.ndarray) -> str | None:
        if len(raw) == self.outputs:
            return None
        return f"the target raster has {len(raw)} bands, but task {self.task.name} has {self.outputs} targets"

    def summarize(self, labels: np.ndarray) -> LabelSummary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a target without a value is NaN, which is reported later
            mean = np.asarray(np.nanmean(labels, axis=(0, 2, 3), dtype=np.float64))
            std = np.asarray(np.nanstd(labels, axis=(0, 2, 3), dtype=np.float64))
        return LabelSummary(mean=mean, std=np.where(std > 0, std, 1.0))

    def predict(self, scores: "Tensor") -> "Tensor":
        return scores.float()

    def blendable(self, scores: "Tensor") -> "Tensor":
        return scores.float()

    def votes(self, labels: np.ndarray, grid: int) -> tuple[np.ndarray, np.ndarray]:
        """Let a position vote for the mean of its pixels; it counts where every target has a value."""
        count, targets, size, _ = labels.shape
        cells = labels.reshape(count, targets, grid, size // grid, grid, size // grid)
        known = np.isfinite(cells)
        sums, numbers = np.where(known, cells, 0.0).sum((3, 5)), known.sum((3, 5))
        means = (sums / np.maximum(numbers, 1)).transpose(0, 2, 3, 1).astype(np.float32)
        return means, (numbers > 0).all(1)

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        return 5, self.outputs

    def accumulate(
        self, statistics: np.ndarray, predicted: np.ndarray, labels: np.ndarray, baseline: np.ndarray | None
    ) -> None:
        assert baseline is not None
        known = np.isfinite(labels)
        error = np.where(known, predicted.astype(np.float64) - labels, 0.0)
        centered = np.where(known, labels - baseline[:, None, None], 0.0)
        sums = [known.astype(float), np.abs(error), error**2, centered, centered**2]
        statistics += np.stack([values.sum((1, 2)) for values in sums])

    def scores(self, statistics: np.ndarray, baseline: np.ndarray | None = None) -> Scores:
        return moment_scores(statistics.sum(0))

    def resampled(self, statistics: np.ndarray, weights: np.ndarray, baseline: np.ndarray | None = None) -> np.ndarray:
        count, squares = weights @ statistics[:, 0], weights @ statistics[:, 2]
        return mean_of_defined(np.where(count > 0, np.sqrt(squares / np.maximum(count, 1e-12)), np.nan).T)

    def picture(self, values: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
        """Draw the first target in viridis, from the lowest to the highest label of the window."""
        from matplotlib import colormaps

        shown, known = values[0], labels[0][np.isfinite(labels[0])]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        share = np.clip((shown - low) / max(high - low, 1e-12), 0, 1)
        drawn = (255 * colormaps["viridis"](np.nan_to_num(share))[..., :3]).astype(np.uint8)
        return np.where(np.isfinite(shown)[..., None], drawn, np.uint8(190))

    def legend(self) -> list[tuple[str, str]]:
        name = self.task.outputs[0]
        return [(f"lowest {name} of the window's labels", LOW), (f"highest {name}", HIGH), ("no label", MISSING)]

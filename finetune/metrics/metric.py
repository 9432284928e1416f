"""How scores are displayed: title, whether in percent, and which direction is better."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A score by its name in results.

    Attributes:
        title: title in tables.
        in_percent: whether values are shown in percent.
    """

    title: str
    in_percent: bool = True
    lower_is_better: bool = False


METRICS: dict[str, Metric] = {
    "loss": Metric("loss", in_percent=False, lower_is_better=True),
    "OA": Metric("OA"),
    "mIoU": Metric("mIoU"),
    "micro_iou": Metric("micro IoU"),
    "macro_f1": Metric("macro F1"),
    "micro_f1": Metric("micro F1"),
    "average_accuracy": Metric("average accuracy"),
    "mAP": Metric("mAP"),
    "micro_mAP": Metric("micro mAP"),
    "ECE": Metric("ECE", lower_is_better=True),
    "RMSE": Metric("RMSE", in_percent=False, lower_is_better=True),
    "MAE": Metric("MAE", in_percent=False, lower_is_better=True),
    "R2": Metric("R2", in_percent=False),
    "tile_cosine": Metric("tiles: cosine", in_percent=False),
    "tile_elsewhere": Metric("tiles: cosine of other places", in_percent=False, lower_is_better=True),
    "tile_top1": Metric("tiles: same place is nearest"),
    "tile_chance": Metric("tiles: by chance"),
    "patch_cosine": Metric("patches: cosine", in_percent=False),
    "patch_elsewhere": Metric("patches: cosine of other places", in_percent=False, lower_is_better=True),
    "patch_top1": Metric("patches: same place is nearest"),
    "patch_chance": Metric("patches: by chance"),
    "hyperview_score": Metric("Hyperview score", in_percent=False, lower_is_better=True),
}
"""All scores by name; task kinds with additional scores register them here."""


def lower_is_better(name: str) -> bool:
    """Return whether a lower value of a score is better."""
    return METRICS[name].lower_is_better if name in METRICS else False

"""A labeled tile, before its image and label are read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Item:
    """One tile of a split.

    Attributes:
        name: unique in the task.
        place: resampling unit of the bootstrap, never split between two groups: the location, or the field.
        scene: acquisition that the tile was cut from; empty if unknown.
        identity: identifies the content together with the name, if known without reading the tile.
        image: reads the image (bands, height, width), int16 or float32.
        label: reads the label as stored in its source: codes (height, width) int64 on the image's grid, ``NODATA`` for
            unlabeled pixels; one code, of shape (); values (T,); or target values (T, height, width), NaN where
            undefined.
        nodata: reads the code that the label file declares as its nodata value, if any.
        file: path of the image, if it has a file of its own.
        lonlat: longitude and latitude of the center in degrees, for tiles without a file; NaN if unknown.
    """

    name: str
    place: str
    scene: str
    identity: str
    image: Callable[[], np.ndarray]
    label: Callable[[], np.ndarray]
    nodata: Callable[[], int | None] = lambda: None
    file: Path | None = None
    lonlat: tuple[float, float] = (float("nan"), float("nan"))


Split = dict[str, list[Item]]

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
        place: what must not be in two groups of a bootstrap: the location, or the field.
        scene: the acquisition that it was cut from; empty where nothing says.
        identity: together with the name, different for different content, where that is known without reading it.
        image: reads (bands, height, width), int16 or float32.
        label: reads the label as its source has it: codes (height, width) int64 on the image's grid, ``NODATA`` where
            there is none; one code, of shape (); values (T,); or target values (T, height, width), NaN where there are
            none.
        nodata: reads the code that the label file declares to be none, where it declares one.
        file: of the image, where it has one of its own.
    """

    name: str
    place: str
    scene: str
    identity: str
    image: Callable[[], np.ndarray]
    label: Callable[[], np.ndarray]
    nodata: Callable[[], int | None] = lambda: None
    file: Path | None = None


Split = dict[str, list[Item]]

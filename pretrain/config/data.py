"""What a run reads, how views of it are cut, and what it is probed on."""

from collections.abc import Mapping
from typing import ClassVar

from shards.config import ConfigModel, NamedConfig
from shards.config.fields import (
    Code,
    NotNegative,
    OpenShare,
    PathText,
    Positive,
    Rate,
    Scale,
    Share,
    Switch,
    Threads,
    Unique,
)
from shards.order.selection import OrderConfig, ViewConfig


class DataConfig(ConfigModel):
    """What is read."""

    shards: PathText
    """Folder or URL of packed shards."""
    view: ViewConfig = ViewConfig()
    """Which tiles of the shards are used."""
    order: OrderConfig = OrderConfig()
    """The order in which tiles are drawn."""
    holdout: OpenShare = 0.01
    """Share of locations kept for the validation loss."""
    read_threads: Threads = 4
    """Threads that read and decode tiles, per process."""
    prefetch: Positive = 2
    """Micro batches read ahead."""
    stage: PathText | None = None
    """Node-local folder to which shards are copied during the first epoch; null reads them where they are."""
    stage_quota_gb: Positive | None = None
    """Largest size of the staged copies, in gigabytes; null for what the disk has."""
    max_bad_tiles: NotNegative = 100
    """Damaged tiles that a run replaces by others before it gives up."""


class AugmentConfig(NamedConfig):
    """Views of a tile. Augmentations with options of their own extend this class."""

    name: str = "crop"
    """What cuts views from tiles."""
    crop_scale: Scale | None = (0.4, 1.0)
    """Range of a crop's share of the tile's area, resized to the image size; null crops exactly the image size."""
    flip: Switch = True
    """Flip views at random, along both axes."""
    blur: Share = 0.0
    """Probability of a Gaussian blur of 0.1 to 2 pixels."""
    clip: Rate | None = None
    """Standard deviations at which normalized values are clipped; null for none."""


class ProbeConfig(ConfigModel):
    """Nearest-neighbor and linear probe of the encoder during training, on shards packed with ``--labels``."""

    RENAMED: ClassVar[Mapping[str, str]] = {"neighbours": "neighbors"}

    shards: PathText
    """Folder or URL of labeled shards with the splits train and val."""
    every: Positive = 5000
    """Steps between two probes."""
    neighbors: Positive = 20
    """Nearest neighbors that vote."""
    samples: Positive = 4096
    """Labeled patches taken from each split."""
    ignore: Unique[Code] = (0,)
    """Labels that are not counted."""

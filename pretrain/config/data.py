"""What a run reads, how views of it are cut, and what it is probed on."""

from typing import Any

from shards.config import ConfigModel
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
from shards.registry import Registry


class DataConfig(ConfigModel):
    """What is read. ``holdout`` is the share of locations kept for the validation loss.

    ``shards`` is a folder or a URL. ``stage`` is a node-local folder that shards are copied to during the
    first epoch. ``max_bad_tiles``: damaged tiles that a run replaces by others before it gives up.
    """

    shards: PathText
    view: ViewConfig = ViewConfig()
    order: OrderConfig = OrderConfig()
    holdout: OpenShare = 0.01
    read_threads: Threads = 4
    prefetch: Positive = 2  # micro batches read ahead
    stage: PathText | None = None
    stage_quota_gb: Positive | None = None
    max_bad_tiles: NotNegative = 100


class AugmentConfig(ConfigModel):
    """Views of a tile. ``crop_scale``: range of the crop's share of the tile's area, resized to the image size;
    null: crops of exactly the image size, never resampled. ``blur``: probability of a Gaussian blur of 0.1 to 2
    pixels. ``clip``: normalized values beyond this many standard deviations are cut to it, null for none."""

    name: str = "crop"
    crop_scale: Scale | None = (0.4, 1.0)
    flip: Switch = True
    blur: Share = 0.0
    clip: Rate | None = None


AUGMENTATIONS: Registry[Any] = Registry("augmentation", config=AugmentConfig)
"""What cuts views from tiles, by name: see ``pretrain.data.augment.Augmentation``."""

AUGMENTATIONS.add("crop", "pretrain.data.augment:build_crop")


class ProbeConfig(ConfigModel):
    """Nearest-neighbour and linear probe of the encoder during training, on labeled shards (packed with
    ``--labels``, splits train and val). ``samples``: labeled patches of each split; ``ignore``: labels not counted."""

    shards: PathText
    every: Positive = 5000
    neighbours: Positive = 20
    samples: Positive = 4096
    ignore: Unique[Code] = (0,)

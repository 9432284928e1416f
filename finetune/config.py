"""The typed config of an evaluation. No torch here: a wrong key is answered before anything heavy loads."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pretrain.config import EngineConfig, Positive, RunConfig
from shards.config import ConfigModel

Rate = Annotated[float, Field(gt=0)]


class LabelledDataConfig(ConfigModel):
    """Image tiles and label tiles of the same relative names, or shards that were packed from such (``--labels``).

    ``splits``: folder of train.txt, val.txt and test.txt (published format, ``location/scene.tif`` a line);
    null splits 60/20/20 by location, seeded by ``run.seed``. Shards carry their splits.
    """

    images: str | None = None
    labels: str | None = None
    shards: str | None = None
    splits: str | None = None
    sensor: str = "enmap"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.shards is not None and (self.images or self.labels or self.splits):
            raise ValueError("give either 'shards' or 'images' with 'labels', not both")
        if self.shards is None and not (self.images and self.labels):
            raise ValueError("give 'images' and 'labels', or 'shards'")
        return self


class FrozenConfig(ConfigModel):
    """Head on cached features of an untouched encoder; of all rates and steps the best validation loss counts."""

    lrs: tuple[Rate, ...] = Field(default=(1e-3,), min_length=1, strict=False)
    weight_decay: float = 1e-4
    steps: Positive = 500
    batch: Positive = 32
    validate_every: Positive = 50


class FullConfig(ConfigModel):
    """Encoder and head trained together. ``bn_group``: samples that share batch statistics in the stem and head."""

    lr: Rate = 1e-3
    weight_decay: float = 1e-4
    steps: Positive = 500
    batch: Positive = 32
    bn_group: Positive = 8
    warmup_steps: int = 0
    clip: float = 1.0
    validate_every: Positive = 50


class FinetuneConfig(ConfigModel):
    """Everything about an evaluation; saved with it as ``config.yaml``."""

    run: RunConfig
    task: str
    data: LabelledDataConfig
    encoder: str
    compare_random: bool = True  # the same architecture as pretraining found it, for comparison
    protocols: tuple[Literal["frozen", "full"], ...] = Field(default=("frozen", "full"), min_length=1, strict=False)
    frozen: FrozenConfig = FrozenConfig()
    full: FullConfig = FullConfig()
    engine: EngineConfig = EngineConfig()

"""The typed config of an evaluation. No torch here: a wrong key is answered before anything heavy loads."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pretrain.config import EngineConfig, GuardConfig, Positive, RunConfig, WatchdogConfig
from shards.config import ConfigModel

Rate = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[int, Field(ge=0)]
Scale = Annotated[tuple[Rate, Rate] | None, Field(strict=False)]
Protocol = Literal["knn", "frozen", "adapter", "blocks", "full"]
Align = Literal["nearest"]
Group = Literal["location", "scene"]
Head = Literal["conv", "fcn", "linear", "mlp"]


class LabelledDataConfig(ConfigModel):
    """Where labelled tiles are: a download's folder, two folders, or shards packed with ``--labels``.

    ``root``: of a download; the task's layout says where its files are. ``images`` and ``labels``: folders with tiles
    of the same relative names; ``labels`` can also be one file for all: a raster, or polygons, whose class is in
    ``label_field`` (of ``label_layer`` where there are several). ``align``: ``nearest`` brings labels of another grid
    to the images', null refuses them. ``splits``: folder of train.txt, val.txt and test.txt in the published format
    (or the tables of a regression); null splits 60/20/20 by location. ``group``: draw the splits anew, in the same
    sizes, so that no location, or no scene, is in two of them; a tile that names no scene goes with its location.
    ``bands``: ``same`` as the encoder's or an error; ``native``, as the tiles have them; ``resample`` to the
    encoder's. ``statistics``: folder with mu.npy and sigma.npy of the tiles; null takes the encoder's for the
    encoder's bands, else the training tiles' own. ``pretraining``: shards whose scenes are looked for among the test
    tiles. ``memory_gb``: images are kept in memory up to this size.
    """

    root: str | None = None
    images: str | None = None
    labels: str | None = None
    shards: str | None = None
    align: Align | None = None
    label_field: str | None = None
    label_layer: str | None = None
    splits: str | None = None
    group: Group | None = None
    bands: Literal["same", "native", "resample"] = "same"
    statistics: str | None = None
    pretraining: str | None = None
    read_threads: Positive = 4
    memory_gb: Rate = 8.0

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [self.root is not None, self.shards is not None, bool(self.images or self.labels)]
        if sum(given) != 1 or bool(self.images) != bool(self.labels):
            raise ValueError("give one of 'root', 'shards', or 'images' with 'labels'")
        if self.shards is not None and self.splits:
            raise ValueError("shards carry their splits: leave 'splits' out")
        if self.shards is not None and (self.align or self.label_field or self.label_layer):
            raise ValueError("shards carry their labels as packed: leave 'align', 'label_field' and 'label_layer' out")
        return self


class FrozenConfig(ConfigModel):
    """Heads on an untouched encoder. Every head is trained at every rate, for every seed, on features that are
    computed once for ``views`` of the eight flips and rotations of a tile and kept up to ``quota_gb``.

    ``heads``: null for the published one of the task. ``bn``: ``frozen``, or ``adapt`` to let the encoder's batch
    norms go on taking and moving statistics as the published code does, which can't use kept features.
    """

    heads: tuple[Head, ...] | None = Field(default=None, strict=False)
    lrs: tuple[Rate, ...] = Field(default=(3e-4, 1e-3, 3e-3), min_length=1, strict=False)
    weight_decay: float = 1e-4
    epochs: Positive = 100
    batch: Positive = 32
    views: Annotated[int, Field(ge=1, le=8)] = 8
    bn: Literal["frozen", "adapt"] = "frozen"
    quota_gb: Rate = 100.0
    evaluate_every: Positive = 5  # epochs


class KnnConfig(ConfigModel):
    """Nearest neighbours by cosine, weighted by exp(similarity / temperature). ``bank``: most training features."""

    neighbours: Positive = 20
    temperature: Rate = 0.07
    bank: Positive = 100_000


class FullConfig(ConfigModel):
    """Encoder and head trained together: all of the encoder (protocol full), its spectral adapter (adapter), or the
    adapter, patch embedding and first ``first_blocks`` blocks (blocks).

    ``lrs``: each is trained, validation chooses. ``layer_decay``: factor of the rate from a block to the one below.
    ``drop_path``: largest probability of leaving a block out. ``crop_scale``: range of a random crop's share of the
    tile, null for none. ``bn_group``: samples that share batch statistics. ``save_every``: steps between checkpoints.
    """

    head: Head | None = None
    lrs: tuple[Rate, ...] = Field(default=(1e-4,), min_length=1, strict=False)
    weight_decay: float = 0.05
    epochs: Positive = 50
    batch: Positive = 32
    micro_batch: Positive | None = None  # null: a step's batch at once
    bn_group: Positive = 4
    warmup_epochs: NotNegative = 5
    clip: float = 1.0
    layer_decay: Fraction = 0.75
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    crop_scale: Scale = (0.4, 1.0)
    first_blocks: NotNegative = 2
    evaluate_every: Positive = 1  # epochs
    save_every: Positive = 200


class FinetuneConfig(ConfigModel):
    """Everything about an evaluation; saved with it as ``config.yaml``.

    ``checkpoint``: an encoder's file, folder or run. ``compare_random``: the same with the weights that pretraining
    began from. ``fractions``: of the training tiles, smaller ones within larger ones. ``recipe``: ``published`` puts
    the task's published rates, epochs, batch and augmentation in place of those here. ``select``: what the best epoch
    and rate are chosen by on the validation tiles.
    """

    run: RunConfig
    task: str
    data: LabelledDataConfig
    checkpoint: str
    compare_random: bool = True
    protocol: tuple[Protocol, ...] = Field(default=("knn", "frozen", "full"), min_length=1, strict=False)
    seeds: tuple[NotNegative, ...] = Field(default=(0, 1, 2, 3, 4), min_length=1, strict=False)
    fractions: tuple[Fraction, ...] = Field(default=(1.0,), min_length=1, strict=False)
    recipe: Literal["ours", "published"] = "ours"
    select: Literal["score", "loss"] = "score"
    knn: KnnConfig = KnnConfig()
    frozen: FrozenConfig = FrozenConfig()
    full: FullConfig = FullConfig()
    engine: EngineConfig = EngineConfig()
    guard: GuardConfig = GuardConfig()
    watchdog: WatchdogConfig = WatchdogConfig(evaluation=0)

    @field_validator("protocol", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        full = self.full
        micro = full.micro_batch or full.batch
        if full.batch % micro:
            raise ValueError(f"full.batch {full.batch} must be a multiple of full.micro_batch {micro}")
        if micro % full.bn_group:
            raise ValueError(f"full.micro_batch {micro} must be a multiple of full.bn_group {full.bn_group}")
        return self

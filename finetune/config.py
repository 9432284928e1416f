"""The typed config of an evaluation. No torch here: a wrong key is answered before anything heavy loads."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from finetune.heads.registry import HeadChoice
from finetune.losses.registry import LossChoice
from pretrain.config.engine import EngineConfig
from pretrain.config.run import GuardConfig, RunConfig, WatchdogConfig
from shards.config import ConfigModel
from shards.config.fields import (
    Choices,
    Fraction,
    Gigabytes,
    Name,
    NotNegative,
    OpenShare,
    PathText,
    Positive,
    Rate,
    Says,
    Scale,
    Seed,
    Switch,
    Threads,
    Weight,
    expand_path,
)

Protocol = Literal["knn", "frozen", "adapter", "blocks", "full"]
Align = Literal["nearest"]
Group = Literal["location", "scene"]
TaskName = Annotated[str, AfterValidator(expand_path), Says("the name of a task, or the path of its file")]


class LabeledDataConfig(ConfigModel):
    """Where labeled tiles are: a download's folder, two folders, or shards packed with ``--labels``.

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

    root: PathText | None = None
    images: PathText | None = None
    labels: PathText | None = None
    shards: PathText | None = None
    align: Align | None = None
    label_field: Name | None = None
    label_layer: Name | None = None
    splits: PathText | None = None
    group: Group | None = None
    bands: Literal["same", "native", "resample"] = "same"
    statistics: PathText | None = None
    pretraining: PathText | None = None
    read_threads: Threads = 4
    memory_gb: Gigabytes = 8.0

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [self.root is not None, self.shards is not None, bool(self.images or self.labels)]
        if sum(given) != 1 or (self.labels and not self.images):
            raise ValueError("give one of .root, .shards, or .images with .labels")
        if self.shards is not None and self.splits:
            raise ValueError(".shards carry their splits: leave .splits out")
        if self.shards is not None and (self.align or self.label_field or self.label_layer):
            raise ValueError(".shards carry their labels as packed: leave .align, .label_field and .label_layer out")
        return self


class FrozenConfig(ConfigModel):
    """Heads on an untouched encoder. Every head is trained at every rate, for every seed, on features that are
    computed once for ``views`` of the eight flips and rotations of a tile and kept up to ``quota_gb``.

    ``heads``: null for the published one of the task. ``bn``: ``frozen``, or ``adapt`` to let the encoder's batch
    norms go on taking and moving statistics as the published code does, which can't use kept features.
    """

    heads: Choices[HeadChoice] | None = None
    lrs: Choices[Rate] = (3e-4, 1e-3, 3e-3)
    weight_decay: Weight = 1e-4
    epochs: Positive = 100
    batch: Positive = 32
    views: Annotated[int, Field(ge=1, le=8)] = 8
    bn: Literal["frozen", "adapt"] = "frozen"
    quota_gb: Gigabytes = 100.0
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

    head: HeadChoice | None = None
    lrs: Choices[Rate] = (1e-4,)
    weight_decay: Weight = 0.05
    epochs: Positive = 50
    batch: Positive = 32
    micro_batch: Positive | None = None  # null: a step's batch at once
    bn_group: Positive = 4
    warmup_epochs: NotNegative = 5
    clip: Weight = 1.0
    layer_decay: Fraction = 0.75
    drop_path: OpenShare = 0.1
    crop_scale: Scale | None = (0.4, 1.0)
    first_blocks: NotNegative = 2
    evaluate_every: Positive = 1  # epochs
    save_every: Positive = 200

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        micro = self.micro_batch or self.batch
        if self.batch % micro:
            raise ValueError(f".batch {self.batch} must be a multiple of .micro_batch {micro}")
        if micro % self.bn_group:
            key = ".micro_batch" if self.micro_batch else ".batch"
            raise ValueError(f"{key} {micro} must be a multiple of .bn_group {self.bn_group}")
        return self


class FinetuneConfig(ConfigModel):
    """Everything about an evaluation; saved with it as ``config.yaml``.

    ``checkpoint``: an encoder's file, folder or run. ``compare_random``: the same with the weights that pretraining
    began from. ``fractions``: of the training tiles, smaller ones within larger ones. ``recipe``: ``published`` puts
    the task's published rates, epochs, batch and augmentation in place of those here. ``select``: what the best epoch
    and rate are chosen by on the validation tiles.
    """

    run: RunConfig
    task: TaskName
    data: LabeledDataConfig
    checkpoint: PathText
    compare_random: Switch = True
    protocol: Choices[Protocol] = ("knn", "frozen", "full")
    seeds: Choices[Seed] = (0, 1, 2, 3, 4)
    fractions: Choices[Fraction] = (1.0,)
    recipe: Literal["ours", "published"] = "ours"
    select: Literal["score", "loss"] = "score"
    loss: LossChoice | None = None
    """Loss that heads and models are trained with: its name, or a mapping with its name and options such as
    ``class_weights``; null for the default of the task's kind."""
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
    def _warmup_ends(self) -> Self:
        """The published recipe has epochs of its own, and no warm-up."""
        if self.recipe == "ours" and self.full.warmup_epochs > self.full.epochs:
            raise ValueError(
                f"full.warmup_epochs {self.full.warmup_epochs} must be at most full.epochs {self.full.epochs}: lower "
                "the one, or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _adapting_batches_fit(self) -> Self:
        """A frozen encoder whose batch norms adapt is trained by the engine, in the batches of ``full``."""
        micro, group, batch = self.full.micro_batch or self.frozen.batch, self.full.bn_group, self.frozen.batch
        if self.recipe == "ours" and self.frozen.bn == "adapt" and (batch % micro or micro % group):
            raise ValueError(
                f"frozen.batch {batch} with frozen.bn adapt must be a multiple of full.micro_batch {micro} in "
                f"groups of full.bn_group {group}"
            )
        return self

"""The typed config of an evaluation. No torch here: a wrong key is answered before anything heavy loads."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

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
    Plugins,
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
    """Where labeled tiles are: the folder of a download, two folders, or shards packed with ``--labels``."""

    root: PathText | None = None
    """Folder of a download; the task's layout says where its files are."""
    images: PathText | None = None
    """Folder of tiles."""
    labels: PathText | None = None
    """Folder of label tiles with the names of the images; or one file for all of them: a raster, polygons, or for
    classification a table (.csv). Null takes the name of each image's folder for its class."""
    shards: PathText | None = None
    """Folder or URL of labeled shards."""
    align: Align | None = None
    """``nearest`` brings labels of another grid to the images'; null refuses them."""
    label_field: Name | None = None
    """Field of polygons, or column of a table, that holds the class."""
    label_layer: Name | None = None
    """Layer of the polygons, where their file has several."""
    splits: PathText | None = None
    """Folder of train.txt, val.txt and test.txt in the published format, or of the tables of a regression; null
    splits 60/20/20 by location."""
    group: Group | None = None
    """Draw the splits anew, in the same sizes, so that no location, or no scene, is in two of them; null keeps them.
    A tile that names no scene goes with its location."""
    bands: Literal["same", "native", "resample"] = "same"
    """``same`` as the encoder's, or an error; ``native``, as the tiles have them; ``resample`` to the encoder's."""
    statistics: PathText | None = None
    """Folder with mu.npy and sigma.npy of the tiles; null takes the encoder's for the encoder's bands, else the
    training tiles' own."""
    pretraining: PathText | None = None
    """Shards whose scenes are looked for among the test tiles; null takes what the encoder's file names."""
    read_threads: Threads = 4
    """Threads that read tiles, per process."""
    memory_gb: Gigabytes = 8.0
    """Size up to which images are kept in memory, in gigabytes."""

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
    """Heads on a frozen encoder: each is trained at each rate for each seed, on features that are computed once."""

    heads: Choices[HeadChoice] | None = None
    """Heads to train; null for the published one of the task."""
    lrs: Choices[Rate] = (3e-4, 1e-3, 3e-3)
    """Learning rates; validation chooses."""
    weight_decay: Weight = 1e-4
    """Decoupled weight decay."""
    epochs: Positive = 100
    """Epochs of training."""
    batch: Positive = 32
    """Tiles of one step."""
    views: Annotated[int, Field(ge=1, le=8)] = 8
    """Flips and rotations of a tile that features are computed for."""
    bn: Literal["frozen", "adapt"] = "frozen"
    """``adapt`` lets the encoder's batch norms take and move statistics as the published code does, which can't use
    kept features."""
    quota_gb: Gigabytes = 100.0
    """Size up to which features are kept on disk, in gigabytes."""
    evaluate_every: Positive = 5
    """Epochs between two evaluations on the validation tiles."""


class KnnConfig(ConfigModel):
    """Nearest neighbors by cosine similarity, weighted by ``exp(similarity / temperature)``."""

    RENAMED: ClassVar[Mapping[str, str]] = {"neighbours": "neighbors"}

    neighbors: Positive = 20
    """Nearest neighbors that vote."""
    temperature: Rate = 0.07
    """Divisor of the similarities."""
    bank: Positive = 100_000
    """Most training features that neighbors are looked for among."""


class FullConfig(ConfigModel):
    """Encoder and head trained together: all of the encoder (protocol full), its spectral adapter (adapter), or the
    adapter, patch embedding and first blocks (blocks)."""

    head: HeadChoice | None = None
    """Head to train; null for the published one of the task."""
    start: Literal["probe", "random"] = "probe"
    """Head to begin from: ``probe`` takes the one that the frozen protocol finds on the same encoder and tiles (LP-FT,
    arXiv 2202.10054), ``random`` draws its weights from the seed."""
    lrs: Choices[Rate] = (1e-4,)
    """Learning rates; each is trained, and validation chooses."""
    weight_decay: Weight = 0.05
    """Decoupled weight decay."""
    epochs: Positive = 50
    """Epochs of training."""
    batch: Positive = 32
    """Tiles of one step, over all processes."""
    micro_batch: Positive | None = None
    """Tiles of one forward and backward pass of a process; null for a step's batch at once."""
    bn_group: Positive = 4
    """Samples that share batch-norm statistics."""
    warmup_epochs: NotNegative = 5
    """Epochs of linear warm-up."""
    clip: Weight = 1.0
    """Largest norm of the gradient; 0 for none."""
    layer_decay: Fraction = 0.75
    """Factor of the learning rate from each block to the one below."""
    drop_path: OpenShare = 0.1
    """Largest probability of leaving a block out."""
    crop_scale: Scale | None = (0.4, 1.0)
    """Range of a random crop's share of the tile's area; null for no crops."""
    first_blocks: NotNegative = 2
    """Blocks that protocol ``blocks`` trains."""
    evaluate_every: Positive = 1
    """Epochs between two evaluations on the validation tiles."""
    save_every: Positive = 200
    """Steps between two checkpoints."""

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
    """Everything about an evaluation; saved with it as ``config.yaml``."""

    plugins: Plugins = ()
    """Modules and .py files that register encoders, heads and the like; imported before the rest is read."""
    run: RunConfig
    """Where the evaluation writes, and the seed of its splits."""
    task: TaskName
    """Name of a task, or the path of its file."""
    data: LabeledDataConfig
    """Where labeled tiles are."""
    checkpoint: PathText
    """Encoder to evaluate: its file, folder or run."""
    compare_random: Switch = True
    """Evaluate the weights that pretraining began from as well."""
    protocol: Choices[Protocol] = ("knn", "frozen", "full")
    """What of the encoder is trained: nothing (knn), nothing but a head (frozen), its spectral adapter (adapter), its
    first blocks (blocks), or all of it (full)."""
    seeds: Choices[Seed] = (0, 1, 2, 3, 4)
    """Seeds of the trainings."""
    fractions: Choices[Fraction] = (1.0,)
    """Shares of the training tiles, smaller ones within larger ones."""
    recipe: Literal["ours", "published"] = "ours"
    """``published`` puts the task's published rates, epochs, batch, loss and augmentation in place of those here."""
    select: Literal["score", "loss"] = "score"
    """What the best epoch and rate are chosen by, on the validation tiles."""
    loss: LossChoice | None = None
    """Loss that heads and models are trained with: its name, or a mapping with its name and options such as
    ``class_weights``; null for the default of the task's kind."""
    knn: KnnConfig = KnnConfig()
    """Protocol ``knn``."""
    frozen: FrozenConfig = FrozenConfig()
    """Protocol ``frozen``."""
    full: FullConfig = FullConfig()
    """Protocols ``adapter``, ``blocks`` and ``full``."""
    engine: EngineConfig = EngineConfig()
    """How DeepSpeed divides and computes the model."""
    guard: GuardConfig = GuardConfig()
    """Which steps are skipped."""
    watchdog: WatchdogConfig = WatchdogConfig(evaluation=0)
    """Limits of time."""

    @field_validator("protocol", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        """Check that warm-up ends; the published recipe has epochs of its own, and no warm-up."""
        if self.recipe == "ours" and self.full.warmup_epochs > self.full.epochs:
            raise ValueError(
                f"full.warmup_epochs {self.full.warmup_epochs} must be at most full.epochs {self.full.epochs}: lower "
                "the one, or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _adapting_batches_fit(self) -> Self:
        """Check batches of a frozen encoder whose batch norms adapt: the engine trains it, as in ``full``."""
        micro, group, batch = self.full.micro_batch or self.frozen.batch, self.full.bn_group, self.frozen.batch
        if self.recipe == "ours" and self.frozen.bn == "adapt" and (batch % micro or micro % group):
            raise ValueError(
                f"frozen.batch {batch} with frozen.bn adapt must be a multiple of full.micro_batch {micro} in "
                f"groups of full.bn_group {group}"
            )
        return self

"""The typed config of an evaluation. Torch is not imported, so a wrong key is reported before anything heavy loads."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from finetune.baselines.registry import DEFAULT, BaselineChoice, BaselineModelConfig
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
    Scale,
    Seed,
    Switch,
    Threads,
    Unique,
    Weight,
    Wording,
    expand_path,
)

Protocol = Literal["knn", "shift", "frozen", "layers", "adapter", "blocks", "lora", "full", "baseline"]
BandSetName = Literal[
    "all",
    "even",
    "odd",
    "first_half",
    "middle_half",
    "last_half",
    "random_40",
    "vnir",
    "swir",
    "prisma",
    "desis",
    "eo1",
    "emit",
    "sentinel2",
]
"""See finetune/encoders/band_sets.py."""

Align = Literal["nearest"]
Group = Literal["location", "scene"]
TaskName = Annotated[str, AfterValidator(expand_path), Wording("the name of a task, or the path of its file")]


class LabeledDataConfig(ConfigModel):
    """Where labeled tiles are: the folder of a download, two folders, or shards packed with ``--labels``."""

    root: PathText | None = None
    """Folder of a download; the task's layout says where its files are."""
    images: PathText | None = None
    """Folder of tiles."""
    labels: PathText | None = None
    """Folder of label tiles with the names of the images, or one file for all of them: a raster, polygons, or for
    classification a table (.csv). Null uses the name of each image's folder as its class."""
    shards: PathText | None = None
    """Folder or URL of labeled shards."""
    align: Align | None = None
    """``nearest`` resamples labels on another grid to the images' grid; null rejects them."""
    label_field: Name | None = None
    """Field of polygons, or column of a table, that holds the class."""
    label_layer: Name | None = None
    """Layer of the polygons, if their file has several."""
    splits: PathText | None = None
    """Folder of train.txt, val.txt and test.txt in the published format, or of the tables of a regression; null
    splits 60/20/20 by location."""
    group: Group | None = None
    """Redraw the splits, with the same sizes, so that no location, or no scene, is in two of them; null keeps them.
    A tile without a scene is grouped by its location."""
    bands: Literal["same", "native", "resample"] = "same"
    """``same`` requires the encoder's bands, ``native`` keeps the tiles', ``resample`` resamples to the encoder's."""
    statistics: PathText | None = None
    """Folder with mu.npy and sigma.npy of the tiles; null uses the encoder's statistics for the encoder's bands, else
    statistics of the training tiles."""
    pretraining: PathText | None = None
    """Pretraining shards whose scenes are searched for among the test tiles; null uses those named in the encoder's
    file."""
    read_threads: Threads = 4
    """Threads that read tiles, per process."""
    memory_gb: Gigabytes = 8.0
    """Maximum size of images kept in memory, in gigabytes."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [self.root is not None, self.shards is not None, bool(self.images or self.labels)]
        if sum(given) != 1 or (self.labels and not self.images):
            raise ValueError("give one of .root, .shards, or .images with .labels")
        if self.shards is not None and self.splits:
            raise ValueError(".shards contain their splits: remove .splits")
        if self.shards is not None and (self.align or self.label_field or self.label_layer):
            raise ValueError(".shards contain their labels: remove .align, .label_field and .label_layer")
        return self


class FrozenConfig(ConfigModel):
    """Heads on a frozen encoder: each is trained at each rate with each seed, on features that are computed once."""

    heads: Choices[HeadChoice] | None = None
    """Heads to train; null for the task's published head."""
    lrs: Choices[Rate] = (3e-4, 1e-3, 3e-3)
    """Learning rates; the best one on validation is used."""
    weight_decay: Weight = 1e-4
    """Decoupled weight decay."""
    epochs: Positive = 100
    """Epochs of training."""
    batch: Positive = 32
    """Tiles per step."""
    views: Annotated[int, Field(ge=1, le=8)] = 8
    """Number of flips and rotations of a tile for which features are computed."""
    bn: Literal["frozen", "adapt"] = "frozen"
    """``adapt`` lets the encoder's batch norms use and update batch statistics as in the published code, which rules
    out cached features."""
    quota_gb: Gigabytes = 100.0
    """Maximum size of features cached on disk, in gigabytes."""
    evaluate_every: Positive = 5
    """Epochs between two evaluations on the validation tiles."""
    patience: Positive | None = None
    """Evaluations in a row without a better one after which the training of a head ends; null for all epochs. The
    learning rate follows the schedule of all epochs."""


class KnnConfig(ConfigModel):
    """Nearest neighbors by cosine similarity, weighted by ``exp(similarity / temperature)``."""

    RENAMED: ClassVar[Mapping[str, str]] = {"neighbours": "neighbors"}

    neighbors: Positive = 20
    """Number of nearest neighbors that vote."""
    temperature: Rate = 0.07
    """Divisor of the similarities."""
    bank: Positive = 100_000
    """Maximum number of training features that are searched for neighbors."""


class LayersConfig(ConfigModel):
    """Linear heads, trained as in protocol ``frozen``, on each layer of the encoder."""

    numbers: Choices[NotNegative] | None = None
    """Numbers of the layers, from 0 on; null for all."""


class ShiftConfig(ConfigModel):
    """Nearest neighbors as in protocol ``knn``, between tiles that are seen through different bands."""

    train: BandSetName = "all"
    """Bands of the training tiles."""
    test: Choices[BandSetName] = ("even", "random_40", "vnir", "swir", "prisma", "sentinel2")
    """Bands of the test tiles, besides those of the training tiles. Subsets of the tiles' own bands are ``all``,
    ``even`` and ``odd`` (every second one), ``first_half``, ``middle_half`` and ``last_half``, ``random_40``, ``vnir``
    (below 1000 nm) and ``swir``; others are sensors, whose bands are computed by Gaussian spectral responses."""


class BaselineConfig(ConfigModel):
    """Models of scikit-learn on spectra, in the place of an encoder: of each pixel, or the mean and standard deviation
    of a tile that has one label."""

    models: Choices[BaselineChoice] | None = None
    """Models to fit; null for ``linear``, ``random_forest``, ``extra_trees`` and ``svm``, each on spectra and on ten
    principal components."""
    samples: Positive = 10_000
    """Maximum number of labeled training pixels, or tiles, that models are fitted to; a seed draws them."""

    @property
    def chosen(self) -> tuple[BaselineModelConfig, ...]:
        """The models, with the default in the place of null."""
        return self.models or DEFAULT


class FullConfig(ConfigModel):
    """Encoder and head trained together: the full encoder (protocol full), its spectral adapter (adapter), the adapter,
    patch embedding and first blocks (blocks), or updates of its attention (lora)."""

    head: HeadChoice | None = None
    """Head to train; null for the task's published head."""
    start: Literal["probe", "random"] = "probe"
    """Initialization of the head: ``probe`` starts from the frozen protocol's head on the same encoder and tiles
    (LP-FT, arXiv 2202.10054), ``random`` draws its weights from the seed. The random-init baseline is always trained
    from scratch: with ``random``, ``bn: adapt`` and ``layer_decay: 1``."""
    lrs: Choices[Rate] = (1e-4,)
    """Learning rates; each is trained, and the best one on validation is used."""
    weight_decay: Weight = 0.05
    """Decoupled weight decay."""
    epochs: Positive = 50
    """Epochs of training."""
    batch: Positive = 32
    """Tiles per step, over all processes."""
    micro_batch: Positive | None = None
    """Tiles per forward and backward pass of a process; null for the full batch of a step."""
    bn: Literal["frozen", "adapt"] = "frozen"
    """``frozen`` keeps the running statistics of batch norms, in the encoder and in a head that starts from the probe,
    so that training begins with exactly what the probe computes; ``adapt`` normalizes with batch statistics and
    updates the running ones."""
    bn_group: Positive = 4
    """Number of samples that share batch-norm statistics."""
    warmup_epochs: NotNegative = 5
    """Epochs of linear warm-up."""
    clip: Weight = 1.0
    """Maximum gradient norm; 0 disables clipping."""
    layer_decay: Fraction = 0.75
    """Factor on the learning rate from each block to the one below."""
    drop_path: OpenShare = 0.1
    """Maximum probability of dropping a block."""
    crop_scale: Scale | None = (0.4, 1.0)
    """Range of the random crop's area, as a fraction of the tile's area; null for no crops."""
    first_blocks: NotNegative = 2
    """Number of blocks that protocol ``blocks`` trains."""
    evaluate_every: Positive = 1
    """Epochs between two evaluations on the validation tiles."""
    patience: Positive | None = None
    """Evaluations in a row without a better one after which training ends; null for all epochs. The learning rate
    follows the schedule of all epochs."""
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


class LoraConfig(ConfigModel):
    """Protocol ``lora``: frozen layers of attention learn an update of low rank, beside the head (arXiv 2106.09685).
    The rest is as in ``full``, without layer-wise decay, for the random-init baseline as well."""

    rank: Positive = 8
    """Rank of each update."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Updates are multiplied by alpha / rank."""
    targets: Choices[Literal["qkv", "proj"]] = ("qkv", "proj")
    """Layers with an update: the projection to queries, keys and values (``qkv``), and that of outputs (``proj``)."""
    lrs: Choices[Rate] = (1e-3,)
    """Learning rates; the best one on validation is used. Updates need higher rates than the weights themselves."""


class EvaluationLimits(WatchdogConfig):
    """Limits of time, in seconds; 0 for none."""

    evaluation: NotNegative = 0
    """Longest evaluation of all validation or test tiles."""


class FinetuneConfig(ConfigModel):
    """Everything about an evaluation; saved with it as ``config.yaml``."""

    plugins: Plugins = ()
    """Modules and .py files that register encoders, heads and other components; imported before the rest is read."""
    run: RunConfig
    """Output folder of the evaluation, and the seed of its splits."""
    task: TaskName
    """Name of a task, or the path of its file."""
    data: LabeledDataConfig
    """Location of the labeled tiles."""
    checkpoint: PathText
    """Encoder to evaluate: its file, folder or run, or a Python file with a function ``encode``."""
    compare_random: Switch = True
    """Evaluate the initial weights of pretraining as well."""
    compare_raw: Switch = False
    """Evaluate raw spectra, the mean of each patch, by nearest neighbors as well (protocols knn and shift)."""
    protocol: Choices[Protocol] = ("knn", "frozen", "full")
    """Parts of the model to train: nothing (knn, and shift across bands), only a head (frozen, and layers on each of
    the encoder's layers), or a head with the encoder's spectral adapter (adapter), its first blocks (blocks), updates
    of its attention (lora), or the full encoder (full). ``baseline`` evaluates models of scikit-learn on spectra beside
    them."""
    seeds: Choices[Seed] = (0, 1, 2, 3, 4)
    """Seeds of the trainings."""
    fractions: Unique[Fraction] = (1.0,)
    """Fractions of the training tiles; smaller ones are subsets of larger ones."""
    shots: Unique[Positive] = ()
    """Numbers of places of each class to train on, beside ``fractions`` (few-shot). Each seed draws places of its own,
    of which those of fewer shots are subsets; all tiles of a place are used, for each class that they hold."""
    recipe: Literal["ours", "published"] = "ours"
    """``published`` replaces rates, epochs, batch, loss and augmentation by the task's published ones."""
    select: Literal["score", "loss"] = "score"
    """Criterion for the best epoch and rate, on the validation tiles."""
    loss: LossChoice | None = None
    """Loss that heads and models are trained with: its name, or a mapping with its name and options such as
    ``class_weights``; null for the default of the task's kind."""
    knn: KnnConfig = KnnConfig()
    """Protocols ``knn`` and ``shift``."""
    shift: ShiftConfig = ShiftConfig()
    """Protocol ``shift``."""
    frozen: FrozenConfig = FrozenConfig()
    """Protocol ``frozen``."""
    layers: LayersConfig = LayersConfig()
    """Protocol ``layers``."""
    full: FullConfig = FullConfig()
    """Protocols ``adapter``, ``blocks``, ``full`` and ``lora``."""
    lora: LoraConfig = LoraConfig()
    """Protocol ``lora``."""
    baseline: BaselineConfig = BaselineConfig()
    """Protocol ``baseline``."""
    engine: EngineConfig = EngineConfig()
    """How DeepSpeed partitions and computes the model."""
    guard: GuardConfig = GuardConfig()
    """Which steps are skipped."""
    watchdog: EvaluationLimits = EvaluationLimits()
    """Time limits."""

    @field_validator("protocol", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _some_tiles(self) -> Self:
        if not (self.fractions or self.shots):
            raise ValueError(".fractions and .shots are empty: give one of them")
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        """Check that warm-up ends; the published recipe has its own epochs and no warm-up."""
        if self.recipe == "ours" and self.full.warmup_epochs > self.full.epochs:
            raise ValueError(
                f"full.warmup_epochs {self.full.warmup_epochs} must be at most full.epochs {self.full.epochs}: lower "
                "it, or raise full.epochs"
            )
        return self

    @model_validator(mode="after")
    def _adapting_batches_fit(self) -> Self:
        """Check the batches of a frozen encoder whose batch norms adapt: the engine trains it, as in ``full``."""
        micro, group, batch = self.full.micro_batch or self.frozen.batch, self.full.bn_group, self.frozen.batch
        if self.recipe == "ours" and self.frozen.bn == "adapt" and (batch % micro or micro % group):
            raise ValueError(
                f"frozen.batch {batch} with frozen.bn adapt must be a multiple of full.micro_batch {micro} in "
                f"groups of full.bn_group {group}"
            )
        return self

"""The typed config of a pretraining run. No torch here: a wrong key is answered before anything heavy loads."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from shards.config import ConfigModel
from shards.selection import OrderConfig, ViewConfig

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Fixed = Literal[
    "init", "model", "objective", "run.seed", "data.order", "data.holdout", "train.global_batch", "dataset"
]  # what fixes the order of samples and the meaning of weights in a run


class RunConfig(ConfigModel):
    """Where a run writes, and what it is seeded with."""

    dir: str
    seed: int = 0
    threads: Positive = 1  # CPU threads per process; launchers differ in what they set


class DataConfig(ConfigModel):
    """What is read. ``holdout`` is the share of locations kept for the validation loss.

    ``shards`` is a folder or a URL. ``stage`` is a node-local folder that shards are copied to during the
    first epoch. ``max_bad_tiles``: damaged tiles that a run replaces by others before it gives up.
    """

    shards: str
    view: ViewConfig = ViewConfig()
    order: OrderConfig = OrderConfig()
    holdout: Share = 0.01
    read_threads: Positive = 4
    prefetch: Positive = 2  # micro batches read ahead
    stage: str | None = None
    stage_quota_gb: Positive | None = None
    max_bad_tiles: Annotated[int, Field(ge=0)] = 100


class AugmentConfig(ConfigModel):
    """Views of a tile. ``crop_scale``: range of the crop's share of the tile's area, resized to the image size;
    null: crops of exactly the image size, never resampled. ``blur``: probability of a Gaussian blur of 0.1 to 2
    pixels. ``clip``: normalised values beyond this many standard deviations are cut to it, null for none."""

    crop_scale: tuple[float, float] | None = Field(default=(0.4, 1.0), strict=False)
    flip: bool = True
    blur: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip: Annotated[float, Field(gt=0)] | None = None


class ModelConfig(ConfigModel):
    """The encoder. ``image_size`` and ``patch_size`` in pixels; ``bn_group``: samples that share batch statistics."""

    name: Literal[
        "spec_vit_tiny",
        "spec_vit_small",
        "spec_vit_base",
        "spec_vit_large",
        "spec_vit_huge",
        "spec_vit_giant",
        "spec_vit_gigantic",
        "spec_resnet50",
        "vit_tiny",
        "vit_small",
        "resnet50",
    ] = "spec_vit_small"
    image_size: Positive = 128
    patch_size: Positive = 4
    bn_group: Positive = 8
    attention: Literal["auto", "xformers", "sdpa", "math"] = "auto"

    @property
    def is_vit(self) -> bool:
        return "vit" in self.name

    @model_validator(mode="after")
    def _patch_divides_image(self) -> Self:
        if self.is_vit and self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}")
        return self


class DecoderConfig(ConfigModel):
    """MAE's decoder; the defaults are the published ones."""

    width: Positive = 512
    depth: Positive = 1
    heads: Positive = 16


class MaeConfig(ConfigModel):
    """Masked autoencoding. ``ignore_nodata``: missing pixels don't count in the loss. ``spectral_angle``: weight of
    the mean angle in radians between predicted and true spectra, 0 for none; it needs ``norm_pix`` false."""

    name: Literal["mae"] = "mae"
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.9
    norm_pix: bool = True
    ignore_nodata: bool = False
    spectral_angle: Annotated[float, Field(ge=0)] = 0.0
    decoder: DecoderConfig = DecoderConfig()

    @model_validator(mode="after")
    def _angles_need_levels(self) -> Self:
        if self.spectral_angle and self.norm_pix:
            raise ValueError("spectral_angle needs norm_pix false: a target normalised per patch has no spectrum")
        return self


class MocoConfig(ConfigModel):
    """MoCo-v2 (arXiv 2003.04297). ``queue``: negatives, a multiple of the global batch; ``head_norm``: batch norms
    in the projection head, as the published code has them."""

    name: Literal["moco"]
    temperature: Annotated[float, Field(gt=0)] = 0.2
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.999
    queue: Positive = 32768
    hidden: Positive = 2048
    dim: Positive = 128
    head_norm: bool = False


class LocalCropsConfig(ConfigModel):
    """DINO's small views: how many, of what size in pixels, and their share of the tile's area."""

    count: Annotated[int, Field(ge=0)] = 0
    size: Positive = 48
    scale: tuple[float, float] = Field(default=(0.05, 0.4), strict=False)


class DinoConfig(ConfigModel):
    """DINO (arXiv 2104.14294). The teacher's momentum rises from ``momentum`` to 1 over the whole training; its
    temperature from ``teacher_temperature`` to ``final_teacher_temperature`` over the first
    ``warmup_temperature_steps``. The head's last layer is frozen for the first ``freeze_last_layer_steps``."""

    name: Literal["dino"]
    hidden: Positive = 2048
    bottleneck: Positive = 256
    prototypes: Positive = 8192
    student_temperature: Annotated[float, Field(gt=0)] = 0.1
    teacher_temperature: Annotated[float, Field(gt=0)] = 0.04
    final_teacher_temperature: Annotated[float, Field(gt=0)] = 0.04
    warmup_temperature_steps: Annotated[int, Field(ge=0)] = 0
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.996
    centre_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    freeze_last_layer_steps: Annotated[int, Field(ge=0)] = 0
    local_crops: LocalCropsConfig = LocalCropsConfig()


ObjectiveConfig = Annotated[MaeConfig | MocoConfig | DinoConfig, Field(discriminator="name")]


class OptimConfig(ConfigModel):
    """AdamW, or SGD with momentum ``betas[0]``, after a linear warm-up.

    ``reference_batch``: the global batch that ``lr`` is for, from which it scales linearly; null: as it stands.
    ``schedule``: cosine decay to ``min_lr``, or a tenth at each share of the training in ``milestones``.
    ``layer_decay``: factor of the rate from each block to the one below. ``clip``: largest gradient norm, 0 for none.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-4
    reference_batch: Positive | None = None
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["cosine", "milestones"] = "cosine"
    milestones: tuple[Share, ...] = Field(default=(), strict=False)
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    betas: tuple[float, float] = Field(default=(0.9, 0.95), strict=False)
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    clip: Annotated[float, Field(ge=0)] = 1.0


class TrainConfig(ConfigModel):
    """How long and in what batches, in tiles. Accumulation follows: global_batch / (micro_batch * processes)."""

    steps: Positive
    global_batch: Positive = 256
    micro_batch: Positive = 64


class EngineConfig(ConfigModel):
    """DeepSpeed. ``precision``: fp32; autocast (bf16 compute, fp32 parameters); bf16 (bf16 parameters, fp32 master).

    ``activation_checkpointing``: what the backward pass computes again instead of keeping it, with the same numbers:
    ``none``; ``selective``, all of a block but matrix products and attention; ``blocks``, blocks and stem: least
    memory, a third more work. ``compile``: torch.compile for the stem's and the loss's arithmetic, and at stages 0 to 2
    for the transformer blocks. ``reduce_bucket_size``, ``prefetch_bucket_size``: weights of one collective; null: an
    eighth and a sixteenth of the model, within 1 to 50 million.
    """

    zero_stage: Literal[0, 1, 2, 3] = 3
    precision: Literal["fp32", "autocast", "bf16"] = "autocast"
    activation_checkpointing: Literal["none", "selective", "blocks"] = "none"
    compile: bool = False
    reduce_bucket_size: Positive | None = None
    prefetch_bucket_size: Annotated[int, Field(ge=0)] | None = None
    param_persistence_threshold: Annotated[int, Field(ge=0)] = 100_000

    def buckets(self, parameters: int) -> tuple[int, int]:
        """Weights of one reduction and of one gathering, for a model of so many parameters.

        Several collectives a pass, so that all but the last can hide under the work; none so small that it is all
        latency; and no buffers as large as a small model.
        """

        def share(part: int) -> int:
            return min(max(parameters // part, 1_000_000), 50_000_000)

        reduce, prefetch = self.reduce_bucket_size, self.prefetch_bucket_size
        return share(8) if reduce is None else reduce, share(16) if prefetch is None else prefetch

    def sized(self, parameters: int) -> "EngineConfig":
        """With its `buckets` filled in."""
        reduce, prefetch = self.buckets(parameters)
        return self.model_copy(update={"reduce_bucket_size": reduce, "prefetch_bucket_size": prefetch})

    @field_validator("activation_checkpointing", mode="before")
    @classmethod
    def _yes_is_blocks(cls, value: Any) -> Any:
        return {True: "blocks", False: "none"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _bf16_needs_a_stage(self) -> Self:
        if self.precision == "bf16" and self.zero_stage < 2:
            raise ValueError(
                "precision bf16 needs zero_stage 2 or 3: below, DeepSpeed takes an optimizer whose steps can't be "
                "judged or resumed"
            )
        return self


class CheckpointConfig(ConfigModel):
    """Every how many steps, and what is kept: the last ``keep``, and for good those at multiples of ``keep_every``
    (0: none). ``quota_gb``: room that the run folder may take. ``resume``: ``must`` makes it an error to find nothing
    to continue. ``accept``: keys that may differ from the checkpoint's though they change the order of samples or
    what weights mean, such as ``train.global_batch`` or ``dataset``; ``init``: begin from an encoder of other bands."""

    every: Positive = 1000
    keep: Positive = 3
    keep_every: Annotated[int, Field(ge=0)] = 0
    quota_gb: Positive | None = None
    resume: Literal["auto", "must"] = "auto"
    accept: tuple[Fixed, ...] = Field(default=(), strict=False)


class GuardConfig(ConfigModel):
    """Steps that are skipped: a loss or gradient norm that is no number, or more than ``sigma`` standard deviations
    (0: any) above the mean of the last ``window`` steps. After ``patience`` in a row the weights go back."""

    window: Annotated[int, Field(ge=8)] = 128
    sigma: Annotated[float, Field(ge=0)] = 6.0
    patience: Positive = 5


class WatchdogConfig(ConfigModel):
    """Limits in seconds, 0 for none: of the start, of one step, of a whole evaluation and of a save; ``grace``: from
    being asked to stop until the run ends, saved or not (below the scheduler's own)."""

    setup: Annotated[int, Field(ge=0)] = 1800
    step: Annotated[int, Field(ge=0)] = 900
    evaluation: Annotated[int, Field(ge=0)] = 3600
    saving: Annotated[int, Field(ge=0)] = 1800
    grace: Annotated[int, Field(ge=0)] = 600


class LogConfig(ConfigModel):
    """Every how many steps: training scalars, and validation with its pictures (0: only at the end). ``samples``:
    keep a ledger of every sample that every step trained on. ``peak_tflops``: of one device at the run's precision,
    for MFU; null takes what its vendor says, where its name is known."""

    every: Positive = 10
    validate_every: Annotated[int, Field(ge=0)] = 1000
    samples: bool = False
    peak_tflops: Annotated[float, Field(gt=0)] | None = None


class ProbeConfig(ConfigModel):
    """Nearest-neighbour and linear probe of the encoder during training, on labelled shards (packed with
    ``--labels``, splits train and val). ``samples``: labelled patches of each split; ``ignore``: labels not counted."""

    shards: str
    every: Positive = 5000
    neighbours: Positive = 20
    samples: Positive = 4096
    ignore: tuple[int, ...] = Field(default=(0,), strict=False)


class PretrainConfig(ConfigModel):
    """Everything about a run; saved with it as ``config.yaml``.

    ``init``: encoder to begin from, a path or URL of any file that ``load_encoder`` reads; null: drawn from the seed.
    """

    run: RunConfig
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = MaeConfig()
    init: str | None = None
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    log: LogConfig = LogConfig()
    probe: ProbeConfig | None = None

    @field_validator("objective", mode="before")
    @classmethod
    def _mae_unless_named(cls, value: Any) -> Any:
        return {"name": "mae", **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        micro, group, whole = self.train.micro_batch, self.model.bn_group, self.train.global_batch
        if micro % group:
            raise ValueError(f"train.micro_batch {micro} must be a multiple of model.bn_group {group}")
        if whole % micro:
            raise ValueError(f"train.global_batch {whole} must be a multiple of train.micro_batch {micro}")
        return self

    @model_validator(mode="after")
    def _objective_fits_the_model(self) -> Self:
        model, objective = self.model, self.objective
        if isinstance(objective, MaeConfig):
            if not model.is_vit:
                raise ValueError(
                    f"objective mae needs a ViT to mask: model.name {model.name} is none; use moco or dino"
                )
            patches = (model.image_size // model.patch_size) ** 2
            if int(patches * (1 - objective.mask_ratio)) < 1:
                raise ValueError(
                    f"objective.mask_ratio {objective.mask_ratio} leaves none of {patches} patches visible"
                )
        if isinstance(objective, DinoConfig) and objective.local_crops.count and model.is_vit:
            if objective.local_crops.size % model.patch_size:
                raise ValueError(
                    f"model.patch_size {model.patch_size} does not divide local_crops.size {objective.local_crops.size}"
                )
        return self

    @model_validator(mode="after")
    def _queue_fits(self) -> Self:
        objective, train = self.objective, self.train
        if isinstance(objective, MocoConfig):
            if objective.queue % train.global_batch:
                raise ValueError(
                    f"objective.queue {objective.queue} must be a multiple of train.global_batch {train.global_batch}"
                )
            if train.micro_batch < 2 * self.model.bn_group:
                raise ValueError(
                    f"train.micro_batch {train.micro_batch} must be at least two of model.bn_group "
                    f"{self.model.bn_group}: keys are shuffled between groups, or batch norm gives them away"
                )
        return self

    @property
    def lr(self) -> float:
        """The peak learning rate of this batch size."""
        reference = self.optim.reference_batch
        return self.optim.lr if reference is None else self.optim.lr * self.train.global_batch / reference

    def accumulation(self, world_size: int) -> int:
        """Micro batches per step and process; raises ValueError where they don't come out whole."""
        per_round = self.train.micro_batch * world_size
        if self.train.global_batch % per_round:
            raise ValueError(
                f"train.global_batch {self.train.global_batch} must be a multiple of train.micro_batch "
                f"{self.train.micro_batch} x {world_size} processes"
            )
        return self.train.global_batch // per_round

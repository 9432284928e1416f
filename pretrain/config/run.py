"""Where a run writes, what it keeps and logs, and what stops it."""

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pretrain.config.callbacks import ProfilerConfig
from pretrain.config.loggers import DEFAULT_LOGGERS, LoggerConfig
from pretrain.registries import LOGGERS
from shards.config import ConfigModel
from shards.config.fields import Name, NotNegative, PathText, Positive, Rate, Seed, Switch, Threads, Weight

Fixed = Literal[
    "init",
    "model",
    "objective",
    "run.seed",
    "data.order",
    "data.holdout",
    "data.sources",
    "train.global_batch",
    "dataset",
]  # what fixes the order of samples and the meaning of weights in a run


class RunConfig(ConfigModel):
    """Where a run writes, and its seed."""

    dir: PathText
    """Folder of the run; a run that is started again continues what it finds there."""
    seed: Seed = 0
    """Seed of everything that is random."""
    threads: Threads = 1
    """CPU threads of torch, per process."""
    notify: Name | None = None
    """Shell command or webhook (http:// or https://) that receives the run's events as JSON: restarted, stopped,
    interrupted, complete, failed."""


class CheckpointConfig(ConfigModel):
    """What is saved, and how a run continues."""

    every: Positive = 1000
    """Steps between two checkpoints."""
    background: Switch = True
    """Train on while a checkpoint is written, from a copy of each process's share of the state in host memory."""
    local: PathText | None = None
    """Folder on each node's own disk for copies of the newest checkpoint, from which the same nodes restart."""
    keep: Positive = 3
    """Newest checkpoints that are kept."""
    keep_every: NotNegative = 0
    """Checkpoints at multiples of these steps are kept for good; 0 for none."""
    quota_gb: Positive | None = None
    """Largest size of the run folder, in gigabytes; null for no limit."""
    resume: Literal["auto", "must"] = "auto"
    """Continue from a checkpoint if there is one (auto), or fail if there is none (must)."""
    accept: tuple[Fixed, ...] = Field(default=(), strict=False)
    """Keys that may differ from the checkpoint's although they change the order of samples or what weights mean;
    ``init`` begins from an encoder of other bands, ``data.sources`` starts the order of other sources at its
    beginning."""

    @model_validator(mode="after")
    def _check_keep_every(self) -> Self:
        if self.keep_every % self.every:
            raise ValueError(f".keep_every {self.keep_every} must be a multiple of .every {self.every}, or 0")
        return self


class GuardConfig(ConfigModel):
    """Steps that are skipped: those whose loss or gradient norm is non-finite or an outlier."""

    window: Annotated[int, Field(ge=8, le=1_000_000)] = 128
    """Steps whose mean and standard deviation a step is compared with."""
    sigma: Weight = 6.0
    """Standard deviations above the mean from which a step is an outlier; 0 for any number."""
    patience: Positive = 5
    """Steps skipped in a row after which the run returns to its last checkpoint."""


class WatchdogConfig(ConfigModel):
    """Limits of time, in seconds; 0 for none."""

    setup: NotNegative = 1800
    """Longest start."""
    step: NotNegative = 900
    """Longest step."""
    evaluation: NotNegative = 3600
    """Longest evaluation."""
    saving: NotNegative = 1800
    """Longest save."""
    grace: NotNegative = 600
    """Time from being asked to stop until the run ends, saved or not; set it below the scheduler's own."""

    @property
    def collective_timeout(self) -> timedelta:
        """Limit of a single collective, above all of these: reaching it ends a process without a word on who is late.

        It is at least a day where a phase has no limit, and at most a year.
        """
        limits = (self.setup, self.step, self.evaluation, self.saving)
        longest = timedelta(seconds=min(max(limits), 365 * 24 * 3600))
        return max(longest, timedelta(0) if all(limits) else timedelta(days=1)) + timedelta(minutes=5)


class LogConfig(ConfigModel):
    """What is logged."""

    every: Positive = 10
    """Steps between two lines of training metrics."""
    validate_every: NotNegative = 1000
    """Steps between two validations with their pictures; 0 validates only at the end."""
    samples: Switch = False
    """Keep a log of every sample that every step trained on."""
    peak_tflops: Rate | None = None
    """Peak of one device at the run's precision, in TFLOP/s, for MFU; null takes the vendor's where it is known."""
    loggers: tuple[Annotated[LoggerConfig, LOGGERS], ...] = Field(default=DEFAULT_LOGGERS, strict=False)
    """Where scalars and figures go: names, or sections with a name and options. A run without ``jsonl`` doesn't notice
    if its checkpoints are missing."""
    profile: ProfilerConfig | None = None
    """Trace of some steps, in ``profile/`` of the run folder; null for none."""

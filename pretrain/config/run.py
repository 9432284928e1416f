"""Where a run writes, what it keeps and logs, and what stops it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shards.config import ConfigModel
from shards.config.fields import NotNegative, PathText, Positive, Rate, Seed, Switch, Threads, Weight

Fixed = Literal[
    "init", "model", "objective", "run.seed", "data.order", "data.holdout", "train.global_batch", "dataset"
]  # what fixes the order of samples and the meaning of weights in a run


class RunConfig(ConfigModel):
    """Where a run writes, and what it is seeded with."""

    dir: PathText
    seed: Seed = 0
    threads: Threads = 1  # CPU threads per process; launchers differ in what they set


class CheckpointConfig(ConfigModel):
    """Every how many steps, and what is kept: the last ``keep``, and for good those at multiples of ``keep_every``
    (0: none). ``quota_gb``: room that the run folder may take. ``resume``: ``must`` makes it an error to find nothing
    to continue. ``accept``: keys that may differ from the checkpoint's though they change the order of samples or
    what weights mean, such as ``train.global_batch`` or ``dataset``; ``init``: begin from an encoder of other bands."""

    every: Positive = 1000
    keep: Positive = 3
    keep_every: NotNegative = 0
    quota_gb: Positive | None = None
    resume: Literal["auto", "must"] = "auto"
    accept: tuple[Fixed, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _kept_ones_are_saved(self) -> Self:
        if self.keep_every % self.every:
            raise ValueError(f".keep_every {self.keep_every} must be a multiple of .every {self.every}, or 0")
        return self


class GuardConfig(ConfigModel):
    """Steps that are skipped: a loss or gradient norm that is no number, or more than ``sigma`` standard deviations
    (0: any) above the mean of the last ``window`` steps. After ``patience`` in a row the weights go back."""

    window: Annotated[int, Field(ge=8, le=1_000_000)] = 128
    sigma: Weight = 6.0
    patience: Positive = 5


class WatchdogConfig(ConfigModel):
    """Limits in seconds, 0 for none: of the start, of one step, of a whole evaluation and of a save; ``grace``: from
    being asked to stop until the run ends, saved or not (below the scheduler's own)."""

    setup: NotNegative = 1800
    step: NotNegative = 900
    evaluation: NotNegative = 3600
    saving: NotNegative = 1800
    grace: NotNegative = 600


class LogConfig(ConfigModel):
    """Every how many steps: training scalars, and validation with its pictures (0: only at the end). ``samples``:
    keep a ledger of every sample that every step trained on. ``peak_tflops``: of one device at the run's precision,
    for MFU; null takes what its vendor says, where its name is known."""

    every: Positive = 10
    validate_every: NotNegative = 1000
    samples: Switch = False
    peak_tflops: Rate | None = None

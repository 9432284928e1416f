"""How DeepSpeed divides and computes the model."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from shards.config import ConfigModel
from shards.config.fields import NotNegative, Positive, Switch, as_switch

Stage = Annotated[int, Field(ge=0, le=3)]


class OffloadConfig(ConfigModel):
    """Where states are kept instead of on the GPU."""

    device: Literal["cpu"] = "cpu"
    """The host's memory."""
    pin_memory: Switch = True
    """Use page-locked memory, which copies faster and can't be swapped out."""


class DeepSpeedConfig(ConfigModel):
    """Keys of DeepSpeed's ``zero_optimization`` that are passed on: those that tests have shown to work here."""

    zero_hpz_partition_size: Positive = 1
    """ZeRO++ at stage 3: processes, such as those of a node, that divide a second copy of the weights among them; the
    backward pass gathers from it. 1: none."""
    offload_optimizer: OffloadConfig | None = None
    """Keep and update masters and moments in the host's memory, at stages 1 and 2."""

    def passed(self) -> dict[str, Any]:
        """Return the keys that differ from their defaults."""
        return self.model_dump(exclude_defaults=True) | (
            {} if self.offload_optimizer is None else {"offload_optimizer": self.offload_optimizer.model_dump()}
        )


class EngineConfig(ConfigModel):
    """How DeepSpeed divides and computes the model."""

    zero_stage: Stage = 3
    """ZeRO stage: what is divided among processes. 0: nothing; 1: optimizer; 2: gradients, too; 3: weights, too."""
    precision: Literal["fp32", "autocast", "bf16"] = "autocast"
    """fp32; autocast (compute in bf16, weights in fp32); or bf16 (weights in bf16 with a copy in fp32)."""
    activation_checkpointing: Literal["none", "selective", "blocks"] = "none"
    """What the backward pass computes again, with the same numbers: nothing; ``selective``, all of a block but matrix
    products and attention; ``blocks``, blocks and stem, for the least memory and a third more work."""
    compile: Switch | Literal["auto"] = "auto"
    """Use torch.compile for transformer blocks and the arithmetic of stem and loss in training; auto: on GPUs."""
    stem_kernel: Literal["auto", "eager", "triton"] = "auto"
    """How stems are computed in half precision: ``triton``, by a few kernels, for GPUs of compute
    capability 8.0 and above; ``eager``, by torch's operations; ``auto``, by Triton's wherever they run."""
    reduce_bucket_size: Positive | None = None
    """Weights of one reduction; null: an eighth of the model, within 1 to 50 million."""
    prefetch_bucket_size: NotNegative | None = None
    """Weights gathered ahead at stage 3; null: a sixteenth of the model, within 1 to 50 million."""
    param_persistence_threshold: NotNegative = 0
    """Parameters of up to so many weights are not divided at stage 3, but gathered one by one after each step; 0: they
    are gathered with the others, in a few large collectives (under autocast those of linear layers in bf16)."""

    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    """Other keys of DeepSpeed."""

    def buckets(self, parameters: int) -> tuple[int, int]:
        """Return the weights of one reduction and of one gathering, for a model of ``parameters`` weights.

        A pass has several collectives, so that all but the last overlap with compute; each is large enough not to be
        bound by latency, and small beside the model.
        """

        def share(part: int) -> int:
            return min(max(parameters // part, 1_000_000), 50_000_000)

        reduce, prefetch = self.reduce_bucket_size, self.prefetch_bucket_size
        return share(8) if reduce is None else reduce, share(16) if prefetch is None else prefetch

    def sized(self, parameters: int) -> "EngineConfig":
        """Return the config with its `buckets` filled in."""
        reduce, prefetch = self.buckets(parameters)
        return self.model_copy(update={"reduce_bucket_size": reduce, "prefetch_bucket_size": prefetch})

    @field_validator("activation_checkpointing", mode="before")
    @classmethod
    def _yes_is_blocks(cls, value: Any) -> Any:
        switch = as_switch(value)
        return {True: "blocks", False: "none"}[switch] if isinstance(switch, bool) else value

    @model_validator(mode="after")
    def _kernels_need_half_precision(self) -> Self:
        if self.stem_kernel == "triton" and self.precision == "fp32":
            raise ValueError(".stem_kernel triton needs .precision autocast or bf16: use auto")
        return self

    @model_validator(mode="after")
    def _bf16_needs_a_stage(self) -> Self:
        if self.precision == "bf16" and self.zero_stage < 2:
            raise ValueError(
                ".precision bf16 needs .zero_stage 2 or 3: at lower stages, DeepSpeed uses an optimizer whose steps "
                "can't be checked or resumed"
            )
        return self

    @model_validator(mode="after")
    def _deepspeed_keys_fit_the_stage(self) -> Self:
        if self.deepspeed.zero_hpz_partition_size > 1 and self.zero_stage < 3:
            raise ValueError(".deepspeed.zero_hpz_partition_size divides weights: it needs .zero_stage 3")
        if self.deepspeed.offload_optimizer is not None and self.zero_stage not in (1, 2):
            raise ValueError(
                ".deepspeed.offload_optimizer needs .zero_stage 1 or 2: at stage 3, a checkpoint doesn't reach the "
                "weights that DeepSpeed gathers"
            )
        return self

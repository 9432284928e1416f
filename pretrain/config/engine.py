"""How DeepSpeed divides and computes the model."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from shards.config import ConfigModel
from shards.config.fields import NotNegative, Positive, Switch, as_switch

Stage = Annotated[int, Field(ge=0, le=3)]


class EngineConfig(ConfigModel):
    """DeepSpeed. ``precision``: fp32; autocast (bf16 compute, fp32 parameters); bf16 (bf16 parameters, fp32 master).

    ``activation_checkpointing``: what the backward pass computes again instead of keeping it, with the same numbers:
    ``none``; ``selective``, all of a block but matrix products and attention; ``blocks``, blocks and stem: least
    memory, a third more work. ``compile``: torch.compile for the stem's and the loss's arithmetic, and at stages 0 to 2
    for the transformer blocks. ``reduce_bucket_size``, ``prefetch_bucket_size``: weights of one collective; null: an
    eighth and a sixteenth of the model, within 1 to 50 million.
    """

    zero_stage: Stage = 3
    precision: Literal["fp32", "autocast", "bf16"] = "autocast"
    activation_checkpointing: Literal["none", "selective", "blocks"] = "none"
    compile: Switch = False
    reduce_bucket_size: Positive | None = None
    prefetch_bucket_size: NotNegative | None = None
    param_persistence_threshold: NotNegative = 100_000

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
        switch = as_switch(value)
        return {True: "blocks", False: "none"}[switch] if isinstance(switch, bool) else value

    @model_validator(mode="after")
    def _bf16_needs_a_stage(self) -> Self:
        if self.precision == "bf16" and self.zero_stage < 2:
            raise ValueError(
                ".precision bf16 needs .zero_stage 2 or 3: below, DeepSpeed takes an optimizer whose steps can't be "
                "judged or resumed"
            )
        return self

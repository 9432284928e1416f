"""The registry of losses, with their options. Losses themselves are imported when the first one is built."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from shards.config import ConfigModel
from shards.config.fields import Rate, Weight
from shards.registry import Registry

if TYPE_CHECKING:
    from finetune.losses.loss import Loss

ClassWeights = Literal["balanced"] | Annotated[tuple[Weight, ...], Field(strict=False, min_length=2)]


class LossConfig(ConfigModel):
    """Options of a loss.

    Attributes:
        forms: of the labels that it compares scores with, see `finetune.tasks.kinds.kind.Form`.
        needs_map: whether labels must be maps.
    """

    name: str
    forms: ClassVar[tuple[str, ...]] = ()
    needs_map: ClassVar[bool] = False

    def to_plain(self) -> Any:
        """Return what a config says: the name alone where all options have their defaults, else a mapping."""
        options = self.model_dump(mode="json", exclude_defaults=True)
        return {"name": self.name, **options} if options.keys() - {"name"} else self.name


class WeightedLossConfig(LossConfig):
    """A loss with class weights.

    ``class_weights``: one for each class in the task's order, or ``balanced`` for weights inverse to how often each
    class occurs in the training labels. Of a multi-label task they weigh the tiles in which a class occurs.
    """

    class_weights: ClassWeights | None = None


class CrossEntropyConfig(WeightedLossConfig):
    """Cross-entropy over the classes."""

    forms = ("class",)


class BinaryCrossEntropyConfig(WeightedLossConfig):
    """Binary cross-entropy of each class of a multi-label task."""

    forms = ("classes",)


class FocalConfig(WeightedLossConfig):
    """Focal loss (arXiv 1708.02002): cross-entropy times (1 - p)^gamma, p being the probability of the right answer."""

    forms = ("class", "classes")
    gamma: Weight = 2.0


class DiceConfig(WeightedLossConfig):
    """Soft dice loss of the classes in each tile, plus ``cross_entropy`` times the cross-entropy (0 for dice alone)."""

    forms = ("class",)
    needs_map = True
    cross_entropy: Weight = 1.0


class TargetLossConfig(LossConfig):
    """Mean squared error (mse) or mean absolute error (l1) of the targets."""

    forms = ("value",)


class HuberConfig(LossConfig):
    """Huber loss: squared below ``delta``, absolute above; in standard deviations where targets are standardized."""

    forms = ("value",)
    delta: Rate = 1.0


LOSSES: "Registry[type[Loss]]" = Registry("loss", LossConfig)
LOSSES.add("cross_entropy", "finetune.losses.classes:CrossEntropy", CrossEntropyConfig)
LOSSES.add("binary_cross_entropy", "finetune.losses.classes:BinaryCrossEntropy", BinaryCrossEntropyConfig)
LOSSES.add("focal", "finetune.losses.classes:Focal", FocalConfig)
LOSSES.add("dice", "finetune.losses.dice:Dice", DiceConfig)
LOSSES.add("mse", "finetune.losses.targets:SquaredError", TargetLossConfig)
LOSSES.add("l1", "finetune.losses.targets:AbsoluteError", TargetLossConfig)
LOSSES.add("huber", "finetune.losses.targets:Huber", HuberConfig)

LossChoice = Annotated[LossConfig, LOSSES]
"""Config value: the name of a loss, or a mapping with its name and options."""


def losses_for(form: str, is_dense: bool) -> list[str]:
    """Return the names of the losses that take labels of this form."""
    known = [(name, config) for name, config in LOSSES.configs.items() if issubclass(config, LossConfig)]
    return [name for name, config in known if form in config.forms and (is_dense or not config.needs_map)]

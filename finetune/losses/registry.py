"""The registry of losses, with their options. Losses themselves are imported when the first one is built."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from shards.config import NamedConfig
from shards.config.fields import Rate, Weight
from shards.registry import Registry

if TYPE_CHECKING:
    from finetune.losses.loss import Loss

ClassWeights = Literal["balanced"] | Annotated[tuple[Weight, ...], Field(strict=False, min_length=2)]


class LossConfig(NamedConfig):
    """Options of a loss."""

    forms: ClassVar[tuple[str, ...]] = ()
    """Of the labels that it compares scores with, see `finetune.tasks.kinds.kind.Form`."""
    needs_map: ClassVar[bool] = False
    """Whether labels must be maps."""


class WeightedLossConfig(LossConfig):
    """Options of a loss with class weights."""

    class_weights: ClassWeights | None = None
    """A weight for each class in the task's order, or ``balanced`` for weights inverse to how often each class occurs
    in the training labels. In a multi-label task they weigh the tiles in which a class occurs."""


class CrossEntropyConfig(WeightedLossConfig):
    """Options of the cross-entropy over the classes."""

    forms = ("class",)


class BinaryCrossEntropyConfig(WeightedLossConfig):
    """Options of the binary cross-entropy of each class."""

    forms = ("classes",)


class FocalConfig(WeightedLossConfig):
    """Options of the focal loss (arXiv 1708.02002)."""

    forms = ("class", "classes")
    gamma: Weight = 2.0
    """Exponent of (1 - p) that the cross-entropy is multiplied with, p being the probability of the right answer."""


class DiceConfig(WeightedLossConfig):
    """Options of the soft dice loss."""

    forms = ("class",)
    needs_map = True
    cross_entropy: Weight = 1.0
    """Factor of the cross-entropy that is added; 0 for dice only."""


class TargetLossConfig(LossConfig):
    """Options of the mean squared error (mse) and the mean absolute error (l1): none."""

    forms = ("value",)


class HuberConfig(LossConfig):
    """Options of the Huber loss."""

    forms = ("value",)
    delta: Rate = 1.0
    """Difference above which the loss is linear; in standard deviations where targets are standardized."""


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


def loss_config(value: Any) -> LossConfig:
    """Return the typed config of a loss, from what a config says."""
    return cast(LossConfig, LOSSES.validate(value))


def losses_for(form: str, is_dense: bool) -> list[str]:
    """Return the names of the losses that take labels of this form."""
    known = [(name, config) for name, config in LOSSES.configs.items() if issubclass(config, LossConfig)]
    return [name for name, config in known if form in config.forms and (is_dense or not config.needs_map)]

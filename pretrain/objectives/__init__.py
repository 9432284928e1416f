"""Self-supervised objectives, one per file: modules that turn views into losses, and how a run feeds them."""

from typing import TYPE_CHECKING

from pretrain.config import PretrainConfig
from pretrain.registries import OBJECTIVES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pretrain.models.normalize import Normalizer
    from pretrain.objectives.objective import Objective, ObjectiveModule
    from pretrain.weights.initial_weights import InitialWeights
    from shards.format.manifest import Manifest


def build_objective(
    config: PretrainConfig,
    normalize: "Normalizer",
    manifests: "Sequence[Manifest]",
    initial: "InitialWeights | None" = None,
) -> "Objective":
    """Build the objective of a run, with weights drawn from the run's seed, or those of a file."""
    return OBJECTIVES[config.objective.name](config, normalize, manifests, initial)


def outline_module(config: PretrainConfig, bands: int) -> "ObjectiveModule":
    """Build what a run trains on the meta device: without weights, to count them and their operations."""
    import torch

    with torch.device("meta"):
        return OBJECTIVES[config.objective.name].build_module(config, bands)

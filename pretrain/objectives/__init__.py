"""Self-supervised objectives, one per file: modules that turn views into losses, and how a run feeds them."""

from pretrain.config import PretrainConfig
from pretrain.config.objective import DinoConfig, MocoConfig
from pretrain.models.normalize import Normalizer
from pretrain.objectives.dino import DinoObjective
from pretrain.objectives.mae import MaeObjective
from pretrain.objectives.moco import MocoObjective
from pretrain.objectives.objective import Objective
from pretrain.weights.initial_weights import InitialWeights
from shards.format.manifest import Manifest


def build_objective(
    config: PretrainConfig, normalize: Normalizer, manifest: Manifest, initial: InitialWeights | None = None
) -> Objective:
    """The objective of a run, with weights drawn from the run's seed, or those of a file."""
    if isinstance(config.objective, MocoConfig):
        return MocoObjective(config, normalize, manifest.tile_shape[0], initial)
    if isinstance(config.objective, DinoConfig):
        return DinoObjective(config, normalize, manifest.tile_shape[0], initial)
    return MaeObjective(config, normalize, manifest, initial)

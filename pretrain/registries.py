"""What pretraining can be extended by, and what is there already: see docs/extending.md.

Targets and configs are given by their paths, so that this file imports neither torch nor pydantic.
"""

from typing import TYPE_CHECKING

from shards.registry import Registry

if TYPE_CHECKING:
    from pretrain.models.encoder import Encoder
    from pretrain.objectives.objective import Objective

ENCODERS: "Registry[type[Encoder]]" = Registry("encoder", "pretrain.config.model:ModelConfig", "spec_vit_small")
for _size in ("tiny", "small", "base", "large", "huge", "giant", "gigantic"):
    ENCODERS.add(f"spec_vit_{_size}", "pretrain.models.vit:SpecViT", "pretrain.config.model:ViTConfig")
ENCODERS.add("spec_resnet50", "pretrain.models.resnet:SpecResNet")
ENCODERS.add("vit_tiny", "pretrain.models.vit:PlainViT", "pretrain.config.model:ViTConfig")
ENCODERS.add("vit_small", "pretrain.models.vit:PlainViT", "pretrain.config.model:ViTConfig")
ENCODERS.add("resnet50", "pretrain.models.resnet:PlainResNet")

OBJECTIVES: "Registry[type[Objective]]" = Registry("objective", "pretrain.config.objective:ObjectiveConfig", "mae")
OBJECTIVES.add("mae", "pretrain.objectives.mae:MaeObjective", "pretrain.config.objective:MaeConfig")
OBJECTIVES.add("moco", "pretrain.objectives.moco:MocoObjective", "pretrain.config.objective:MocoConfig")
OBJECTIVES.add("dino", "pretrain.objectives.dino:DinoObjective", "pretrain.config.objective:DinoConfig")

"""An encoder and a head as one model with its loss; all or some parts are trained, with or without batch statistics."""

from torch import Tensor, nn

from finetune.config import FullConfig
from finetune.encoders.model_file import TaskModel
from finetune.losses.loss import Loss


class TunedModel(nn.Module):
    """Encoder and head with their loss; modules without trained parameters stay in evaluation mode.

    Args:
        model: encoder and head, on the CPU.
        loss: loss of the task.
        trained: part of the encoder to train: full, blocks, adapter, lora (see `pretrain.models.lora`) or none.
        recipe: ``bn: adapt`` lets the batch norms of trained parts, or of all if no part of the encoder is trained, use
            and update batch statistics; with ``frozen`` the encoder, and a head that starts from the probe, keep their
            running statistics.
    """

    def __init__(self, model: TaskModel, loss: Loss, trained: str, recipe: FullConfig) -> None:
        super().__init__()
        assert model.head is not None
        self.encoder, self.head, self.loss = model.encoder, model.head, loss
        self.source = model.head_input
        self.trains_all = trained in ("full", "none")
        settled = [] if recipe.bn == "adapt" else [self.encoder, *([self.head] if recipe.start == "probe" else [])]
        self.frozen_norms = [norm for part in settled for norm in part.modules() if hasattr(norm, "running_mean")]
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(_learns(name, trained, recipe.first_blocks))
        for parameter in self._unused_parameters():
            parameter.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "TunedModel":
        super().train(mode)
        if mode and not self.trains_all:
            for part in self.encoder.modules():
                parameters = list(part.parameters())
                part.training = any(parameter.requires_grad for parameter in parameters)
        for norm in self.frozen_norms:
            norm.training = False
        return self

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed loss and the scores of normalized images (B, C, S, S)."""
        scores = self.head(self.source.compute(self.encoder, images)).float()
        return self.loss.sum(scores, labels), scores

    def _unused_parameters(self) -> list[nn.Parameter]:
        """List the parameters of the layers above the last one that the head gets."""
        if not self.source.layers:
            return []
        layers = self.encoder.parameter_layers()
        used = len(layers) - len(self.encoder.layer_shapes()) + self.source.layers[-1] + 1
        return [parameter for layer in layers[used:] for parameter in layer]


def _learns(name: str, trained: str, first_blocks: int) -> bool:
    if trained in ("full", "none"):
        return trained == "full"
    if trained == "lora":
        return ".lora." in name
    if "spectral_adapter" in name:
        return True
    if trained == "adapter":
        return False
    blocks = [f"blocks.{number}." for number in range(first_blocks)]
    stages = [f"layer{number + 1}." for number in range(first_blocks)]
    first = ("patch_embed", "cls_token", "pos_embed", *blocks, *stages)
    return any(f".{part}" in f".{name}" for part in first)

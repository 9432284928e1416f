"""What every encoder offers, so that objectives, tasks and notebooks need not know which one they have."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

Output = Literal["pooled", "map", "tokens"]


class Encoder(nn.Module, ABC):
    """Images in, features out. Everything goes through ``forward``: under ZeRO-3 weights exist nowhere else.

    Attributes:
        feature_dim: D, features per image or position.
        stride: pixels per side of a position of the feature map.
        bands: number of bands that it takes; None for any number from ``min_bands`` on.
        min_bands: fewest bands that it takes.
    """

    feature_dim: int
    stride: int
    bands: int | None = None
    min_bands: int = 1

    @abstractmethod
    def forward(self, images: Tensor | Sequence[Tensor], output: Output = "pooled") -> Tensor:
        """Features of normalized images (B, C, H, W).

        Args:
            images: one batch, or several of different sizes (crops), whose features are joined in order.
            output: ``pooled`` gives one vector an image, (B, D); ``map`` (B, D, H / stride, W / stride).
        """

    def dense_features(self, images: Tensor) -> Tensor:
        """The feature map (B, D, H / stride, W / stride) of normalized images (B, C, H, W)."""
        return self(images, "map")

    def get_intermediate_layers(
        self,
        images: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> tuple:
        """Features of several layers, with the arguments of timm's and DINOv2's function of this name.

        Args:
            images: normalized (B, C, H, W).
            n: the last ``n`` layers, or the numbers of the layers to take.
            reshape: maps (B, D, h, w) instead of tokens (B, h*w, D).
            return_prefix_tokens: pairs (features, class token (B, 1, D)) instead of features.
            norm: apply the final norm to each, where there is one.

        Raises:
            ValueError: a layer that the encoder doesn't have, or class tokens of one that has none.
        """
        layers = self._layers(images, n, norm)
        features = [one if reshape else one.flatten(2).transpose(1, 2) for one, _ in layers]
        if not return_prefix_tokens:
            return tuple(features)
        tokens = [token for _, token in layers]
        if any(token is None for token in tokens):
            raise ValueError(f"a {type(self).__name__} has no class token: leave return_prefix_tokens out")
        return tuple(zip(features, tokens, strict=True))

    @abstractmethod
    def _layers(self, images: Tensor, n: int | Sequence[int], norm: bool) -> list[tuple[Tensor, Tensor | None]]:
        """Of each layer that ``n`` asks for, its map (B, D, h, w) and its class token (B, 1, D), if it has one."""


def layer_numbers(n: int | Sequence[int], depth: int) -> list[int]:
    """The layers that ``n`` asks for, of ``depth``: the last n, or those of the numbers, negative ones from the end."""
    if isinstance(n, int) and not 1 <= n <= depth:
        raise ValueError(f"the last {n} layers were asked for; this encoder has {depth}")
    asked = range(depth - n, depth) if isinstance(n, int) else n
    wrong = [number for number in asked if not -depth <= number < depth]
    if wrong:
        raise ValueError(f"layer {wrong[0]} was asked for; this encoder has layers 0 to {depth - 1}")
    return [number % depth for number in asked]

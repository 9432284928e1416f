"""The interface of encoders: objectives, tasks and notebooks don't depend on a particular one."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pretrain.models.flops import Parts, count_flops, times
from pretrain.models.layer_maps import LayerShape, fold_layers
from pretrain.models.spectrum import Spectrum

Output = Literal["pooled", "map", "tokens", "layers", "layer_means"]


class Encoder(nn.Module, ABC):
    """Images in, features out.

    Everything that trains goes through ``forward``: under ZeRO-3 the weights exist nowhere else. An encoder implements
    `_pooled` and `_map`; the other methods have defaults.

    Attributes:
        feature_dim: D, features per image or position.
        stride: pixels per side of a position of the feature map.
        bands: number of bands that it takes; None for any number from ``min_bands`` on.
        min_bands: fewest bands that it takes.
        size_multiple: height and width of images are multiples of it.
        dense_dilation: ``dilate`` of ``build_encoder`` for maps of the image's resolution; empty where there is none.
        by_wavelength: whether its features depend on the centers and widths of bands: methods take a `Spectrum`, too.
        is_transformer: whether it's a transformer on a grid of patches, whose position embeddings are interpolated to
            the images' size. Tasks give transformers and other encoders different heads, as published.
    """

    feature_dim: int
    stride: int
    bands: int | None = None
    min_bands: int = 1
    size_multiple: int = 1
    dense_dilation: tuple[bool, ...] = ()
    by_wavelength: bool = False
    is_transformer: bool = False

    def forward(self, images: Tensor | Sequence[Tensor], output: Output = "pooled", *inputs: Any) -> Tensor:
        """Compute features of normalized images (B, C, H, W).

        Args:
            images: one batch; for ``pooled`` also several of different sizes (crops), whose features are concatenated.
            output: which of the methods below is called: ``pooled``, one vector an image, (B, D); ``map``, (B, D,
                H / stride, W / stride); ``tokens``, of patches (see `ViTEncoder.tokens`); ``layers``, the maps of
                several layers, folded (see `fold_layers`); or ``layer_means``, their means over positions, (B, sum of
                D_i).
            inputs: further ones of that method: of ``layers`` and ``layer_means``, the numbers of the layers,
                ascending; then, of encoders by wavelength, what the bands of the images are, a `Spectrum`, or for
                several batches one each; None for the default.
        """
        return getattr(self, f"_{output}")(images, *inputs)

    @abstractmethod
    def _pooled(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Compute one vector an image, (B, D)."""

    @abstractmethod
    def _map(self, images: Tensor) -> Tensor:
        """Compute the feature map (B, D, H / stride, W / stride)."""

    def _layer_outputs(
        self, images: Tensor, n: int | Sequence[int], norm: bool, *spectrum: Spectrum
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Compute, of each layer that ``n`` asks for, its map (B, D, h, w) and its class token (B, 1, D), if any.

        By default the encoder is a single layer without a class token.
        """
        return [(self._map(images, *spectrum), None) for _ in layer_numbers(n, 1)]

    def _layers(self, images: Tensor, numbers: Sequence[int], *spectrum: Spectrum) -> Tensor:
        return fold_layers([layer for layer, _ in self._layer_outputs(images, numbers, True, *spectrum)])

    def _layer_means(self, images: Tensor, numbers: Sequence[int], *spectrum: Spectrum) -> Tensor:
        return torch.cat([layer.mean((2, 3)) for layer, _ in self._layer_outputs(images, numbers, True, *spectrum)], 1)

    def layer_shapes(self) -> list[LayerShape]:
        """List the shapes of the layers' maps, from the lowest; the last one's is that of ``map``."""
        return [LayerShape(self.feature_dim, self.stride)]

    def parameter_layers(self) -> list[list[nn.Parameter]]:
        """List the parameters of each layer from the lowest, for layer-wise learning rates; others are above all.

        The last lists are those of the layers of `layer_shapes`.
        """
        return [list(self.parameters())]

    def residual_blocks(self) -> list[nn.Module]:
        """List the blocks that stochastic depth can drop by their attribute ``keep`` (see `Block`), from the lowest."""
        return []

    def use_sincos_positions(self) -> None:
        """Set position embeddings, if there are any, to the sine-cosine table that MAE pretraining starts from."""

    def flops(self, bands: int, image_size: int, visible: int | None = None) -> Parts:
        """Operations of a forward on one image by part: those of the stem are ``stem``.

        Args:
            bands: C.
            image_size: in pixels.
            visible: number of patches that go through it (MAE); None for all.
        """
        return {"encoder": count_flops(self, (1, bands, image_size, image_size))}

    def training_flops(self, bands: int, image_size: int, visible: int | None = None) -> Parts:
        """Operations of a forward and a backward on one image, those recomputed left out."""
        return times(3, self.flops(bands, image_size, visible))

    def recomputed_flops(
        self, bands: int, image_size: int, visible: int | None = None, checkpointing: bool = False
    ) -> int:
        """Operations on one image that the backward pass repeats, with or without activation checkpointing."""
        return 0

    def dense_features(self, images: Tensor) -> Tensor:
        """Compute the feature map (B, D, H / stride, W / stride) of normalized images (B, C, H, W)."""
        return self(images, "map")

    def get_intermediate_layers(
        self,
        images: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        spectrum: Spectrum | None = None,
    ) -> tuple:
        """Compute features of several layers, with the arguments of timm's and DINOv2's function of this name.

        Args:
            images: normalized (B, C, H, W).
            n: the last ``n`` layers, or the numbers of the layers to take.
            reshape: maps (B, D, h, w) instead of tokens (B, h*w, D).
            return_prefix_tokens: pairs (features, class token (B, 1, D)) instead of features.
            norm: apply the final norm to each, where there is one.
            spectrum: of encoders by wavelength, what the bands are; None for the default.

        Raises:
            ValueError: a layer that the encoder doesn't have, or class tokens of one that has none.
        """
        layers = self._layer_outputs(images, n, norm, *(() if spectrum is None else (spectrum,)))
        features = [feature_map if reshape else feature_map.flatten(2).transpose(1, 2) for feature_map, _ in layers]
        if not return_prefix_tokens:
            return tuple(features)
        tokens = [token for _, token in layers]
        if any(token is None for token in tokens):
            raise ValueError(f"a {type(self).__name__} has no class token: omit return_prefix_tokens")
        return tuple(zip(features, tokens, strict=True))


def layer_numbers(n: int | Sequence[int], depth: int) -> list[int]:
    """Return the numbers of the layers that ``n`` asks for: the last n, or those listed, negative ones from the end."""
    if isinstance(n, int) and not 1 <= n <= depth:
        raise ValueError(f"the last {n} layers were requested, but this encoder has {depth}")
    requested = range(depth - n, depth) if isinstance(n, int) else n
    wrong = [number for number in requested if not -depth <= number < depth]
    if wrong:
        raise ValueError(f"layer {wrong[0]} was requested, but this encoder has layers 0 to {depth - 1}")
    return [number % depth for number in requested]

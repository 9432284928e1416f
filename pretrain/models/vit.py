"""Vision transformers: Spec. ViT (SpectralEarth, arXiv 2408.08447) and the plain ViT it is compared with.

Shapes in comments: B samples, T tokens of the grid, V visible tokens, D width, C bands, p patch size.
Every weight is used inside the forward of the module that owns it: under ZeRO-3 it exists nowhere else.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.activation_checkpointing import Recompute, recomputed
from pretrain.models.adapter import SpectralAdapter
from pretrain.models.attention import Backend, Runs, attention
from pretrain.models.encoder import Encoder, Output, layer_numbers
from pretrain.models.patches import gather_tokens, patchify, resize_positions, sincos_positions
from pretrain.models.stem import Stem

Grid = tuple[int, int]
"""Rows and columns of patches."""

Spread = Callable[[Tensor], Tensor]
"""From a list of distinct tokens (1, N, ...) to the sequences that are made of them (B, tokens, ...)."""


class PatchProjection(nn.Module):
    """Linear map of a patch's pixel features, with the weight shape of the published Conv2d, (D, features, p, p)."""

    def __init__(self, features: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, features, patch_size, patch_size))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, patches: Tensor) -> Tensor:
        """(B, V, p*p, features) to (B, V, D)."""
        weight = self.weight.flatten(2).transpose(1, 2).flatten(1)  # (D, p*p*features), pixels before features
        return F.linear(patches.flatten(2).to(weight.dtype), weight, self.bias)


class PatchEmbed(nn.Module):
    """Holds the projection under its published name, ``patch_embed.proj``."""

    def __init__(self, features: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = PatchProjection(features, width, patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        return self.proj(patches)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection."""

    def __init__(self, width: int, heads: int, backend: Backend) -> None:
        super().__init__()
        self.heads, self.backend = heads, backend
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, runs: Runs | None = None, ids: Tensor | None = None, spread: Spread | None = None
    ) -> Tensor:
        projected = self.qkv(x) if spread is None else spread(self.qkv(x))
        query, key, value = projected.unflatten(2, (3, self.heads, -1)).unbind(2)
        if ids is not None:
            query = gather_tokens(query, ids)
        return self.proj(attention(query, key, value, self.backend, runs).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block.

    Attributes:
        keep: (B, 1, 1), what each sample's two residuals are multiplied by in training, for stochastic depth
            (arXiv 1603.09382): 0, or 1 over the probability of being kept. None keeps all.
    """

    keep: Tensor | None = None

    def __init__(self, width: int, heads: int, hidden: int, backend: Backend) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, backend)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden)

    def forward(
        self, x: Tensor, runs: Runs | None = None, ids: Tensor | None = None, spread: Spread | None = None
    ) -> Tensor:
        """Tokens (B, tokens, D) to the next block's.

        Args:
            runs: where sequences of several lengths are packed into one (see attention).
            ids: of the tokens (B, V) whose outputs are wanted, attending to all; all by default.
            spread: where many tokens are the same: ``x`` lists the distinct ones, and they are projected once.
        """
        keep = None if self.keep is None or not self.training else self.keep.to(x.dtype)
        attended = self.attn(self.norm1(x), runs, ids, spread)
        x = x if spread is None else spread(x)
        x = (x if ids is None else gather_tokens(x, ids)) + _kept(attended, keep)
        return x + _kept(self.mlp(self.norm2(x)), keep)


def _kept(residual: Tensor, keep: Tensor | None) -> Tensor:
    return residual if keep is None else keep * residual


class VisionTransformer(nn.Module):
    """Patch projection, positions, blocks, final norm: ``vit_core`` of a published Spec. ViT, all of a plain ViT.

    Attributes:
        recompute: which of the blocks' activations are dropped in training, and computed again in the backward pass.
    """

    pos_embed: Tensor

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        features: int,
        width: int,
        depth: int,
        heads: int,
        mlp_hidden: int,
        backend: Backend,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"patch size {patch_size} does not divide image size {image_size}")
        self.grid = image_size // patch_size
        self.recompute: Recompute = False
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))
        self.patch_embed = PatchEmbed(features, width, patch_size)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_hidden, backend) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def fix_positions(self) -> None:
        """Replace the learned positions by the fixed sine-cosine table, as MAE pretrains.

        The table becomes a buffer of the same name: ZeRO keeps no full copy of frozen parameters.
        """
        width = self.pos_embed.shape[-1]
        del self.pos_embed
        self.register_buffer("pos_embed", sincos_positions(width, self.grid))

    def forward(
        self, batches: list[Tensor], grids: list[Grid], ids: Tensor | None = None, take: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Tokens (B, 1 + V, D) of each batch, class token first, final norm applied.

        Args:
            batches: patches of pixel features (B, V, p*p, features), a batch for each image size.
            grids: of the images of each batch; positions are interpolated to it.
            ids: grid ids (B, V) of the patches of a single batch; None means the whole grid in order.
            take: of a single batch: give the outputs of these blocks instead, without the norm.
        """
        embedded = [self._embed(patches, grid, ids) for patches, grid in zip(batches, grids, strict=True)]
        if len(embedded) == 1:
            x, runs = embedded[0], None
        else:  # one sequence of sequences: one launch for all crop sizes
            x = torch.cat([one.flatten(0, 1) for one in embedded])[None]
            runs = [(one.shape[0], one.shape[1]) for one in embedded]
        taken = []
        for number, block in enumerate(self.blocks):
            x = recomputed(block, self.training and self.recompute, x, runs)
            if take is not None and number in take:
                taken.append(x)
        if take is not None:
            return taken
        x = self.norm(x)
        if runs is None:
            return [x]
        parts = x[0].split([count * length for count, length in runs])
        return [part.view(count, length, -1) for part, (count, length) in zip(parts, runs, strict=True)]

    def _embed(self, patches: Tensor, grid: Grid, ids: Tensor | None) -> Tensor:
        batch = patches.shape[0]
        positions = resize_positions(self.pos_embed, grid)
        cls = (self.cls_token + positions[:, :1]).expand(batch, -1, -1)
        places = positions[:, 1:]
        if ids is not None:
            places = gather_tokens(places.expand(batch, -1, -1), ids)
        tokens = self.patch_embed(patches) + places
        return torch.cat([cls, tokens], 1).to(self.cls_token.dtype)  # the residual stream is fp32 under autocast


class ViTEncoder(Encoder):
    """The encoder's interface on top of a VisionTransformer.

    Attributes:
        image_size, patch_size: in pixels, of the image that positions are for.
        grid: patches per side of that image.
    """

    image_size: int
    patch_size: int
    grid: int

    @property
    @abstractmethod
    def core(self) -> VisionTransformer:
        """The transformer."""

    @abstractmethod
    def _transform(self, batches: list[Tensor], grids: list[Grid], ids: Tensor | None, take: list[int] | None) -> list:
        """Patches of pixels (B, V, p*p, C) to what VisionTransformer.forward gives."""

    def forward(
        self, images: Tensor | Sequence[Tensor], output: Output = "pooled", ids: Tensor | None = None
    ) -> Tensor:
        """See Encoder; the pooled features are the class token's.

        With ``output`` ``tokens``, ``images`` are pixels of patches (B, V, p*p, C) at grid ``ids`` (B, V), and
        all tokens come out, (B, 1 + V, D). Only these patches go through the stem: for MAE, 4 to 10 times less
        work than the whole image.
        """
        if output == "tokens":
            assert isinstance(images, Tensor)
            return self._transform([images], [(self.grid, self.grid)], ids, None)[0]
        sizes = [images] if isinstance(images, Tensor) else list(images)
        grids = [self._grid_of(one) for one in sizes]
        tokens = self._transform([patchify(one, self.patch_size) for one in sizes], grids, None, None)
        if output == "map":
            return _as_map(tokens[0][:, 1:], grids[0])
        return torch.cat([one[:, 0] for one in tokens])

    def tokens(self, patches: Tensor, ids: Tensor | None = None) -> Tensor:
        """Pixels of V patches (B, V, p*p, C), normalized, at grid ids (B, V), to tokens (B, 1 + V, D)."""
        return self(patches, "tokens", ids)

    def _layers(self, images: Tensor, n: int | Sequence[int], norm: bool) -> list[tuple[Tensor, Tensor | None]]:
        numbers, grid = layer_numbers(n, len(self.core.blocks)), self._grid_of(images)
        outputs = self._transform([patchify(images, self.patch_size)], [grid], None, numbers)
        if norm:
            outputs = [self.core.norm(x) for x in outputs]
        by_number = dict(zip(sorted(set(numbers)), outputs, strict=True))
        return [(_as_map(by_number[number][:, 1:], grid), by_number[number][:, :1]) for number in numbers]

    def _grid_of(self, images: Tensor) -> Grid:
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"images of {height} x {width} px do not divide into patches of {self.patch_size} px")
        return height // self.patch_size, width // self.patch_size


def _as_map(tokens: Tensor, grid: Grid) -> Tensor:
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


class SpecViT(ViTEncoder):
    """Spectral adapter and transformer.

    Args:
        image_size, patch_size: in pixels; the image is square, the patch divides it.
        width, depth, heads, mlp_hidden: of the transformer.
        bn_group: samples that share batch-norm statistics.
        backend: attention kernel.
        stem: in front of the patches; None for the spectral adapter. Its name is ``spectral_adapter`` in any case.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        mlp_hidden: int,
        bn_group: int | None = None,
        backend: Backend = "auto",
        stem: Stem | None = None,
    ) -> None:
        super().__init__()
        self.image_size, self.patch_size, self.stride = image_size, patch_size, patch_size
        self.feature_dim = width
        self.spectral_adapter = SpectralAdapter(bn_group) if stem is None else stem
        channels = self.spectral_adapter.channels
        self.vit_core = VisionTransformer(image_size, patch_size, channels, width, depth, heads, mlp_hidden, backend)
        self.bands, self.min_bands = self.spectral_adapter.bands, self.spectral_adapter.min_bands
        self.grid = self.vit_core.grid

    @property
    def core(self) -> VisionTransformer:
        return self.vit_core

    def _transform(self, batches: list[Tensor], grids: list[Grid], ids: Tensor | None, take: list[int] | None) -> list:
        return self.vit_core([self._features(patches) for patches in batches], grids, ids, take)

    def _features(self, patches: Tensor) -> Tensor:
        batch, visible, pixels, bands = patches.shape
        features = self.spectral_adapter(patches.reshape(batch, visible * pixels, bands))
        return features.reshape(batch, visible, pixels, self.spectral_adapter.channels)


class PlainViT(ViTEncoder, VisionTransformer):  # type: ignore[misc]  # its forward is the encoder's
    """A vision transformer on the bands themselves, without the adapter: the published baseline.

    Args:
        bands: C.
        image_size, patch_size, width, depth, heads, mlp_hidden, backend: as SpecViT's.
    """

    def __init__(
        self,
        bands: int,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        mlp_hidden: int,
        backend: Backend = "auto",
    ) -> None:
        VisionTransformer.__init__(self, image_size, patch_size, bands, width, depth, heads, mlp_hidden, backend)
        self.bands = bands
        self.image_size, self.patch_size, self.stride = image_size, patch_size, patch_size
        self.feature_dim = width

    @property
    def core(self) -> VisionTransformer:
        return self

    def _transform(self, batches: list[Tensor], grids: list[Grid], ids: Tensor | None, take: list[int] | None) -> list:
        return VisionTransformer.forward(self, batches, grids, ids, take)

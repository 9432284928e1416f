"""Spec. ViT: spectral adapter, patch projection, plain pre-norm transformer (SpectralEarth, arXiv 2408.08447).

Shapes in comments: B samples, T tokens of the grid, V visible tokens, D width, C bands, p patch size.
Every weight is used inside the forward of the module that owns it: under ZeRO-3 it exists nowhere else.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.adapter import CHANNELS, SpectralAdapter
from pretrain.models.attention import Backend, attention
from shards.keyed import key


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) to (B, T, p*p, C): the pixels of each patch, row by row, spectra last."""
    batch, bands, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    grid = images.view(batch, bands, rows, patch_size, columns, patch_size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size * patch_size, bands)


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Pick tokens (B, T, ...) by ids (B, V) to (B, V, ...)."""
    index = ids.view(*ids.shape, *[1] * (tokens.dim() - 2)).expand(-1, -1, *tokens.shape[2:])
    return tokens.gather(1, index)


def sincos_positions(width: int, grid: int) -> Tensor:
    """Fixed 2-D sine-cosine positions (1, 1 + grid*grid, width), zeros for the class token (MAE, arXiv 2111.06377)."""
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], 1)  # (grid, width / 2)
    columns = axis[None, :, :].expand(grid, grid, -1)
    rows = axis[:, None, :].expand(grid, grid, -1)
    table = torch.cat([columns, rows], -1).reshape(1, grid * grid, width)
    return torch.cat([torch.zeros(1, 1, width, dtype=torch.float64), table], 1).float()


class PatchProjection(nn.Module):
    """Linear map of a patch's pixel features, with the weight shape of the published Conv2d, (D, features, p, p)."""

    def __init__(self, features: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, features, patch_size, patch_size))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, patches: Tensor) -> Tensor:
        """(B, V, p*p, features) to (B, V, D)."""
        weight = self.weight.flatten(2).transpose(1, 2).flatten(1)  # (D, p*p*features), pixels before features
        return F.linear(patches.flatten(2), weight, self.bias)


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

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        query, key, value = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).unbind(2)
        return self.proj(attention(query, key, value, self.backend).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int, backend: Backend) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, backend)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """The trunk, ``vit_core`` in published checkpoints: patch projection, positions, blocks, final norm."""

    pos_embed: Tensor

    def __init__(
        self, image_size: int, patch_size: int, width: int, depth: int, heads: int, mlp_hidden: int, backend: Backend
    ) -> None:
        super().__init__()
        self.grid = image_size // patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))
        self.patch_embed = PatchEmbed(CHANNELS, width, patch_size)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_hidden, backend) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def fix_positions(self) -> None:
        """Replace the learned positions by the fixed sine-cosine table, as MAE pretrains.

        The table becomes a buffer of the same name: ZeRO keeps no full copy of frozen parameters.
        """
        width = self.pos_embed.shape[-1]
        del self.pos_embed
        self.register_buffer("pos_embed", sincos_positions(width, self.grid))

    def forward(self, patches: Tensor, ids: Tensor | None) -> Tensor:
        """Pixel features of V patches (B, V, p*p, CHANNELS) at grid ids (B, V) to tokens (B, 1 + V, D).

        ``ids`` None means the whole grid in order. The class token comes first; the final norm is applied.
        """
        batch = patches.shape[0]
        positions = self.pos_embed[:, 1:]
        if ids is not None:
            positions = gather_tokens(positions.expand(batch, -1, -1), ids)
        tokens = self.patch_embed(patches) + positions
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)
        x = torch.cat([cls, tokens], 1).to(self.cls_token.dtype)  # the residual stream is fp32 under autocast
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class SpecViT(nn.Module):
    """Spectral adapter and transformer.

    Args:
        image_size, patch_size: in pixels; the image is square, the patch divides it.
        width, depth, heads, mlp_hidden: of the transformer.
        bn_group: samples that share batch-norm statistics.
        backend: attention kernel.

    Attributes:
        feature_dim: D.
        patch_size, grid: pixels per patch side, patches per image side.
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
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"patch size {patch_size} does not divide image size {image_size}")
        self.image_size, self.patch_size, self.grid = image_size, patch_size, image_size // patch_size
        self.feature_dim = width
        self.spectral_adapter = SpectralAdapter(bn_group)
        self.vit_core = VisionTransformer(image_size, patch_size, width, depth, heads, mlp_hidden, backend)

    def tokens(self, patches: Tensor, ids: Tensor | None = None) -> Tensor:
        """Pixels of V patches (B, V, p*p, C), normalised, at grid ids (B, V), to tokens (B, 1 + V, D).

        Only these patches go through the stem: for MAE that is 4 to 10 times less work than the whole image.
        """
        batch, visible, pixels, bands = patches.shape
        features = self.spectral_adapter(patches.reshape(batch, visible * pixels, bands))
        return self.vit_core(features.view(batch, visible, pixels, CHANNELS), ids)

    def dense_features(self, images: Tensor) -> Tensor:
        """Patch features of images (B, C, H, W) as a map (B, D, grid, grid), after the final norm."""
        tokens = self.tokens(patchify(images, self.patch_size))[:, 1:]
        return tokens.transpose(1, 2).reshape(images.shape[0], self.feature_dim, self.grid, self.grid)

    def forward(self, images: Tensor) -> Tensor:
        """Class-token features (B, D) of normalised images (B, C, H, W)."""
        return self.tokens(patchify(images, self.patch_size))[:, 0]


def initialise(module: nn.Module, name: str, seed: int) -> None:
    """Fill a model's parameters, each from (seed, its own name): independent of order, ranks and ZeRO stage.

    Truncated normal (std 0.02) for linear weights and tokens, He-uniform bounds for the adapter's
    convolutions as torch's defaults have them, ones and zeros for norms and biases.
    """
    for parameter_name, parameter in module.named_parameters():
        full = f"{name}.{parameter_name}"
        generator = torch.Generator().manual_seed(key(seed, full) % 2**63)
        with torch.no_grad():
            _fill(full, parameter, generator)


def _fill(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("cls_token", "mask_token", "pos_embed"):
        nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
    elif parameter.dim() == 1:
        parameter.fill_(1.0 if leaf == "weight" else 0.0)
    elif parameter.dim() == 5:
        nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)
    else:
        fan_out, fan_in = parameter.shape[0], parameter[0].numel()
        bound = math.sqrt(6.0 / (fan_in + fan_out))  # Xavier-uniform, as MAE initialises its linear layers
        parameter.uniform_(-bound, bound, generator=generator)

"""Parts of vision transformers: patch projection, attention, blocks, and the transformer itself.

Shapes in comments: B samples, T tokens of the grid, V visible tokens, D width, p patch size.
Every weight is used inside the forward of the module that owns it: under ZeRO-3 it exists nowhere else.
"""

from collections.abc import Callable, Collection
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.kernels.launching import kernels_problem
from pretrain.models.attention import Backend, SeqLens, attention
from pretrain.models.compilation import is_exporting
from pretrain.models.flops import Parts
from pretrain.models.fused_block import add_norm, constant_bias_linear, gelu, keep_and_norm, split_heads
from pretrain.models.patches import gather_tokens, resize_positions, sincos_positions
from pretrain.models.unit import Unit, units

Grid = tuple[int, int]
"""Rows and columns of patches."""

Spread = Callable[[Tensor], Tensor]
"""From distinct tokens (1, N, ...) to the sequences that consist of them, (B, tokens, ...)."""


class PatchProjection(nn.Module):
    """Linear map of a patch's pixel features, with the weight shape of the published Conv2d, (D, features, p, p)."""

    def __init__(self, features: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, features, patch_size, patch_size))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, patches: Tensor) -> Tensor:
        """Map (B, V, p*p, features) to (B, V, D)."""
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
        self, x: Tensor, seqlens: SeqLens | None = None, ids: Tensor | None = None, spread: Spread | None = None
    ) -> Tensor:
        projected = self.qkv(x) if spread is None else spread(self.qkv(x))
        return self.proj(self._mix(projected.unflatten(2, (3, self.heads, -1)).unbind(2), seqlens, ids))

    def fused(self, x: Tensor, seqlens: SeqLens | None, ids: Tensor | None, spread: Spread | None) -> Tensor:
        """Compute the same; the function behind it returns the gradient of the last bias (see fused_block.py)."""
        if spread is None:
            heads = split_heads(constant_bias_linear(self.qkv, x), self.qkv.bias, self.heads)
        else:
            heads = spread(self.qkv(x)).unflatten(2, (3, self.heads, -1)).unbind(2)
        return constant_bias_linear(self.proj, self._mix(heads, seqlens, ids))

    def _mix(self, heads: tuple[Tensor, ...], seqlens: SeqLens | None, ids: Tensor | None) -> Tensor:
        query, key, value = heads
        if ids is not None:
            query = gather_tokens(query, ids)
        return attention(query, key, value, self.backend, seqlens).flatten(2)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))

    def fused(self, x: Tensor) -> Tensor:
        """Compute the same (see fused_block.py)."""
        return self.fc2(gelu(constant_bias_linear(self.fc1, x), self.fc1.bias))


class Block(Unit):
    """Pre-norm transformer block.

    Attributes:
        keep: (B, 1, 1), factor of each sample's two residuals in training, for stochastic depth (arXiv 1603.09382): 0,
            or 1 over the probability of being kept. None keeps all.
        fuses: whether kernels that also sum bias gradients run in training, where weights and tokens are in half
            precision.
    """

    compiles = True
    keep: Tensor | None = None
    fuses: bool = False

    def __init__(self, width: int, heads: int, hidden: int, backend: Backend) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, backend)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden)

    def forward(
        self, x: Tensor, seqlens: SeqLens | None = None, ids: Tensor | None = None, spread: Spread | None = None
    ) -> Tensor:
        """Map tokens (B, tokens, D) to those of the next block.

        Args:
            seqlens: lengths of sequences that are packed into one (see `attention`).
            ids: of the tokens (B, V) whose outputs are wanted, attending to all; None for all.
            spread: where many tokens are equal: ``x`` has the distinct ones, which are projected once.
        """
        if self.fuses and self._can_fuse(x):
            return self._fused(x, seqlens, ids, spread)
        keep = None if self.keep is None or not self.training else self.keep.to(x.dtype)
        attended = self.attn(self.norm1(x), seqlens, ids, spread)
        x = x if spread is None else spread(x)
        x = (x if ids is None else gather_tokens(x, ids)) + _kept(attended, keep)
        return x + _kept(self.mlp(self.norm2(x)), keep)

    def _can_fuse(self, x: Tensor) -> bool:
        half = x.dtype == self.norm1.weight.dtype and x.dtype in (torch.float16, torch.bfloat16)
        trains = self.training and self.keep is None and torch.is_grad_enabled() and not is_exporting()
        return half and trains and not torch.is_autocast_enabled(x.device.type)

    def _fused(self, x: Tensor, seqlens: SeqLens | None, ids: Tensor | None, spread: Spread | None) -> Tensor:
        x, normed = keep_and_norm(x, self.norm1)
        attended = self.attn.fused(normed, seqlens, ids, spread)
        x = x if spread is None else spread(x)
        x = x if ids is None else gather_tokens(x, ids)
        x, normed = add_norm(x, attended, self.attn.proj.bias, self.norm2)
        return x + self.mlp.fused(normed)

    def flops(self, tokens: int) -> tuple[int, int]:
        """Operations of the linear layers and of attention, on one sequence."""
        width, hidden = self.mlp.fc1.in_features, self.mlp.fc1.out_features
        return 2 * tokens * (4 * width**2 + 2 * width * hidden), 4 * tokens**2 * width


def set_block_kernels(model: nn.Module, device: torch.device) -> None:
    """Let the transformer blocks of a model run Triton's kernels in training where a device can."""
    for unit in units(model):
        if isinstance(unit, Block):
            unit.fuses = kernels_problem(device) is None


def _kept(residual: Tensor, keep: Tensor | None) -> Tensor:
    return residual if keep is None else keep * residual


class VisionTransformer(nn.Module):
    """Patch projection, positions, blocks, final norm: ``vit_core`` of a published Spec. ViT, all of a plain ViT."""

    no_weight_decay = ("cls_token", "pos_embed")
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
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))
        self.patch_embed = PatchEmbed(features, width, patch_size)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_hidden, backend) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    @property
    def block_list(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    def fix_positions(self) -> None:
        """Replace the learned positions by the fixed sine-cosine table, as MAE pretrains.

        The table becomes a buffer of the same name: ZeRO keeps no full copy of frozen parameters.
        """
        width = self.pos_embed.shape[-1]
        del self.pos_embed
        self.register_buffer("pos_embed", sincos_positions(width, self.grid))

    def forward(
        self, batches: list[Tensor], grids: list[Grid], ids: Tensor | None = None, blocks: Collection[int] = ()
    ) -> list[Tensor]:
        """Compute the tokens (B, 1 + V, D) of each batch, class token first, final norm applied.

        Args:
            batches: patches of pixel features (B, V, p*p, features), a batch for each image size.
            grids: of the images of each batch; positions are interpolated to it.
            ids: grid ids (B, V) of the patches of a single batch; None means the whole grid in order.
            blocks: numbers of blocks whose outputs for a single batch are returned instead: ascending, each once,
                without the final norm.
        """
        embedded = [self._embed(patches, grid, ids) for patches, grid in zip(batches, grids, strict=True)]
        if blocks:
            return self._block_outputs(embedded[0], blocks)
        if len(embedded) == 1:
            return [self.norm(self._blocks(embedded[0], None))]
        seqlens = [(tokens.shape[0], tokens.shape[1]) for tokens in embedded]
        packed = torch.cat([tokens.flatten(0, 1) for tokens in embedded])[None]  # one launch for all image sizes
        x = self.norm(self._blocks(packed, seqlens))
        parts = x[0].split([count * length for count, length in seqlens])
        return [part.view(count, length, -1) for part, (count, length) in zip(parts, seqlens, strict=True)]

    def _blocks(self, x: Tensor, seqlens: SeqLens | None) -> Tensor:
        for block in self.block_list:
            x = block.run(x, seqlens)
        return x

    def _block_outputs(self, x: Tensor, numbers: Collection[int]) -> list[Tensor]:
        outputs = []
        for number, block in enumerate(self.block_list[: max(numbers) + 1]):
            x = block.run(x, None)
            if number in numbers:
                outputs.append(x)
        return outputs

    def _embed(self, patches: Tensor, grid: Grid, ids: Tensor | None) -> Tensor:
        batch = patches.shape[0]
        positions = resize_positions(self.pos_embed, grid)
        cls = (self.cls_token + positions[:, :1]).expand(batch, -1, -1)
        patch_positions = positions[:, 1:]
        if ids is not None:
            patch_positions = gather_tokens(patch_positions.expand(batch, -1, -1), ids)
        tokens = self.patch_embed(patches) + patch_positions
        return torch.cat([cls, tokens], 1).to(self.cls_token.dtype)  # the residual stream is fp32 under autocast

    def core_flops(self, patches: int) -> Parts:
        """Operations of a forward on one image."""
        linear, attended = self.block_list[0].flops(1 + patches)
        depth, embedding = len(self.blocks), self.patch_embed.proj.weight.numel()
        return {"patch_embed": 2 * patches * embedding, "blocks": depth * linear, "attention": depth * attended}

    def core_recomputed_flops(self, patches: int) -> int:
        """Operations that activation checkpointing of all blocks repeats: all but each block's last product."""
        parts, last = self.core_flops(patches), self.block_list[0].mlp.fc2
        last_products = len(self.blocks) * 2 * (1 + patches) * last.in_features * last.out_features
        return parts["blocks"] + parts["attention"] - last_products

"""The loss of masked autoencoding (arXiv 2111.06377): squared errors of masked patches, a few samples at a time.

Predictions and targets are as large as the tiles themselves in fp32, and torch's autograd saves several of them. Here
only the gradient is saved. `squared_errors` computes targets for a part of the batch at a time; `fused_errors` is a
single kernel, which never writes them.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.models.compilation import compilable
from pretrain.models.normalize import Normalizer

VALUES = {"cpu": 4_000_000, "cuda": 250_000_000}
"""Predicted values at a time, at least those of one sample."""


def masked_targets(
    patches: Tensor, norm_pix: bool, counted: Tensor | None = None, wanted: Tensor | None = None
) -> Tensor:
    """Map patches (B, M, p*p, C) to the targets of the decoder, (B, M, p*p*C).

    Args:
        counted: (B, M, p*p), 1 where a pixel counts: mean and variance of a patch are theirs; None for all.
        wanted: (B, C), 1 where a band of a sample is a target, likewise, and 0 where the target is 0; None for all.
    """
    of_bands = 1.0 if wanted is None else wanted[:, None, None, :]
    patches = patches * of_bands if wanted is not None else patches
    if not norm_pix:
        return patches.flatten(2)
    weights = 1.0 if counted is None else counted
    sums, number = patches.sum(-1) * weights, _number(patches, counted)
    if wanted is not None:
        number = number * (wanted.sum(1) / patches.shape[-1])[:, None]
    centered = patches - (sums.sum(-1) / number.clamp(min=1))[..., None, None]
    centered = centered * of_bands if wanted is not None else centered
    squares = square_sums(centered) * weights
    variance = squares.sum(-1) / (number - 1).clamp(min=1)
    return centered.div_((variance + 1e-6).sqrt()[..., None, None]).flatten(2)


def _number(patches: Tensor, counted: Tensor | None) -> Tensor:
    """Return the number of values of each patch that count, (B, M) or a scalar."""
    if counted is None:
        return patches.new_full((), patches[0, 0].numel())
    return counted.sum(-1) * patches.shape[-1]


def square_sums(x: Tensor) -> Tensor:
    """Sum the squares of the last dimension; torch has a fast path for norms, and none for variances on a CPU."""
    return torch.linalg.vector_norm(x, dim=-1).square()


def num_counted(counted: Tensor, terms: Tensor | None) -> Tensor:
    """Return the number of pixels that a sample's loss is divided by: its own, (B,), unless ``terms`` says it."""
    return counted.sum((1, 2)).clamp(min=1) if terms is None else terms


def squared_errors(prediction: Tensor, targets: Callable[[slice], Tensor], weight: Tensor) -> Tensor:
    """Compute each sample's weighted sum over pixels of the mean squared error over bands, float32 (B,).

    Args:
        prediction: (B, M, p*p*C).
        targets: from a slice of the samples to their targets, (b, M, p*p*C).
        weight: of pixels, (B, M, p*p) or a shape that broadcasts to it.
    """
    losses, gradient = _errors(prediction.detach(), targets, weight, prediction.requires_grad)
    return _Errors.apply(prediction, losses, gradient)


def fused_errors(
    prediction: Tensor,
    patches: Tensor,
    ids: Tensor,
    counted: Tensor | None,
    divisor: Tensor | None,
    normalize: Normalizer | None,
    norm_pix: bool,
    sources: Tensor | None = None,
    wanted: Tensor | None = None,
) -> Tensor:
    """Compute `squared_errors` with `masked_targets` by a Triton kernel (see pretrain/kernels/patch_loss.py).

    Args:
        prediction: (B, M, p*p*C).
        patches: of whole images, (B, T, p*p, C), int16 or normalized.
        ids: of the masked patches, (B, M).
        counted: (B, M, p*p), 1 where a pixel counts; None for all.
        divisor: number of pixels that a sample's errors are divided by, (B,) or a scalar; None for all of them.
        normalize: for int16 patches.
        sources: of each sample, int64 (B,), where ``normalize`` has tables of several.
        wanted: (B, C), 1 where a band of a sample is a target: its loss is a mean over these; None for all.
    """
    from pretrain.kernels.patch_loss import patch_loss  # imports Triton

    bands, pixels = patches.shape[3], ids.shape[1] * patches.shape[2]
    num_wanted = torch.full((len(ids),), bands, device=ids.device) if wanted is None else wanted.sum(1).clamp(min=1)
    scale = 1 / (num_wanted * (pixels if divisor is None else divisor))
    mu, sigma, clip = (scale, scale, math.inf) if normalize is None else normalize.constants(sources)
    losses, gradient = patch_loss(prediction.detach(), patches, ids, counted, wanted, scale, mu, sigma, clip, norm_pix)
    return _Errors.apply(prediction, losses.sum(1), gradient)


@compilable
def _weighed(prediction: Tensor, target: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Return losses (b,) and their gradient (b, M, p*p*C), given the weight of each band's error, (b, M, p*p, 1)."""
    error = (prediction.float() - target).unflatten(2, (share.shape[2], -1))
    losses = (square_sums(error)[..., None] * share).flatten(1).sum(1)
    return losses, error.mul_(2 * share).flatten(2)


def _errors(
    prediction: Tensor, targets: Callable[[slice], Tensor], weight: Tensor, needs_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    batch, patches, values = prediction.shape
    pixels = weight.shape[-1]
    weight = weight.expand(batch, patches, pixels)[..., None]
    losses = prediction.new_empty(batch, dtype=torch.float32)
    gradient = torch.empty_like(prediction) if needs_gradient else None
    step = max(1, VALUES.get(prediction.device.type, VALUES["cuda"]) // (patches * values))
    for begin in range(0, batch, step):
        part = slice(begin, begin + step)
        losses[part], slope = _weighed(prediction[part], targets(part), weight[part] / (values // pixels))
        if gradient is not None:
            gradient[part] = slope
    return losses, gradient


class _Errors(torch.autograd.Function):
    """Losses (B,) whose gradient for the prediction is known already."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, losses: Tensor, gradient: Tensor | None) -> Tensor:
        ctx.gradient = gradient
        return losses.clone()  # an output that is an input would be a view

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_losses: Tensor) -> Any:
        gradient, ctx.gradient = ctx.gradient, None  # in place, to save memory: there is one backward
        return gradient.mul_(d_losses[:, None, None]), None, None

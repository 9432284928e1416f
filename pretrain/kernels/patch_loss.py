"""The loss of masked patches and its gradient in one pass: from integers and predictions to errors.

A program computes one masked patch: its normalized target, the weighed squared errors, and their gradient. Nothing but
the prediction's gradient is written; the patch is read from memory once, and twice more from cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pretrain.kernels.launching import launch, operator
from shards.sensors.sensor import NODATA

BLOCK = 4096
MISSING = tl.constexpr(NODATA)


def launch_patch_loss(
    prediction: Tensor,
    patches: Tensor,
    ids: Tensor,
    counted: Tensor | None,
    wanted: Tensor | None,
    scale: Tensor,
    mu: Tensor,
    sigma: Tensor,
    clip: float,
    norm_pix: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the loss of each masked patch, float32 (B, M), and the gradient of their sum, like the prediction.

    Args:
        prediction: (B, M, p*p*C).
        patches: of whole images, (B, T, p*p, C), int16 or normalized.
        ids: of the masked patches, int64 (B, M).
        counted: float32 (B, M, p*p), 1 where a pixel counts; None for all.
        wanted: float32 (B, C), 1 where a band of a sample is a target; None for all.
        scale: float32 (B,), the factor of each squared error.
        mu, sigma: float32 (C,), or of each sample (B, C), for int16 patches.
        clip: limit of normalized values.
        norm_pix: normalize the target by the mean and unbiased variance of the patch's counted pixels and bands.
    """
    batch, masked, values = prediction.shape
    prediction, patches, ids = prediction.contiguous(), patches.contiguous(), ids.contiguous()
    losses, gradient = _outputs(prediction)
    launch(
        _patch_loss,
        (batch * masked,),
        *(prediction, patches, ids, scale if counted is None else counted.contiguous()),
        *(scale if wanted is None else wanted.contiguous(), scale, mu.contiguous(), sigma.contiguous()),
        *(losses, gradient, masked, patches.shape[1], clip),
        num_warps=8,
        VALUES=values,
        BANDS=patches.shape[3],
        BLOCK=min(BLOCK, triton.next_power_of_2(values)),
        COUNTED=counted is not None,
        WANTED=wanted is not None,
        BY_SAMPLE=mu.dim() == 2,
        INTEGERS=patches.dtype == torch.int16,
        NORM_PIX=norm_pix,
    )
    return losses, gradient


def _outputs(prediction: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    """Return losses and gradient without contents."""
    losses = prediction.new_empty(prediction.shape[:2], dtype=torch.float32)
    return losses, torch.empty_like(prediction, memory_format=torch.contiguous_format)


patch_loss = operator("patch_loss")(launch_patch_loss)
patch_loss.register_fake(_outputs)


@triton.jit
def _values(
    source,
    mu,
    sigma,
    counted,
    wanted,
    place,
    clip,
    VALUES,
    BANDS,
    COUNTED: tl.constexpr,
    WANTED: tl.constexpr,
    INTEGERS: tl.constexpr,
):
    """Load values of a patch, normalized, and their weights, 0 or 1."""
    inside = place < VALUES
    raw = tl.load(source + place, mask=inside, other=0)
    value = raw.to(tl.float32)
    if INTEGERS:
        center = tl.load(mu + place % BANDS, mask=inside, other=0.0)
        value = (value - center) / tl.load(sigma + place % BANDS, mask=inside, other=1.0)
        value = tl.minimum(tl.maximum(tl.where(raw == MISSING, 0.0, value), -clip), clip)
    if COUNTED:
        weight = tl.load(counted + place // BANDS, mask=inside, other=0.0)
    else:
        weight = inside.to(tl.float32)
    if WANTED:
        weight *= tl.load(wanted + place % BANDS, mask=inside, other=0.0)
    return value, weight


@triton.jit
def _patch_loss(
    prediction,
    patches,
    ids,
    counted,
    wanted,
    scale,
    mu,
    sigma,
    losses,
    gradient,
    masked,
    tokens,
    clip,
    VALUES: tl.constexpr,
    BANDS: tl.constexpr,
    BLOCK: tl.constexpr,
    COUNTED: tl.constexpr,
    WANTED: tl.constexpr,
    BY_SAMPLE: tl.constexpr,
    INTEGERS: tl.constexpr,
    NORM_PIX: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # a masked patch of a sample
    sample = row // masked
    source = patches + (sample * tokens + tl.load(ids + row)) * VALUES
    counted += row * (VALUES // BANDS)
    wanted += sample * BANDS
    if BY_SAMPLE:
        mu, sigma = mu + sample * BANDS, sigma + sample * BANDS
    places = tl.arange(0, BLOCK)
    mean, inverse = 0.0, 1.0
    if NORM_PIX:
        total, number = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
        for begin in range(0, VALUES, BLOCK):
            place = begin + places
            value, weight = _values(
                source, mu, sigma, counted, wanted, place, clip, VALUES, BANDS, COUNTED, WANTED, INTEGERS
            )
            total += value * weight
            number += weight
        count = tl.sum(number)
        mean = tl.sum(total) / tl.maximum(count, 1.0)
        squares = tl.zeros((BLOCK,), tl.float32)
        for begin in range(0, VALUES, BLOCK):
            place = begin + places
            value, weight = _values(
                source, mu, sigma, counted, wanted, place, clip, VALUES, BANDS, COUNTED, WANTED, INTEGERS
            )
            squares += (value - mean) * (value - mean) * weight
        inverse = 1.0 / tl.sqrt(tl.sum(squares) / tl.maximum(count - 1.0, 1.0) + 1e-6)
    factor = tl.load(scale + sample)
    loss = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, VALUES, BLOCK):
        place = begin + places
        value, weight = _values(
            source, mu, sigma, counted, wanted, place, clip, VALUES, BANDS, COUNTED, WANTED, INTEGERS
        )
        predicted = tl.load(prediction + row * VALUES + place, mask=place < VALUES, other=0.0).to(tl.float32)
        error = (predicted - (value - mean) * inverse) * weight
        loss += error * error
        tl.store(gradient + row * VALUES + place, 2.0 * factor * error, mask=place < VALUES)
    tl.store(losses + row, tl.sum(loss) * factor)

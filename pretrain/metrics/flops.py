"""Floating-point operations of a training step by formula, for MFU: what the mathematics needs, not what was run.

A multiply-add counts as 2. Matrix products, convolutions and attention are counted; norms, activations and
losses are not, as usual (PaLM, arXiv 2204.02311, appendix B). Work done again by activation checkpointing is no
use and doesn't count. Tests hold the formulas against torch's flop counter.
"""

import torch

from pretrain.config import PretrainConfig
from pretrain.config.model import ModelConfig
from pretrain.config.objective import DinoConfig, MaeConfig, MocoConfig
from pretrain.models.adapter import CHANNELS
from pretrain.models.adapter import LAYERS as ADAPTER_LAYERS
from pretrain.models.published import PLAIN_VITS, SPEC_VITS, ViTSize
from pretrain.models.resnet import FEATURES
from pretrain.models.resnet import LAYERS as RESNET_LAYERS

Parts = dict[str, int]
"""Operations by part of the network."""

PEAKS = {
    "A100": (312e12, 19.5e12),
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "H200": (989e12, 67e12),
    "H200 NVL": (835e12, 60e12),
    "GH200": (989e12, 67e12),
    "B200": (2250e12, 80e12),
    "L40S": (362e12, 91.6e12),
    "A40": (149.7e12, 37.4e12),
    "A6000": (154.8e12, 38.7e12),
}
"""Dense peaks of devices by words of their name, the longest that fits: bf16 tensor cores, fp32 (vendors' sheets)."""


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense peak of a device (``torch.cuda.get_device_name``) at a run's precision, None where it isn't known."""
    words = set(device_name.replace("-", " ").split())
    fitting = [name for name in PEAKS if words >= set(name.split())]
    if not fitting or "MIG" in words:  # a slice of a device has a share of its peak that its name doesn't tell
        return None
    return PEAKS[max(fitting, key=len)][precision == "fp32"]


def device_peak(precision: str) -> float | None:
    """`peak_flops` of this process's device; None on a CPU."""
    return peak_flops(torch.cuda.get_device_name(), precision) if torch.cuda.is_available() else None


def sample_flops(config: PretrainConfig, bands: int) -> Parts:
    """Operations of one sample's share of a training step."""
    model, objective = config.model, config.objective
    if isinstance(objective, MaeConfig):
        grid = model.image_size // model.patch_size
        visible = int(grid**2 * (1 - objective.mask_ratio))
        decoder = _times(3, mae_decoder_flops(model, objective, bands, config.train.micro_batch))
        return encoder_training_flops(model, bands, visible=visible) | decoder
    width = feature_dim(model.name)
    view, trained = encoder_flops(model, bands), encoder_training_flops(model, bands)
    if isinstance(objective, MocoConfig):
        head = 2 * (width * objective.hidden + objective.hidden * objective.dim)
        logits = 2 * objective.dim * objective.queue
        return _add(trained, view) | {"head": 4 * head + 2 * logits}  # the queue has no gradient
    assert isinstance(objective, DinoConfig)
    local, count = objective.local_crops, objective.local_crops.count
    small = encoder_training_flops(model, bands, local.size)
    head = (3 * (2 + count) + 2) * dino_head_flops(width, objective)
    return _add(_add(_times(2, trained), _times(count, small)), _times(2, view)) | {"head": head}


def recomputed_flops(config: PretrainConfig, bands: int) -> int:
    """Operations of a sample that the backward pass does a second time: what HFU counts and MFU doesn't.

    The first layer of the stem always (pretrain/models/spectral_features.py); with activation checkpointing blocks,
    less the last product of each, which nothing needs again, and the whole stem.
    """
    model, objective = config.model, config.objective
    if isinstance(objective, MaeConfig):
        visible = int((model.image_size // model.patch_size) ** 2 * (1 - objective.mask_ratio))
        views = [_recomputed(config, bands, model.image_size, visible)]
        if config.engine.activation_checkpointing == "blocks":
            decoder = mae_decoder_flops(model, objective, bands, config.train.micro_batch)
            views.append(_recomputed_decoder(model, objective, decoder["decoder"], bands))
        return sum(views)
    view = _recomputed(config, bands, model.image_size, None)
    if isinstance(objective, MocoConfig):
        return view
    assert isinstance(objective, DinoConfig)
    local = objective.local_crops
    return 2 * view + (local.count * _recomputed(config, bands, local.size, None) if local.count else 0)


def _recomputed(config: PretrainConfig, bands: int, size: int, visible: int | None) -> int:
    """By an encoder's backward pass, on one image."""
    model = config.model
    forward = encoder_flops(model, bands, size, visible)
    pixels = size**2 if visible is None else visible * model.patch_size**2
    first = pixels * adapter_layers_flops(bands)[0] if model.name.startswith("spec_") else 0
    if config.engine.activation_checkpointing != "blocks":
        return first
    stem = forward["stem"] + first if first else 0
    sizes = SPEC_VITS.get(model.name) or PLAIN_VITS.get(model.name)
    if sizes is None:
        return stem + forward["layers"]
    tokens = 1 + pixels // model.patch_size**2
    last_products = sizes.depth * 2 * tokens * sizes.width * sizes.mlp_hidden
    return stem + forward["blocks"] + forward["attention"] - last_products


def _recomputed_decoder(model: ModelConfig, mae: MaeConfig, forward: int, bands: int) -> int:
    width, depth = mae.decoder.width, mae.decoder.depth
    patches = (model.image_size // model.patch_size) ** 2
    visible = int(patches * (1 - mae.mask_ratio))
    masked = patches - visible
    outside = 2 * (1 + visible) * feature_dim(model.name) * width + 2 * masked * width * model.patch_size**2 * bands
    return forward - outside - 8 * width**2 * (masked + (depth - 1) * (1 + patches))


def encoder_flops(model: ModelConfig, bands: int, image_size: int | None = None, visible: int | None = None) -> Parts:
    """One forward of an encoder on one image.

    Args:
        image_size: in pixels; the model's by default.
        visible: patches that go through it (MAE); all by default.
    """
    size = image_size or model.image_size
    sizes = SPEC_VITS.get(model.name) or PLAIN_VITS.get(model.name)
    if sizes is None:
        return _resnet_flops(model.name, bands, size)
    patches = (size // model.patch_size) ** 2 if visible is None else visible
    pixels = patches * model.patch_size**2
    inputs = CHANNELS if model.name in SPEC_VITS else bands
    stem = {"stem": pixels * adapter_flops(bands)} if model.name in SPEC_VITS else {}
    return stem | {"patch_embed": 2 * pixels * inputs * sizes.width} | transformer_flops(sizes, 1 + patches)


def encoder_training_flops(
    model: ModelConfig, bands: int, image_size: int | None = None, visible: int | None = None
) -> Parts:
    """Forward and backward of an encoder on one image: three forwards, less the gradient of the image itself."""
    forward = encoder_flops(model, bands, image_size, visible)
    size = image_size or model.image_size
    first = "stem" if "stem" in forward else "patch_embed"
    unused = forward[first]
    if model.name.startswith("spec_"):
        pixels = size**2 if visible is None else visible * model.patch_size**2
        unused = pixels * adapter_layers_flops(bands)[0]
    training = _times(3, forward)
    return training | {first: training[first] - unused}


def transformer_flops(size: ViTSize, tokens: int) -> Parts:
    """Linear layers and attention of all blocks, on one sequence."""
    linear = 2 * tokens * (4 * size.width**2 + 2 * size.width * size.mlp_hidden)
    return {"blocks": size.depth * linear, "attention": size.depth * 4 * tokens**2 * size.width}


def mae_decoder_flops(model: ModelConfig, mae: MaeConfig, bands: int, micro_batch: int) -> Parts:
    """Embedding of visible tokens, blocks on all of them, prediction of the masked ones.

    The first block projects mask tokens once for the whole micro batch, the last makes outputs of masked tokens alone.
    """
    width, depth = mae.decoder.width, mae.decoder.depth
    patches = (model.image_size // model.patch_size) ** 2
    visible = int(patches * (1 - mae.mask_ratio))
    masked, tokens, distinct = patches - visible, 1 + patches, 1 + visible + patches / micro_batch
    embed = 2 * (1 + visible) * feature_dim(model.name) * width
    predict = 2 * masked * width * model.patch_size**2 * bands
    projected = 6 * width**2 * (distinct + (depth - 1) * tokens)
    finished = (2 * width**2 * 9 + 4 * tokens * width) * (masked + (depth - 1) * tokens)
    return {"decoder": embed + predict + round(projected) + finished}


def dino_head_flops(width: int, dino: DinoConfig) -> int:
    """One forward of DINO's head on one image."""
    layers = width * dino.hidden + dino.hidden**2 + dino.hidden * dino.bottleneck
    return 2 * (layers + dino.bottleneck * dino.prototypes)


def adapter_flops(bands: int) -> int:
    """The spectral adapter on one pixel."""
    return sum(adapter_layers_flops(bands))


def adapter_layers_flops(bands: int) -> list[int]:
    """Each convolution of the spectral adapter on one pixel."""
    layers, length = [], bands
    for inputs, outputs, kernel, stride in ADAPTER_LAYERS:
        length = (length + 2 - kernel) // stride + 1
        layers.append(2 * length * outputs * inputs * kernel)
    return layers


def feature_dim(name: str) -> int:
    """Features that an encoder gives."""
    size = SPEC_VITS.get(name) or PLAIN_VITS.get(name)
    return FEATURES if size is None else size.width


def _resnet_flops(name: str, bands: int, size: int) -> Parts:
    spectral = name == "spec_resnet50"
    if spectral:
        stem, side, inputs = size**2 * adapter_flops(bands), size, CHANNELS
    else:
        side = -(-size // 2)
        stem, inputs = 2 * side**2 * 49 * bands * 64, 64
        side = -(-side // 2)
    layers = 0
    for number, (outputs, width, blocks) in enumerate(RESNET_LAYERS):
        for block in range(blocks):
            strided = block == 0 and (number > 0 or spectral)
            mid = outputs if spectral and number == 0 and block == 0 else width
            after = -(-side // 2) if strided else side
            layers += 2 * (side**2 * inputs * mid + after**2 * (9 * mid**2 + mid * outputs))
            layers += 2 * after**2 * inputs * outputs if block == 0 else 0  # the shortcut's convolution
            side, inputs = after, outputs
    return {"stem": stem, "layers": layers}


def _times(factor: int, parts: Parts) -> Parts:
    return {name: factor * value for name, value in parts.items()}


def _add(one: Parts, other: Parts) -> Parts:
    return {name: one.get(name, 0) + other.get(name, 0) for name in one | other}

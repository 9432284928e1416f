"""Checkpoints in the formats of the published code, built from an encoder: prefixes, copies and extra entries."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Weights = dict[str, Tensor]


def prefixed(prefix: str, weights: Weights) -> Weights:
    """Return weights with a prefix added to their names."""
    return {prefix + name: tensor for name, tensor in weights.items()}


def part(prefix: str, weights: Weights) -> Weights:
    """Return the weights whose names start with a prefix, without the prefix."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def with_head(weights: Weights, classes: int = 1000) -> Weights:
    """Add the head that the published registry adds by default."""
    name = "resnet.fc" if any(name.startswith("resnet.") for name in weights) else "vit_core.head"
    width = 2048 if name == "resnet.fc" else weights["vit_core.norm.weight"].numel()
    return weights | {f"{name}.weight": torch.ones(classes, width), f"{name}.bias": torch.zeros(classes)}


def fork_names(weights: Weights, keep: bool = False) -> Weights:
    """Move the adapter into the patch embedding, as the MAE wrapper and the authors' newer code store it.

    Args:
        keep: whether to also keep the projection under its own name.
    """
    adapter = prefixed("vit_core.patch_embed.", {n: t for n, t in weights.items() if n.startswith("spectral_adapter.")})
    projection = part("vit_core.patch_embed.", weights)
    rest = {
        name: tensor
        for name, tensor in weights.items()
        if not name.startswith("spectral_adapter.") and (keep or not name.startswith("vit_core.patch_embed."))
    }
    return rest | adapter | prefixed("vit_core.patch_embed.original_patch_embed.", projection)


def mae(weights: Weights) -> Weights:
    """Return the `state_dict` of an MAE run: the encoder three times, each with the wrapped patch embedding."""
    width = weights["vit_core.norm.weight"].numel()
    adapter = {name: tensor for name, tensor in weights.items() if name.startswith("spectral_adapter.")}
    whole = with_head(fork_names(weights, keep=True))
    trunk = part("vit_core.", whole)
    bare = {name: tensor for name, tensor in trunk.items() if not name.startswith("head.")}
    decoder = {
        "mask_token": torch.zeros(1, 1, 512),
        "decoder_pos_embed": torch.zeros(1, 17, 512),
        **prefixed("decoder_embed.", {"weight": torch.zeros(512, width), "bias": torch.zeros(512)}),
        **{
            f"decoder_blocks.0.{layer}.{leaf}": torch.zeros(2)
            for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
            for leaf in ("weight", "bias")
        },
        **prefixed("decoder_norm.", {"weight": torch.ones(512), "bias": torch.zeros(512)}),
        **prefixed("decoder_pred.", {"weight": torch.zeros(3232, 512), "bias": torch.zeros(3232)}),
    }
    return {
        "encoder.mask_token": torch.zeros(1, 1, width),
        **prefixed("encoder.vit.", bare),
        **prefixed("encoder.vit.vit_core.", trunk),
        **prefixed("encoder.vit.spec_vit.", adapter | whole),
        **prefixed("decoder.", decoder),
    }


def moco(query: Weights, key: Weights) -> Weights:
    """Return the `state_dict` of a MoCo run."""
    layers = {f"layers.{number}.weight": torch.ones(3) for number in (0, 1, 3, 4)}
    return {
        **prefixed("backbone.", query),
        **prefixed("projection_head.", layers),
        **prefixed("backbone_momentum.", key),
        **prefixed("projection_head_momentum.", layers),
    }


def dino(student: Weights, teacher: Weights) -> Weights:
    """Return the `state_dict` of a DINO run."""
    head = {f"layers.{number}.weight": torch.ones(3) for number in (0, 2, 4)}
    head |= {"last_layer.weight_g": torch.ones(8, 1), "last_layer.weight_v": torch.ones(8, 3)}
    return {
        **prefixed("student_backbone.", student),
        **prefixed("student_head.", head),
        **prefixed("teacher_backbone.", teacher),
        **prefixed("teacher_head.", head),
        "criterion.center": torch.zeros(1, 1, 128),
    }


def segmentation(weights: Weights) -> Weights:
    """Return the `state_dict` of a segmentation module, with the head of a ViT or ResNet."""
    is_resnet = any(name.startswith("resnet.") for name in weights)
    prefix, numbers = ("model.classifier.", (0, 1, 3)) if is_resnet else ("model.head.segmentation_conv.", (1, 2, 5))
    return prefixed("model.encoder.", weights) | {f"{prefix}{number}.weight": torch.ones(3) for number in numbers}


def classification(weights: Weights) -> Weights:
    """Return the `state_dict` of the CORINE module."""
    return prefixed("model.", with_head(weights, 19))


def regression(weights: Weights) -> Weights:
    """Return the `state_dict` of the Hyperview module, with an MLP in place of the head."""
    head = "resnet.fc" if any(name.startswith("resnet.") for name in weights) else "vit_core.head"
    return prefixed("model.", weights | {f"{head}.{number}.weight": torch.ones(4) for number in (0, 1, 4, 7)})


def lightning(state_dict: Weights, **beside: object) -> dict[str, object]:
    """Return a complete Lightning training checkpoint."""
    return {
        "epoch": 99,
        "global_step": 162200,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": state_dict,
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [{"last_epoch": 99}],
        **beside,
    }


def our_checkpoint(
    run: Path,
    step: int,
    weights: Weights,
    teacher: Weights | None = None,
    config: dict | None = None,
    heads: Weights | None = None,
) -> Path:
    """Write a checkpoint of this project in two parts, as two ranks save it."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    networks = {"weights": weights} | ({} if teacher is None else {"teacher": teacher})
    for kind, network in networks.items():
        named = list((prefixed("encoder.", network) | (heads or {"decoder.mask_token": torch.ones(2)})).items())
        for rank in range(2):
            save_file(dict(named[rank::2]), folder / f"{kind}-{rank:05d}-of-00002.safetensors")
    positions = weights.get("vit_core.pos_embed", torch.empty(1, 17, 0)).shape[1]
    size = 4 * int((positions - 1) ** 0.5)
    state = {
        "step": step,
        "samples_seen": 16 * step,
        "version": "0.1.0",
        "config": {
            "model": {"name": "spec_vit_tiny", "image_size": size, "patch_size": 4, "bn_group": 8},
            "objective": {"name": "mae" if teacher is None else "dino"},
            "augment": {"clip": None},
            "train": {"steps": step, "global_batch": 16},
            **(config or {}),
        },
        "data": {
            "content_hash": "c" * 64,
            "sensor": "enmap",
            "wavelength_nm": [400.0 + 10 * band for band in range(80)],
            "fwhm_nm": [8.0] * 80,
            "mu": [1000.0] * 80,
            "sigma": [500.0] * 80,
        },
    }
    (folder / "state.json").write_text(json.dumps(state))
    seals = {
        path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.iterdir()
    }
    (folder / "checkpoint.json").write_text(json.dumps({"format": 1, "files": seals}))
    return folder

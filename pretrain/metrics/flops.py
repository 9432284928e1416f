"""FLOPs of a training step for MFU: those that the model requires, not those that are executed.

A multiply-add counts as 2. Matrix products, convolutions and attention are counted; norms, activations, losses and
recomputation by activation checkpointing are not (PaLM, arXiv 2204.02311, appendix B). Objectives and encoders define
their own formulas; tests compare them with torch's counter.
"""

import torch

from pretrain.config import PretrainConfig
from pretrain.metrics.peaks import PEAKS
from pretrain.models.flops import Parts
from pretrain.objectives import outline_module
from pretrain.registries import OBJECTIVES


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return the dense peak of a device (``torch.cuda.get_device_name``) in FLOP/s at a precision, None if unknown."""
    words = set(device_name.replace("-", " ").split())
    fitting = [name for name in PEAKS if words >= set(name.split())]
    if not fitting or "MIG" in words:  # a slice's name doesn't give its share of the peak
        return None
    return PEAKS[max(fitting, key=len)][precision == "fp32"]


def device_peak(precision: str) -> float | None:
    """Return `peak_flops` of this process's device; None on a CPU."""
    return peak_flops(torch.cuda.get_device_name(), precision) if torch.cuda.is_available() else None


def sample_flops(config: PretrainConfig, bands: int) -> Parts:
    """Return the FLOPs of a training step for one sample, by part."""
    return OBJECTIVES[config.objective.name].flops(outline_module(config, bands), config, bands)


def recomputed_flops(config: PretrainConfig, bands: int) -> int:
    """Return the FLOPs of a sample that the backward pass recomputes: HFU counts them, MFU doesn't."""
    return OBJECTIVES[config.objective.name].recomputed_flops(outline_module(config, bands), config, bands)

"""How the spectral adapter is computed, as a run's config says."""

import pytest
import torch
from pydantic import ValidationError

from pretrain.config.engine import EngineConfig
from pretrain.models.adapter import SpectralAdapter
from pretrain.models.registry import build_encoder
from pretrain.models.stem import set_stem_kernel
from shards.errors import ConfigError


def test_all_adapters_of_a_model_are_set():
    model = build_encoder("spec_vit_tiny", 32, attention="math")
    set_stem_kernel(model, "eager", torch.device("cpu"))
    assert [module.kernel for module in model.modules() if isinstance(module, SpectralAdapter)] == ["eager"]


def test_kernels_are_refused_where_they_cant_run():
    with pytest.raises(ConfigError, match=r"engine.stem_kernel triton: Triton's kernels run on GPUs, .* cpu; auto"):
        set_stem_kernel(SpectralAdapter(), "triton", torch.device("cpu"))


def test_kernels_are_refused_in_fp32():
    with pytest.raises(ValidationError, match=r"\.stem_kernel triton needs \.precision autocast or bf16: use auto"):
        EngineConfig(stem_kernel="triton", precision="fp32")

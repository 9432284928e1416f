"""The formulas of FLOPs against torch's own counter, to 2 %."""

import pytest
import torch
from support.masks import masks_of
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from pretrain.config import PretrainConfig
from pretrain.metrics.flops import peak_flops, recomputed_flops, sample_flops
from pretrain.models.encoder import Encoder
from pretrain.models.registry import build_encoder
from pretrain.models.stem import NoStem, Stem
from pretrain.models.unit import set_activation_checkpointing
from pretrain.objectives.dino import DinoHead
from pretrain.objectives.masked_autoencoder import MaskedAutoencoder
from pretrain.objectives.moco import MomentumContrast, ProjectionHead


def _config(**sections: dict) -> PretrainConfig:
    base = {"run": {"dir": "x"}, "data": {"shards": "x"}, "train": {"steps": 1, "global_batch": 64}}
    return PretrainConfig.model_validate(base | sections)


def _count(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "size", "patch", "bands"),
    [
        pytest.param("spec_vit_tiny", 32, 4, 202, marks=pytest.mark.nightly),
        pytest.param("spec_vit_tiny", 32, 8, 150, marks=pytest.mark.nightly),
        pytest.param("spec_vit_base", 32, 4, 235, marks=pytest.mark.nightly),
        pytest.param("spec_vit_huge", 32, 4, 202, marks=pytest.mark.nightly),
        pytest.param("vit_small", 32, 4, 202, marks=pytest.mark.nightly),
        pytest.param("spec_resnet50", 64, 4, 202, marks=pytest.mark.nightly),
        pytest.param("spec_resnet50", 40, 4, 224, marks=pytest.mark.nightly),
        ("resnet50", 64, 4, 202),
    ],
)
def test_encoders_forward_and_backward(name, size, patch, bands):
    with FakeTensorMode():  # shapes alone: the largest fit any machine
        encoder = build_encoder(name, size, patch, attention="math", bands=bands)
        images = torch.empty(2, bands, size, size)
        expected = 2 * sum(encoder.flops(bands, size).values())
        assert _count(lambda: encoder(images)) == pytest.approx(expected, rel=0.02)
        training = 2 * sum(encoder.training_flops(bands, size).values())
        assert _count(lambda: encoder(images).sum().backward()) == pytest.approx(training, rel=0.02)


@pytest.mark.parametrize(
    ("ratio", "share", "depth", "width", "heads"),
    [(0.75, 1.0, 1, 512, 16), (0.9, 1.0, 4, 256, 8), (0.5, 1.0, 2, 64, 2), (0.75, 0.3, 2, 256, 8)],
)
def test_masked_autoencoders_part_by_part(ratio, share, depth, width, heads):
    decoder = {"depth": depth, "width": width, "heads": heads}
    config = _config(
        model={"name": "spec_vit_tiny", "image_size": 32, "bn_group": 2},
        objective={"mask_ratio": ratio, "decode_share": share, "decoder": decoder},
        train={"steps": 1, "global_batch": 2, "micro_batch": 2},
    )
    encoder = build_encoder("spec_vit_tiny", 32, attention="math")
    model = MaskedAutoencoder(encoder, 202, ratio, True, width, depth, heads, "math", decode_share=share)
    images, masks = torch.randn(2, 202, 32, 32), masks_of(torch.rand(2, 64), ratio, share)
    with FlopCounterMode(display=False, depth=4) as counter:
        model(images, masks)
    by_module = {name: sum(counts.values()) / 2 for name, counts in counter.get_flop_counts().items()}
    visible = masks.visible.shape[1]
    parts = encoder.flops(202, 32, visible)
    stem = by_module["MaskedAutoencoder.encoder.spectral_adapter"]
    assert parts["stem"] < stem < 1.03 * parts["stem"]  # its first layer takes the moments of bands, too
    core = parts["patch_embed"] + parts["blocks"] + parts["attention"]
    assert by_module["MaskedAutoencoder.encoder.vit_core"] == pytest.approx(core, rel=0.02)
    decoding = model.decoder.flops(*model.count_patches(), 2)
    assert by_module["MaskedAutoencoder.decoder"] == pytest.approx(decoding, rel=0.02)
    training = _count(lambda: model(images, masks)[0].mean().backward())
    assert 2 * sum(sample_flops(config, 202).values()) == pytest.approx(training, rel=0.02)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_the_backward_pass_does_twice(checkpointing, depth):
    decoder = {"depth": depth, "width": 128, "heads": 4}
    config = _config(
        model={"name": "spec_vit_tiny", "image_size": 32, "bn_group": 4},
        objective={"decoder": decoder, "mask_ratio": 0.75},
        train={"steps": 1, "global_batch": 4, "micro_batch": 4},
        engine={"activation_checkpointing": checkpointing},
    )
    model = MaskedAutoencoder(
        build_encoder("spec_vit_tiny", 32, attention="math"), 202, 0.75, True, 128, depth, 4, "math"
    )
    set_activation_checkpointing(model, "blocks" if checkpointing else "none")
    done = _count(lambda: model(torch.randn(4, 202, 32, 32), masks_of(torch.rand(4, 64), 0.75))[0].mean().backward())
    needed = sum(sample_flops(config, 202).values())
    assert 4 * (needed + recomputed_flops(config, 202)) == pytest.approx(done, rel=0.01)
    assert 4 * needed < done


def test_an_encoder_and_a_stem_without_formulas_are_counted_by_torch():
    encoder = build_encoder("spec_vit_tiny", 32, attention="math")
    own = sum(encoder.flops(202, 32).values())
    assert sum(Encoder.flops(encoder, 202, 32).values()) == pytest.approx(own, rel=0.02)
    stem = encoder.spectral_adapter
    assert Stem.flops(stem, 202) == pytest.approx(stem.flops(202), rel=0.02)
    assert NoStem(202).flops(202) == Stem.flops(NoStem(202), 202) == 0


def test_mocos_step_is_three_queries_and_a_key():
    moco = {"name": "moco", "queue": 1024, "hidden": 512, "dim": 64}
    config = _config(model={"name": "spec_vit_tiny", "image_size": 32}, objective=moco)
    encoder = build_encoder("spec_vit_tiny", 32, attention="math")
    model = MomentumContrast(encoder, ProjectionHead(192, 512, 64, False, None), 64, 1024, 0.2, 0)
    images, keys = torch.randn(1, 202, 32, 32), torch.randn(1, 64)
    step = _count(lambda: model(images, keys)[0].mean().backward()) + _count(lambda: model.project(images))
    assert sum(sample_flops(config, 202).values()) == pytest.approx(step, rel=0.02)


def test_dinos_step_counts_all_crops():
    dino = {"name": "dino", "hidden": 256, "bottleneck": 64, "prototypes": 512, "local_crops": {"count": 3, "size": 16}}
    config = _config(model={"name": "spec_vit_tiny", "image_size": 32}, objective=dino)
    encoder, head = build_encoder("spec_vit_tiny", 32, attention="math"), DinoHead(192, 256, 64, 512)
    large, small = torch.randn(2, 202, 32, 32), torch.randn(3, 202, 16, 16)
    student = _count(lambda: head(torch.cat([encoder(large), encoder(small)])).sum().backward())
    teacher = _count(lambda: head(encoder(large)))
    assert sum(sample_flops(config, 202).values()) == pytest.approx(student + teacher, rel=0.02)


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA H100 80GB HBM3", "autocast", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12),
        ("NVIDIA GH200 480GB", "bf16", 989e12),
        ("NVIDIA H200 NVL", "bf16", 835e12),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", "bf16", None),
        ("NVIDIA RTX A4000", "bf16", None),
        ("NVIDIA GB200", "bf16", None),
    ],
)
def test_peaks_are_found_by_name(device, precision, peak):
    assert peak_flops(device, precision) == peak

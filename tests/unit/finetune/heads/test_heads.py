"""Heads: published names, sizes for each patch size, groups, options."""

import numpy as np
import pytest
import torch
from support.small_encoder import BANDS
from support.task_models import TASKS
from torch import nn

from finetune.heads.build import Standardized, build_head, fit_to_labels
from finetune.heads.dense import ConvHead, FcnHead
from finetune.heads.pooled import MlpHead
from finetune.heads.registry import HEADS, heads_for
from finetune.tasks import get_task
from finetune.tasks.kinds.kind import LabelSummary, TaskKind, kind_of
from pretrain.models.batchnorm import grouped_batch_norms
from pretrain.models.initialize import initialize
from pretrain.models.layer_maps import LayerShape
from pretrain.models.registry import build_encoder

KINDS: dict[str, TaskKind] = {kind: kind_of(get_task(name)) for kind, name in TASKS.items()}


def _head(patch_size: int = 4, bn_group: int | None = None) -> ConvHead:
    head = ConvHead(24, 5, patch_size, bn_group)
    initialize(head, "head", 1)
    return head


def _features(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 24, 3, 3, generator=torch.Generator().manual_seed(0))


def _published(head: ConvHead) -> nn.Sequential:
    """The published Sequential for patches of 4 px, from torch's own layers, with this head's weights."""
    double = {"scale_factor": 2, "mode": "bilinear", "align_corners": False}
    layers = [nn.Upsample(**double), nn.Conv2d(24, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU()]
    published = nn.Sequential(*layers, nn.Upsample(**double), nn.Conv2d(128, 5, 3, padding=1))
    published.load_state_dict({k.removeprefix("segmentation_conv."): v for k, v in head.state_dict().items()})
    return published


def test_names_and_shapes_for_patches_of_four_pixels_are_the_published_ones():
    shapes = {name: tuple(tensor.shape) for name, tensor in _head().state_dict().items()}
    assert shapes == {
        "segmentation_conv.1.weight": (128, 24, 3, 3),
        "segmentation_conv.1.bias": (128,),
        "segmentation_conv.2.weight": (128,),
        "segmentation_conv.2.bias": (128,),
        "segmentation_conv.2.running_mean": (128,),
        "segmentation_conv.2.running_var": (128,),
        "segmentation_conv.2.num_batches_tracked": (),
        "segmentation_conv.5.weight": (5, 128, 3, 3),
        "segmentation_conv.5.bias": (5,),
    }


@pytest.mark.parametrize("training", [True, False])
def test_scores_are_those_of_the_published_layers(training):
    head = _head().train(training)
    published = _published(head).train(training)
    torch.testing.assert_close(head(_features()), published(_features()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("patch_size", "last"), [(2, "1"), (4, "5"), (8, "9"), (16, "13")])
def test_scores_have_the_size_of_the_image(patch_size, last):
    head = _head(patch_size)
    assert head(_features()).shape == (4, 5, 3 * patch_size, 3 * patch_size)
    assert f"segmentation_conv.{last}.bias" in head.state_dict()
    assert len(grouped_batch_norms(head)) == patch_size.bit_length() - 2


@pytest.mark.parametrize("patch_size", [0, 1, 3, 6, 12])
def test_a_patch_size_that_is_no_power_of_two_is_refused(patch_size):
    with pytest.raises(ValueError, match=f"feature stride of 2, 4, 8, ..., not {patch_size}"):
        ConvHead(24, 5, patch_size, None)


def test_groups_of_samples_are_normalized_apart():
    head, features = _head(bn_group=2), _features()
    parts = [head(part) for part in features.split(2)]
    assert torch.equal(head(features), torch.cat(parts))
    assert not torch.allclose(_head()(features), torch.cat(parts), atol=1e-3)


def test_the_fcn_head_is_the_published_one():
    head = build_head("fcn", KINDS["segmentation"], 24, 1)
    assert isinstance(head, FcnHead)
    initialize(head, "head", 1)
    published = nn.Sequential(
        nn.Conv2d(24, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU(), nn.Conv2d(256, 6, 1)
    )
    published.load_state_dict({key.removeprefix("classifier."): value for key, value in head.state_dict().items()})
    for training in (False, True):  # training moves torch's running statistics at once
        found, expected = head.train(training)(_features()), published.train(training)(_features())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_mlp_head_is_the_published_one():
    head = build_head("mlp", KINDS["regression"], 24, 4)
    assert isinstance(head, MlpHead)
    initialize(head, "head", 1)
    drop = nn.Dropout(0.2)
    layers = [nn.BatchNorm1d(24), nn.Linear(24, 2048), nn.ReLU(), drop, nn.Linear(2048, 1024), nn.ReLU(), drop]
    published = nn.Sequential(*layers, nn.Linear(1024, 4))
    published.load_state_dict(head.state_dict())
    vectors = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head.eval()(vectors), published.eval()(vectors), rtol=1e-4, atol=1e-5)
    head.train()
    assert not torch.equal(head(vectors), head(vectors))  # dropout


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_head_of_a_kind_gives_its_outputs(kind):
    names = heads_for(kind.features)
    assert set(kind.published_heads) <= set(names)
    for name in names:
        head = build_head(name, kind, 24, 4, layers=(LayerShape(8, 4), LayerShape(16, 4)))
        features = _features() if kind.is_dense else torch.randn(4, 24)
        assert head(features).shape == ((4, kind.outputs, 12, 12) if kind.is_dense else (4, kind.outputs))


def test_a_heads_options_are_in_its_label_and_come_back_from_what_is_saved():
    config = HEADS.validate({"name": "mlp", "hidden": [64], "dropout": 0.5})
    assert config.label == "mlp hidden=[64] dropout=0.5"
    assert HEADS.validate(config.to_plain()) == config
    assert HEADS.validate("mlp").to_plain() == "mlp"
    head = build_head(config, KINDS["regression"], 24, 4)
    assert [tuple(one.shape) for one in head.parameters() if one.dim() == 2] == [(64, 24), (4, 64)]


def test_a_head_of_standardized_targets_speaks_in_their_unit():
    kind = KINDS["pixel_regression"]
    head = build_head("linear", kind, 24, 4)
    assert isinstance(head, Standardized)
    before = head(_features())
    fit_to_labels(head, LabelSummary(mean=np.full(kind.outputs, 250.0), std=np.full(kind.outputs, 80.0)))
    torch.testing.assert_close(head(_features()), 80 * before + 250)
    assert {"mean", "std"} <= head.state_dict().keys()


def test_a_head_of_another_kind_is_refused():
    with pytest.raises(
        ValueError,
        match="head 'mlp' is not a head for segmentation: choose from conv, fcn, linear, fcn_layers, upernet",
    ):
        build_head("mlp", KINDS["segmentation"], 24, 4)


def test_a_head_brings_a_resnets_map_back_to_pixels():
    encoder = build_encoder("spec_resnet50")
    initialize(encoder, "test", 0)
    head = ConvHead(encoder.feature_dim, 5, encoder.stride, None)
    scores = head(encoder.dense_features(torch.randn(2, BANDS, 32, 32)))
    assert scores.shape == (2, 5, 32, 32)
    scores.sum().backward()
    assert all(parameter.grad is not None for parameter in [*encoder.parameters(), *head.parameters()])

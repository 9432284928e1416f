"""The segmentation head: published names, sizes for each patch size, groups, loss."""

import pytest
import torch
from support.small_encoder import BANDS
from torch import nn

from finetune.heads.heads import (
    HEADS,
    PUBLISHED,
    ConvHead,
    FcnHead,
    MlpHead,
    build_head,
    count_labels,
    predict,
    summed_loss,
)
from pretrain.models.batchnorm import grouped_batch_norms
from pretrain.models.initialize import initialize
from pretrain.models.registry import build_encoder


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


def test_loss_is_summed_over_the_pixels_that_count():
    scores = torch.randn(2, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 6, (2, 3, 3), generator=torch.Generator().manual_seed(1)).short()
    expected = 0.0
    for sample, row, column in (labels != 5).nonzero().tolist():
        expected -= float(scores[sample, :, row, column].log_softmax(0)[labels[sample, row, column]])
    assert float(summed_loss("segmentation", scores, labels, 5)) == pytest.approx(expected, rel=1e-5)
    assert count_labels("segmentation", labels, 5) == int((labels != 5).sum())


def test_losses_of_other_tasks_are_torchs():
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    hot = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.uint8)
    expected = nn.functional.binary_cross_entropy_with_logits(scores, hot.float()) * 12
    torch.testing.assert_close(summed_loss("multilabel", scores, hot, 4), expected)
    torch.testing.assert_close(summed_loss("regression", scores, scores + 2, 0), torch.tensor(48.0))
    assert count_labels("multilabel", hot, 4) == 12


def test_loss_of_half_precision_scores_is_fp32():
    scores = torch.zeros(1, 5, 64, 64, dtype=torch.bfloat16)
    loss = summed_loss("segmentation", scores, torch.zeros(1, 64, 64, dtype=torch.long), 5)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(4096 * 1.609438, rel=1e-5)


def test_nothing_to_count_is_a_loss_of_zero():
    labels = torch.full((1, 3, 3), 5)
    assert float(summed_loss("segmentation", torch.randn(1, 5, 3, 3), labels, 5)) == 0.0


def test_predictions():
    assert predict("segmentation", torch.tensor([[[[0.1, 3.0]], [[0.2, -1.0]]]])).tolist() == [[[1, 0]]]
    assert predict("multilabel", torch.tensor([[0.0, 100.0]])).tolist() == [[0.5, 1.0]]
    assert predict("regression", torch.tensor([[0.25]])).tolist() == [[0.25]]


def test_the_fcn_head_is_the_published_one():
    head = build_head("fcn", "segmentation", 24, 5, 1)
    assert isinstance(head, FcnHead)
    initialize(head, "head", 1)
    published = nn.Sequential(
        nn.Conv2d(24, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU(), nn.Conv2d(256, 5, 1)
    )
    published.load_state_dict({key.removeprefix("classifier."): value for key, value in head.state_dict().items()})
    for training in (False, True):  # training moves torch's running statistics at once
        found, expected = head.train(training)(_features()), published.train(training)(_features())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_mlp_head_is_the_published_one():
    head = build_head("mlp", "regression", 24, 4, 4)
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


@pytest.mark.parametrize("kind", ["segmentation", "multilabel", "regression"])
def test_every_head_of_a_kind_gives_its_outputs(kind):
    for name in {*HEADS[kind], *PUBLISHED[kind]}:
        head = build_head(name, kind, 24, 5, 4)
        features = _features() if kind == "segmentation" else torch.randn(4, 24)
        assert head(features).shape == ((4, 5, 12, 12) if kind == "segmentation" else (4, 5))


def test_a_head_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="head 'mlp' is none for segmentation: choose from conv, fcn, linear"):
        build_head("mlp", "segmentation", 24, 5, 4)


def test_a_head_brings_a_resnets_map_back_to_pixels():
    encoder = build_encoder("spec_resnet50")
    initialize(encoder, "test", 0)
    head = ConvHead(encoder.feature_dim, 5, encoder.stride, None)
    scores = head(encoder.dense_features(torch.randn(2, BANDS, 32, 32)))
    assert scores.shape == (2, 5, 32, 32)
    scores.sum().backward()
    assert all(parameter.grad is not None for parameter in [*encoder.parameters(), *head.parameters()])

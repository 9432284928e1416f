"""Heads on the maps of several layers: what they get, what they give, and their files."""

from types import SimpleNamespace

import pytest
import torch
from support.registries import registered
from support.small_encoder import BANDS, small_description, small_encoder
from support.task_models import TASKS
from torch import nn

from finetune.encoders.model_file import InputDescription, TaskModel, load_task_model, save_task_model
from finetune.heads.build import HeadShape, build_head
from finetune.heads.inputs import HeadInput, compute_each, input_of, input_of_layer
from finetune.heads.multilayer import Doubling, UperHead
from finetune.heads.registry import HEADS, HeadConfig, LayersHeadConfig
from finetune.tasks import get_task
from finetune.tasks.kinds.kind import kind_of
from pretrain.models.initialize import initialize
from pretrain.models.layer_maps import LayerShape, fold_layers, unfold_layers

KIND, POOLED = kind_of(get_task(TASKS["segmentation"])), kind_of(get_task(TASKS["classification"]))
VIT = [LayerShape(6, 4)] * 4
RESNET = [LayerShape(4, 2), LayerShape(5, 4), LayerShape(6, 8), LayerShape(7, 16)]


def _folded(layers: list[LayerShape], grid: int = 3, count: int = 4) -> torch.Tensor:
    generator, stride = torch.Generator().manual_seed(0), layers[-1].stride
    sides = [grid * stride // layer.stride for layer in layers]
    pairs = zip(layers, sides, strict=True)
    return fold_layers([torch.randn(count, layer.width, side, side, generator=generator) for layer, side in pairs])


def _head(name: str, layers: list[LayerShape], bn_group: int | None = None) -> nn.Module:
    config = HEADS.validate({"name": name, "hidden": 8})
    width, stride = _folded(layers).shape[1], layers[-1].stride
    head = build_head(config, KIND, width, stride, bn_group, tuple(layers))
    initialize(head, "head", 1)
    return head


@pytest.mark.parametrize("name", ["upernet", "fcn_layers"])
@pytest.mark.parametrize(
    "layers", [VIT, VIT[:1], VIT[:2], RESNET, [LayerShape(6, 3)] * 4, [LayerShape(6, 1)] * 3], ids=str
)
@pytest.mark.parametrize("grid", [1, 3])
def test_scores_have_the_size_of_the_image_and_every_weight_learns(name, layers, grid):
    head, folded = _head(name, layers), _folded(layers, grid)
    scores = head(folded)
    assert scores.shape == (4, KIND.outputs, *[grid * layers[-1].stride] * 2)
    scores.square().mean().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize("name", ["upernet", "fcn_layers"])
def test_groups_of_samples_are_normalized_apart(name):
    head, folded = _head(name, VIT, bn_group=2), _folded(VIT)
    parts = [head(part) for part in folded.split(2)]
    assert torch.equal(head(folded), torch.cat(parts))
    assert not torch.allclose(_head(name, VIT)(folded), torch.cat(parts), atol=1e-3)


def test_the_pyramid_of_a_transformer_ends_at_the_resolution_of_the_image():
    def doublings(layers: list[LayerShape]) -> list[int]:
        head = _head("upernet", layers)
        assert isinstance(head, UperHead)
        return [sum(isinstance(part, Doubling) for part in rescale.modules()) for rescale in head.rescale]

    assert doublings(VIT) == [2, 1, 0, 0]
    assert doublings([LayerShape(6, 2)] * 4) == [1, 1, 0, 0]
    assert doublings(RESNET) == [0, 0, 0, 0]


def test_a_head_gets_evenly_spaced_layers_or_those_that_its_config_names():
    encoder = small_encoder()
    for options, numbers in (({}, (2, 5, 8, 11)), ({"layers": [-1, 0, 11]}, (0, 11))):
        source = input_of(HEADS.validate({"name": "upernet", **options}), KIND, encoder)
        assert source == HeadInput("layers", numbers)
        assert source.shape(encoder) == (192 * len(numbers), 4, (LayerShape(192, 4),) * len(numbers))
    assert input_of(HEADS.validate("linear"), KIND, encoder) == input_of(None, KIND, encoder) == HeadInput("map")
    assert input_of(HEADS.validate("linear"), POOLED, encoder) == HeadInput("pooled")
    with pytest.raises(ValueError, match="layer 12 was requested, but this encoder has layers 0 to 11"):
        input_of(HEADS.validate({"name": "upernet", "layers": [12]}), KIND, encoder)


def test_a_single_layer_is_its_map_or_the_mean_of_its_map():
    encoder, images = small_encoder(), torch.randn(2, BANDS, 8, 8)
    with torch.no_grad():
        layer = input_of_layer(3, KIND).compute(encoder, images)
        mean = input_of_layer(3, POOLED).compute(encoder, images)
    assert layer.shape == (2, 192, 2, 2)
    torch.testing.assert_close(mean, layer.mean((2, 3)))
    assert input_of_layer(3, KIND).shape(encoder)[:2] == input_of_layer(3, POOLED).shape(encoder)[:2] == (192, 4)


@torch.no_grad()
@pytest.mark.parametrize("kind", [KIND, POOLED], ids=["dense", "pooled"])
def test_single_layers_are_computed_in_one_pass(kind):
    encoder, images = small_encoder(), torch.randn(2, BANDS, 8, 8)
    sources = [input_of_layer(number, kind) for number in (5, 0, 11)]
    blocks = []
    for block in encoder.core.blocks:
        block.register_forward_hook(lambda *_: blocks.append(1))
    found = compute_each(sources, encoder, images)
    assert len(blocks) == 12
    for source, features in zip(sources, found, strict=True):
        torch.testing.assert_close(features, source.compute(encoder, images))
        assert torch.equal(features, *compute_each([source], encoder, images))


def test_a_head_on_layers_is_none_for_tasks_with_a_label_for_each_tile():
    with pytest.raises(ValueError, match="head 'upernet' is not a head for classification: choose from linear, mlp"):
        build_head("upernet", POOLED, 24, 4)


def test_a_saved_model_with_a_head_on_layers_predicts_the_same(tmp_path):
    encoder, told = small_encoder(), small_description()
    inputs = InputDescription(told.sensor, told.wavelength_nm, told.fwhm_nm, told.mu, told.sigma, told.clip)
    config = HEADS.validate({"name": "upernet", "layers": [1, 3], "hidden": 8})
    features, stride, layers = input_of(config, KIND, encoder).shape(encoder)
    head = build_head(config, KIND, features, stride, layers=layers)
    initialize(head, "head", 3)
    model = TaskModel(encoder, told, inputs, config, head, KIND.task).eval()
    save_task_model(tmp_path / "model.safetensors", model)
    loaded, tiles = load_task_model(tmp_path / "model.safetensors"), torch.randint(0, 4000, (2, BANDS, 8, 8)).short()
    assert loaded.head_config == config
    with torch.no_grad():
        assert torch.equal(loaded.scores(tiles), model.scores(tiles))


@pytest.mark.parametrize("base", [LayersHeadConfig, HeadConfig])
def test_a_plugin_adds_a_head_on_layers(base):
    class Config(base):
        inputs = ("layers",)

    def build(config: HeadConfig, shape: HeadShape) -> nn.Module:
        return SimpleNamespace(shape=shape)  # type: ignore[return-value]

    encoder = small_encoder()
    with registered(HEADS, "lab_last_two", build, Config):
        chosen = HEADS.validate({"name": "lab_last_two"} | ({"layers": [-2, -1]} if base is LayersHeadConfig else {}))
        source = input_of(chosen, KIND, encoder)
        features, stride, layers = source.shape(encoder)
        shape = build_head(chosen, KIND, features, stride, layers=layers).shape
    assert len(shape.layers) == (2 if base is LayersHeadConfig else 4)
    maps = unfold_layers(torch.zeros(1, shape.features, 2, 2), shape.layers)
    assert [tuple(each.shape) for each in maps] == [(1, 192, 2, 2)] * len(shape.layers)

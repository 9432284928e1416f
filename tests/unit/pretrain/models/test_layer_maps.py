"""Maps of several layers: folded into one tensor without loss, and computed through the encoder's forward."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.small_encoder import BANDS, SIZE, small_encoder
from support.small_networks import drawn

from pretrain.models.encoder import Encoder
from pretrain.models.initialize import initialize
from pretrain.models.layer_maps import LayerShape, fold_layers, folded_width, spaced_layers, unfold_layers
from pretrain.models.registry import build_encoder


@given(
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    layers=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=4),
)
def test_folding_loses_nothing(grid, layers):
    ratios = [*sorted((2**power for _, power in layers[:-1]), reverse=True), 1]
    shapes = [LayerShape(width, 8 // ratio) for (width, _), ratio in zip(layers, ratios, strict=True)]
    maps = [
        torch.randn(2, shape.width, grid[0] * ratio, grid[1] * ratio)
        for shape, ratio in zip(shapes, ratios, strict=True)
    ]
    folded = fold_layers(maps)
    assert folded.shape == (2, folded_width(shapes), *grid)
    assert all(torch.equal(*pair) for pair in zip(unfold_layers(folded, shapes), maps, strict=True))


def test_a_grid_that_the_last_one_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="map of 3 x 4 positions is no multiple of the last one's, 2 x 2"):
        fold_layers([torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 2, 2)])


@pytest.mark.parametrize(
    ("depth", "numbers"), [(12, (2, 5, 8, 11)), (24, (5, 11, 17, 23)), (5, (0, 1, 2, 4)), (4, (0, 1, 2, 3)), (1, (0,))]
)
def test_layers_are_evenly_spaced_and_include_the_last(depth, numbers):
    assert spaced_layers(depth) == numbers


@torch.no_grad()
def test_the_layers_of_a_transformer_end_with_its_map():
    encoder, images = small_encoder(), drawn(2, BANDS, SIZE, 2 * SIZE)
    maps = encoder.get_intermediate_layers(images, n=[3, 11], reshape=True, norm=True)
    shapes = encoder.layer_shapes()
    assert shapes == [LayerShape(192, 4)] * 12
    folded = encoder(images, "layers", (3, 11))
    found = unfold_layers(folded, [shapes[3], shapes[11]])
    assert all(torch.equal(*pair) for pair in zip(found, maps, strict=True))
    torch.testing.assert_close(encoder(images, "layers", (11,)), encoder(images, "map"))
    torch.testing.assert_close(encoder(images, "layer_means", (3, 11)), folded.mean((2, 3)))


@pytest.mark.parametrize("name", ["spec_resnet50", "resnet50"])
@torch.no_grad()
def test_the_layers_of_a_resnet_get_coarser_and_are_normalized_by_groups(name):
    encoder = build_encoder(name, 32, bands=BANDS, bn_group=1)
    initialize(encoder, "test", 0)
    images = drawn(2, BANDS, 32, 32)
    first = 2 if name == "spec_resnet50" else 4
    assert encoder.layer_shapes() == [LayerShape(256 << number, first << number) for number in range(4)]
    folded = encoder.train()(images, "layers", (1, 3))
    second, last = unfold_layers(folded, [encoder.layer_shapes()[number] for number in (1, 3)])
    assert second.shape == (2, 512, *[32 // (2 * first)] * 2)
    torch.testing.assert_close(last, encoder(images, "map"))
    alone = torch.cat([encoder(image, "layers", (1, 3)) for image in images.split(1)])
    torch.testing.assert_close(folded, alone, rtol=1e-3, atol=1e-3)


def test_an_encoder_without_layers_is_a_single_one():
    class Mean(Encoder):
        feature_dim, stride = 3, 2

        def _map(self, images):
            return torch.nn.functional.avg_pool2d(images, 2)

        def _pooled(self, images):
            return images.mean((2, 3))

    encoder, images = Mean(), drawn(1, 3, 4, 4)
    assert encoder.layer_shapes() == [LayerShape(3, 2)]
    assert torch.equal(encoder(images, "layers", (0,)), encoder(images, "map"))

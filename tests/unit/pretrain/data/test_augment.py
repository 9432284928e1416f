"""Crops, flips and mask noise belong to the sample, and missing values stay harmless."""

import numpy as np
import pytest
import torch

from pretrain.data.augment import ASPECT, Crop, crop_box
from pretrain.models.normalize import Normalizer
from pretrain.objectives.masks import mask_noise
from shards.order.random_bits import fold_in, uniform
from shards.sensors.sensor import NODATA

BANDS, SIZE = 3, 12
MU, SIGMA = [100.0, 2000.0, -50.0], [10.0, 500.0, 2.5]
IDENTITY = Normalizer([0.0] * BANDS, [1.0] * BANDS)


def _tiles(count: int) -> torch.Tensor:
    """Every pixel of every tile has a value of its own."""
    values = torch.arange(count * BANDS * SIZE * SIZE, dtype=torch.int16)
    return values.view(count, BANDS, SIZE, SIZE)


def _crops(tiles, samples, scale=(0.4, 1.0), seed=3, flip=True, size=6, normalize=IDENTITY, blur=0.0):
    crop = Crop(size, scale, flip, blur)
    return crop.random_views(normalize(tiles), np.asarray(samples), fold_in(seed, "crop"))


@pytest.mark.parametrize("scale", [None, (0.4, 1.0)])
def test_a_crop_depends_on_the_sample_number_alone(scale):
    tiles, samples = _tiles(8), np.asarray([40, 41, 42, 43, 1000, 2**40, 7, 0])
    together = _crops(tiles, samples, scale)
    order = np.random.default_rng(0).permutation(8)
    assert torch.equal(_crops(tiles[torch.from_numpy(order)], samples[order], scale), together[torch.from_numpy(order)])
    for row in range(8):
        assert torch.equal(_crops(tiles[row : row + 1], samples[row : row + 1], scale)[0], together[row])


@pytest.mark.parametrize("scale", [None, (0.4, 1.0)])
def test_views_of_smaller_tiles_in_larger_images_are_those_of_the_tiles_alone(scale):
    samples, key = np.arange(6), fold_in(3, "crop")
    crop = Crop(6, scale, blur=0.5 if scale else 0.0)
    tiles, sizes = _tiles(6).float(), [SIZE, 8, 8, 7, SIZE, 8]
    shapes = np.asarray([(BANDS, size, size - (size == 7)) for size in sizes])
    images = torch.full_like(tiles, torch.nan if scale is None else 0.0)
    for image, tile, (_, height, width) in zip(images, tiles, shapes, strict=True):
        image[:, :height, :width] = tile[:, :height, :width]
    draws = crop.draw_each(samples, key, shapes, images.shape[1:])
    together = crop.views(images, [torch.from_numpy(draw) for draw in draws])
    for row, (_, height, width) in enumerate(shapes):
        alone = crop.random_views(tiles[row : row + 1, :, :height, :width], samples[row : row + 1], key)[0]
        torch.testing.assert_close(together[row], alone)
    few = crop.draw_each(samples[1:3], key, shapes[1:3], images.shape[1:])  # no tile as large as the images
    torch.testing.assert_close(crop.views(images[1:3], [torch.from_numpy(draw) for draw in few]), together[1:3])


@pytest.mark.parametrize("scale", [None, (0.4, 1.0)])
def test_another_sample_number_or_seed_gives_another_crop(scale):
    tile = _tiles(1).expand(64, -1, -1, -1)
    crops = _crops(tile, range(64), scale)
    others = _crops(tile, range(64), scale, seed=4)
    assert torch.unique(crops.flatten(1), dim=0).shape[0] > 40
    assert sum(torch.equal(one, other) for one, other in zip(crops, others, strict=True)) < 16


def test_crops_and_masks_are_keyed_apart():
    """The same seed and sample must not tie the place of a crop to the noise of its mask."""
    samples = np.arange(4000)
    places = [_crops(_tiles(1), [sample], None, flip=False)[0, 0, 0, 0] for sample in samples[:400]]
    noise = mask_noise(samples[:400], 3, 6)
    correlations = np.corrcoef(np.vstack([np.asarray(places), noise.T]))[0, 1:]
    assert np.abs(correlations).max() < 0.2


def test_unresampled_crops_are_copies_of_pixels_with_all_four_flips():
    tile = _tiles(1)[0]
    kinds = set()
    for crop in _crops(tile[None].expand(200, -1, -1, -1), range(200), None):
        whole = [tuple(axes) for axes in ((), (1,), (2,), (1, 2))]
        found = []
        for axes in whole:
            pixels = crop.flip(axes) if axes else crop
            top, left = divmod(int(pixels[0, 0, 0]), SIZE)
            if top + 6 <= SIZE and left + 6 <= SIZE:
                cut = tile[:, top : top + 6, left : left + 6].float()
                found += [(axes, top, left)] if torch.equal(pixels, cut) else []
        assert len(found) == 1
        kinds.add(found[0][0])
    assert kinds == {(), (1,), (2,), (1, 2)}


def test_unresampled_crops_reach_every_place():
    places = {int(crop[0, 0, 0]) for crop in _crops(_tiles(1).expand(900, -1, -1, -1), range(900), None, flip=False)}
    assert places == {row * SIZE + column for row in range(7) for column in range(7)}


def test_without_flips_nothing_is_mirrored():
    for crop in _crops(_tiles(1).expand(50, -1, -1, -1), range(50), None, flip=False):
        assert crop[0, 0, 0] < crop[0, 0, 1] < crop[0, 1, 0]


@pytest.mark.parametrize(("height", "width"), [(128, 128), (20, 50)])
@pytest.mark.parametrize("scale", [(0.4, 1.0), (0.01, 0.02), (1.0, 1.0)])
def test_crop_boxes_lie_in_the_tile_with_the_area_and_aspect_asked_for(height, width, scale):
    draws = np.random.default_rng(0).random((500, 4))
    draws[:2] = [[0, 0, 0, 0], [1 - 2**-53] * 4]
    for draw in draws:
        top, left, rows, columns = crop_box(draw, height, width, 64, scale)
        assert 0 <= top < top + rows <= height
        assert 0 <= left < left + columns <= width
        if rows < height and columns < width and min(rows, columns) > 20:
            assert scale[0] - 0.05 <= rows * columns / (height * width) <= scale[1] + 0.05
            assert 0.95 * ASPECT[0] <= columns / rows <= 1.05 * ASPECT[1]


def test_a_crop_of_the_whole_tile_at_its_own_size_is_the_tile():
    crop = _crops(_tiles(1), [5], (1.0, 1.0), flip=False, size=SIZE)
    box = [crop_box(np.asarray([0.0, 0.5, 0.9, 0.9]), SIZE, SIZE, SIZE, (1.0, 1.0))]
    assert box == [(0, 0, SIZE, SIZE)]
    assert crop.shape == (1, BANDS, SIZE, SIZE)


def test_resized_crops_stay_between_the_values_of_the_tile():
    tiles = _tiles(20)
    for tile, crop in zip(tiles, _crops(tiles, range(20)), strict=True):
        for band, resized in zip(tile, crop, strict=True):
            assert band.min() <= resized.min() <= resized.max() <= band.max()


def test_normalizer_is_the_z_score_per_band():
    tiles = np.random.default_rng(0).integers(-32767, 32767, (2, BANDS, 5, 4), dtype=np.int16)
    mu, sigma = np.asarray(MU)[:, None, None], np.asarray(SIGMA)[:, None, None]
    values = Normalizer(MU, SIGMA)(torch.from_numpy(tiles))
    assert values.dtype == torch.float32
    np.testing.assert_allclose(values.numpy(), (tiles - mu) / sigma, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [None, (0.4, 1.0)])
def test_missing_values_become_zero_and_never_an_extreme(scale):
    tiles = _tiles(30) % 200 + 1900
    tiles[:, 1, ::2, 1::2] = NODATA
    tiles[:, 2] = NODATA
    crops = _crops(tiles, range(30), scale, normalize=Normalizer([2000.0] * BANDS, [100.0] * BANDS))
    assert crops.abs().max() <= 1.0
    assert not crops[:, 2].any()
    assert crops[:, 0].any()


def test_zero_is_a_value_and_not_missing():
    assert Normalizer([5.0], [2.0])(torch.zeros(1, 1, 1, dtype=torch.int16)).item() == -2.5


def test_statistics_of_the_normalizer_are_no_weights():
    assert Normalizer(MU, SIGMA).state_dict() == {}


@pytest.mark.parametrize(("size", "first"), [(6, 3), (5, 3), (12, 0)])
def test_a_center_crop_is_the_middle_unresampled(size, first):
    tiles = _tiles(2)
    crops = Crop(size).center_views(tiles.float())
    assert torch.equal(crops, tiles[:, :, first : first + size, first : first + size].float())


def test_a_resized_evaluation_view_is_the_whole_tile():
    tiles = _tiles(2)
    halved = Crop(6, (0.4, 1.0)).center_views(tiles.float())
    expected = torch.nn.functional.avg_pool2d(tiles.float(), 2)  # bilinear at half the size, no corners aligned
    torch.testing.assert_close(halved, expected)
    assert torch.equal(Crop(SIZE, (0.4, 1.0)).center_views(tiles.float()), tiles.float())


def test_mask_noise_belongs_to_the_sample_and_the_purpose():
    samples = np.asarray([5, 900, 17])
    noise = mask_noise(samples, 3, 64)
    assert noise.shape == (3, 64)
    assert noise.dtype == np.float32
    assert 0 <= noise.min() < 0.1 < 0.9 < noise.max() < 1
    assert np.array_equal(mask_noise(samples[::-1], 3, 64), noise[::-1])
    for other in (mask_noise(samples, 4, 64), mask_noise(samples, 3, 64, "validation")):
        assert (other != noise).all()


@pytest.mark.parametrize("size", [6, 12, 19])
def test_a_view_is_what_torch_cuts_resizes_and_mirrors(size):
    tiles, samples = _tiles(40).float(), np.arange(40)
    draws = uniform(fold_in(3, "crop"), samples, 8)
    for tile, draw, view in zip(tiles, draws, _crops(tiles, samples, size=size), strict=True):
        top, left, rows, columns = crop_box(draw, SIZE, SIZE, size, (0.4, 1.0))
        cut = tile[None, :, top : top + rows, left : left + columns]
        expected = torch.nn.functional.interpolate(cut, (size, size), mode="bilinear", align_corners=False)[0]
        axes = [axis for axis, toss in ((1, draw[4]), (2, draw[5])) if toss < 0.5]
        torch.testing.assert_close(view, expected.flip(axes) if axes else expected, rtol=1e-5, atol=1e-2)


def test_a_blur_smooths_and_keeps_the_level():
    tiles = torch.from_numpy(np.random.default_rng(0).normal(size=(60, BANDS, 32, 32)).astype(np.float32))
    sharp, blurred = (_crops(tiles, range(60), None, size=32, blur=blur) for blur in (0.0, 1.0))
    variance = blurred.var((1, 2, 3)) / sharp.var((1, 2, 3))
    assert (variance < 1.001).all()  # sigma 0.1 leaves a tile as it is
    assert variance.median() < 0.3
    flat = _crops(torch.full((20, BANDS, 32, 32), 7.0), range(20), None, size=32, blur=1.0)
    torch.testing.assert_close(flat, torch.full_like(flat, 7.0))


def test_a_blur_is_a_gaussian_of_thirteen_taps():
    from pretrain.data.augment import _blur

    row = _blur(41, 1.5)[20]
    taps = np.exp(-0.5 * (np.arange(-6, 7) / 1.5) ** 2)
    np.testing.assert_allclose(row[14:27], taps / taps.sum(), rtol=1e-12)
    assert not row[:14].any()
    assert not row[27:].any()


def test_half_of_the_views_are_blurred():
    tiles = torch.from_numpy(np.random.default_rng(0).normal(size=(1, BANDS, 16, 16)).astype(np.float32))
    many = tiles.expand(400, -1, -1, -1)
    sharp, half = (_crops(many, range(400), None, size=16, blur=blur, flip=False) for blur in (0.0, 0.5))
    changed = [not torch.equal(one, other) for one, other in zip(sharp, half, strict=True)]
    assert 160 < sum(changed) < 240


def test_values_are_clipped_where_asked():
    values = Normalizer(MU, SIGMA, clip=3.0)(_tiles(2))
    assert values.abs().max() == 3.0


def test_half_precision_views_differ_by_their_rounding():
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    crop, samples = Crop(8, (0.3, 1.0), blur=0.5), np.arange(2)
    exact, half = (crop.random_views(images.to(dtype), samples, 5) for dtype in (torch.float32, torch.float16))
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), exact, atol=2e-3, rtol=2e-3)

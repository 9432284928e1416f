"""A training step of the masked autoencoder that leaves missing pixels out (``ignore_nodata``)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.objectives import small_config, with_draws
from support.plain_engine import PlainEngine
from support.tiles import write_archive

from pretrain.data.stream import TileBatch
from pretrain.models.normalize import Normalizer
from pretrain.models.patches import gather_tokens, patchify
from pretrain.objectives.mae import MaeObjective
from shards.format.manifest import read_manifest
from shards.pack.build import PackConfig, pack
from shards.sensors.sensor import NODATA

SOURCES = torch.zeros(4, dtype=torch.int64)


@pytest.fixture(params=[1.0, 0.5])
def ignoring(tmp_path, request):
    """MAE that leaves missing pixels out, on ten tiles of 12 px, each with a missing pixel and a missing value."""
    tiles = torch.from_numpy(np.stack(list(write_archive(tmp_path / "source", size=12).values())))
    pack(tmp_path / "source", tmp_path / "shards", PackConfig())
    manifest = read_manifest(tmp_path / "shards")
    mae = {
        "mask_ratio": 0.5,
        "norm_pix": False,
        "ignore_nodata": True,
        "decode_share": request.param,
        "decoder": {"width": 16, "depth": 1, "heads": 2},
    }
    config = small_config(mae, model={"image_size": 12}, train={"global_batch": 8})
    objective = MaeObjective(config, Normalizer(manifest.mean, manifest.std), [manifest])
    return objective, PlainEngine(objective.module), tiles


def _batch(objective: MaeObjective, tiles: torch.Tensor, first: int) -> TileBatch:
    numbers = np.arange(first, first + 4)
    batch = TileBatch(tiles[numbers].clone(), numbers, torch.arange(4)[:, None], torch.arange(4), SOURCES, SOURCES)
    return with_draws(objective, batch)


def test_a_steps_loss_is_the_mean_over_all_its_pixels_that_count(ignoring):
    """Not the mean over samples or micro batches: one of them misses far more than the other."""
    objective, engine, tiles = ignoring
    engine.accumulation = 2
    batches = [_batch(objective, tiles, 0), _batch(objective, tiles, 4)]
    batches[1].tiles[:2, :, 2:] = NODATA
    losses = torch.stack(list(objective.losses(engine, iter(batches), 0)))
    squares, pixels, everything = torch.zeros(()), 0.0, 0
    for batch in batches:
        images, valid = objective._images(batch), objective._valid(batch)
        _, prediction, ids, _ = engine(images, objective._masks(batch))
        truth, counted = (gather_tokens(patchify(one, 4), ids) for one in (images, valid.float()))
        squares = squares + ((prediction.view_as(truth) - truth).square().mean(-1) * counted[..., 0]).sum()
        pixels += float(counted.sum())
        everything += counted.numel()
    assert 0 < pixels < 0.9 * everything
    assert everything == 8 * objective.module.count_patches()[1] * 16
    torch.testing.assert_close(losses.mean(), squares / pixels, rtol=1e-5, atol=0)


def test_micro_batches_that_wait_for_the_count_may_share_a_buffer(ignoring):
    """A stream on a CPU reuses its buffers: what it yielded is overwritten once the next batch is requested."""
    objective, engine, tiles = ignoring
    engine.accumulation = 2
    batches = [_batch(objective, tiles, 0), _batch(objective, tiles, 4)]
    expected = torch.stack(list(objective.losses(engine, iter(batches), 0)))
    buffer = torch.empty_like(batches[0].tiles)

    def overwriting():
        for batch in batches:
            yield replace(batch, tiles=buffer.copy_(batch.tiles))
            buffer.fill_(NODATA)

    torch.testing.assert_close(torch.stack(list(objective.losses(engine, overwriting(), 0))), expected, rtol=0, atol=0)


def test_a_step_without_any_pixel_has_no_loss(ignoring):
    objective, engine, tiles = ignoring
    nothing = _batch(objective, torch.full_like(tiles, NODATA), 0)
    (loss,) = objective.losses(engine, iter([nothing]), 0)
    loss.backward()
    assert loss == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in engine.module.parameters())


def test_pixels_of_a_view_count_where_missing_ones_give_nothing(ignoring):
    """Crops are resized and blurred: what counts has at most a thousandth of a missing pixel."""
    objective, _, tiles = ignoring
    batch = _batch(objective, tiles, 0)
    batch.tiles[:, 0, 4:6, 4:6] = NODATA
    before, valid = objective._images(batch), objective._valid(batch)
    batch.tiles[:, 1, 4:6, 4:6] += 1000
    after, same = objective._images(batch), objective._valid(batch)
    assert torch.equal(valid, same)
    assert valid.any()
    moved = (after - before)[:, 1:2].abs() * objective.normalize.sigma[1] / 1000
    assert moved[valid].max() < 0.0011
    assert moved[~valid].max() > 0.5


@pytest.mark.parametrize("ignore", [True, False])
def test_validation_leaves_missing_pixels_out_too(ignoring, ignore):
    objective, engine, tiles = ignoring
    objective.ignore_nodata = ignore
    tiles, numbers = tiles[:2].clone(), np.arange(2)
    _, masked = objective._draw_masks(numbers, "validation")
    assert masked.shape == (2, 5)  # all of them, whatever share is decoded in training
    patch = int(masked[0, -1])
    row, column = 4 * (patch // 3) + 1, 4 * (patch % 3) + 2
    tiles[0, 7, row, column] = NODATA
    before = objective.evaluate(engine, tiles, numbers, torch.zeros(len(tiles), dtype=torch.int64)).losses
    tiles[0, 8:, row, column] = 9000
    after = objective.evaluate(engine, tiles, numbers, torch.zeros(len(tiles), dtype=torch.int64)).losses
    assert torch.equal(after, before) == ignore
    assert after[1] == before[1]

"""The kernel that undoes the prediction of tiles, run by Triton's interpreter, against the CPU's codec."""

import numpy as np
import pytest
import torch
from support.planes import unpacked
from support.tiles import NODATA, spectra

from pretrain.data.restore import restore_tiles
from pretrain.kernels.launching import interpreting
from shards.format.bounded import BoundedPredictor
from shards.format.codec import RawTile, SpectralPredictor
from shards.format.planes import BOUND, MISSING
from shards.sensors.sensor import get_sensor
from shards.sources.geotiff import read_tile
from shards.sources.layouts import find_tiles

pytestmark = pytest.mark.usefixtures("interpreter")


def test_tiles_of_any_codec_come_back():
    noise = np.random.default_rng(0).integers(-32768, 32768, (5, 33, 32)).astype(np.int16)  # two blocks of pixels
    extremes = np.where(noise > 0, np.int16(32767), np.int16(-32768))
    codecs = [SpectralPredictor(False), BoundedPredictor("3"), BoundedPredictor("1000"), RawTile()]
    planes, bands, decoded = unpacked(codecs, [spectra(1, 33, bands=5)[..., :32], noise, extremes, noise])
    assert torch.equal(restore_tiles(planes, bands), decoded)


def test_bands_that_a_tile_lacks_are_missing():
    planes, bands, decoded = unpacked([RawTile()], [spectra(1, 5, bands=6)])
    bands[:, 4:, BOUND], decoded[:, 4:] = MISSING, NODATA
    for enabled in (True, False):
        with interpreting(enabled):
            assert torch.equal(restore_tiles(planes, bands), decoded)


@pytest.mark.parametrize("bands", [12, pytest.param(202, marks=pytest.mark.nightly)])
def test_real_tiles_come_back(bands, enmap_potsdam):
    sensor = get_sensor("enmap")
    tiles = [read_tile(enmap_potsdam / tile.path, sensor).values for tile in find_tiles(enmap_potsdam, "enmap")[:2]]
    codecs = [SpectralPredictor(True), BoundedPredictor("noise/2")]
    planes, numbers, decoded = unpacked(codecs, [np.ascontiguousarray(tile[:bands]) for tile in tiles])
    assert torch.equal(restore_tiles(planes, numbers), decoded)

"""An encoder as people use it: bands by wavelength, missing values, sizes, and one clear line for the rest."""

import numpy as np
import pytest
import torch
from support.small_encoder import BANDS, SIZE
from support.tiles import write_archive
from torch.utils.data import DataLoader, Dataset

import spectralforge
from pretrain.weights.description import WeightsError
from shards.errors import ConfigError
from shards.pack.build import PackConfig, pack
from shards.sensors.sensor import NODATA


def _tiles(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3000, (count, BANDS, SIZE, SIZE), dtype=np.int16)


def test_bands_are_picked_by_wavelength_in_any_order(encoder):
    tiles, order = _tiles(), np.random.default_rng(1).permutation(BANDS + 5)
    more = np.concatenate([tiles, np.full((3, 5, SIZE, SIZE), 9, np.int16)], 1)[:, order]
    centers = np.array([*encoder.wavelength_nm, *(2000.0 + 20 * number for number in range(5))])[order]
    assert torch.equal(encoder.encode(more, centers + 0.3), encoder.encode(tiles))


def test_a_missing_band_is_named(encoder):
    centers = np.array(encoder.wavelength_nm)
    centers[7] += 3.0
    with pytest.raises(WeightsError, match=rf"{encoder.wavelength_nm[7]:g} nm \(1 of {BANDS} missing\).*resample"):
        encoder.encode(_tiles(), centers)


@pytest.mark.parametrize(
    ("shape", "wavelengths", "says"),
    [
        ((1, BANDS + 1, SIZE, SIZE), None, "describe them with wavelengths_nm"),
        ((1, BANDS, SIZE, SIZE), [400.0], "give one per band"),
        ((1, BANDS, SIZE, SIZE + 3), None, "takes multiples of 4 px"),
        ((BANDS, SIZE), None, "give .B, bands, height, width."),
    ],
)
def test_input_that_does_not_fit_is_refused_in_one_line(encoder, shape, wavelengths, says):
    with pytest.raises(WeightsError, match=says) as raised:
        encoder.encode(np.zeros(shape, np.int16), wavelengths)
    assert "\n" not in str(raised.value)


def test_nan_and_the_nodata_value_are_missing_alike(encoder):
    tiles = _tiles()
    tiles[0, :, 2:4, 1] = NODATA
    floats = tiles.astype(np.float64)
    floats[tiles == NODATA] = np.nan
    assert torch.equal(encoder.encode(floats), encoder.encode(tiles))
    assert encoder.encode(floats).isfinite().all()


def test_batches_are_bounded_and_change_nothing(encoder):
    tiles, sizes = _tiles(5), []
    hook = encoder.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    features = encoder.encode(tiles, batch_size=2)
    hook.remove()
    assert sizes == [2, 2, 1]
    torch.testing.assert_close(features, encoder.encode(tiles))
    torch.testing.assert_close(encoder.encode(tiles[3]), features[3:4])


def test_maps_layers_and_gradients(encoder):
    tiles = _tiles(2)
    assert encoder.features(tiles).shape == (2, 192, 2, 2)
    (last,) = encoder.get_intermediate_layers(tiles, reshape=True, norm=True)
    torch.testing.assert_close(last, encoder.features(tiles))
    (_, cls), (_, other) = encoder.get_intermediate_layers(tiles, n=[0, 11], return_prefix_tokens=True, norm=True)
    torch.testing.assert_close(other[:, 0], encoder.encode(tiles))
    assert not torch.allclose(cls, other)
    assert not encoder.encode(tiles).requires_grad
    assert encoder(tiles).requires_grad


def test_other_sizes_interpolate_positions(encoder):
    wide = np.concatenate([_tiles(1)] * 2, axis=3)
    assert encoder.features(wide).shape == (1, 192, 2, 4)


def test_it_prints_what_it_is(encoder):
    assert f"spec_vit_tiny, enmap, {BANDS} bands, mae" in repr(encoder)


def test_shards_are_a_torch_dataset(tmp_path):
    write_archive(tmp_path / "source", size=4)
    pack(tmp_path / "source", tmp_path / "shards", PackConfig(tiles_per_shard=3))
    tiles = spectralforge.open_dataset(tmp_path / "shards")
    assert isinstance(tiles, Dataset)
    batches = list(DataLoader(tiles, batch_size=4, num_workers=2))
    assert [batch.shape[0] for batch in batches] == [4, 4, 2]
    assert torch.equal(torch.cat(batches), torch.stack([tiles[number] for number in range(len(tiles))]))
    assert batches[0].dtype == torch.int16
    assert len(tiles.wavelength_nm) == tiles[0].shape[0]
    assert tiles.mask(0) is None
    with pytest.raises(ConfigError, match="no tiles in the 'val' split: pack it with --labels and --splits"):
        spectralforge.open_dataset(tmp_path / "shards", split="val")

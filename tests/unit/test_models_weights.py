"""Encoder files: exact round trips, and one line for everything that can be wrong with one."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.small_encoder import BANDS, SIZE, small_description, small_encoder
from support.tiles import write_archive

import spectralforge
from pretrain.models import encode, load_encoder, save_encoder
from pretrain.models.weights import WeightsError, load_strictly
from shards.build import PackConfig, pack


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An encoder file, and what is in it."""
    path = tmp_path_factory.mktemp("export") / "encoder.safetensors"
    encoder, description = small_encoder(), small_description()
    with torch.no_grad():
        encoder.get_buffer("spectral_adapter.1.running_var").fill_(1.25)
    save_encoder(path, encoder.state_dict(), description)
    return path, encoder, description


def _error(path) -> str:
    with pytest.raises(WeightsError) as raised:
        load_encoder(path)
    text = str(raised.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text


def _tiles(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(-100, 6000, (count, BANDS, SIZE, SIZE), dtype=np.int16)


def test_weights_buffers_and_description_come_back_exactly(exported):
    path, encoder, description = exported
    loaded, told = load_encoder(path)
    assert told == description
    assert not loaded.training
    before, after = encoder.state_dict(), loaded.state_dict()
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], tensor), name


def test_a_file_is_written_whole_or_not_at_all(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *names: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError):
        save_encoder(tmp_path / "encoder.safetensors", exported[1].state_dict(), exported[2])
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_views_are_written_too(tmp_path):
    encoder = small_encoder()
    weights = {
        name: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor
        for name, tensor in encoder.state_dict().items()
    }
    save_encoder(tmp_path / "e.safetensors", weights, small_description())
    loaded, _ = load_encoder(tmp_path / "e.safetensors")
    assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.01, 0.5, 0.999999])
def test_a_truncated_file_is_refused(exported, tmp_path, share):
    data = exported[0].read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data[: int(share * len(data))])
    assert "not a whole safetensors file" in _error(path)


def test_a_missing_file_is_refused(tmp_path):
    assert "no such encoder file" in _error(tmp_path / "none.safetensors")


def test_a_folder_is_refused(tmp_path):
    assert "not a whole safetensors file" in _error(tmp_path)


def test_a_file_without_a_description_is_refused(exported, tmp_path):
    path = tmp_path / "bare.safetensors"
    save_file(exported[1].state_dict(), path)
    assert "no description in its header" in _error(path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"architecture": "spec_vit_tiny"}'])
def test_a_damaged_description_is_refused(exported, tmp_path, text):
    path = tmp_path / "damaged.safetensors"
    save_file(exported[1].state_dict(), path, metadata={"spectralforge": text})
    assert "its description is damaged" in _error(path)


@pytest.mark.parametrize("change", [{"architecture": "spec_vit_colossal"}, {"patch_size": 3}])
def test_a_description_that_no_encoder_fits_is_refused(exported, tmp_path, change):
    path = tmp_path / "unknown.safetensors"
    save_encoder(path, exported[1].state_dict(), small_description(**change))
    assert str(next(iter(change.values()))) in _error(path)


def test_a_description_with_more_than_is_known_is_read(exported, tmp_path):
    path = tmp_path / "newer.safetensors"
    values = vars(small_description()) | {"licence": "Apache-2.0"}
    save_file(exported[1].state_dict(), path, metadata={"spectralforge": json.dumps(values)})
    assert load_encoder(path)[1] == small_description()


def test_weights_of_another_shape_are_counted_and_named(exported, tmp_path):
    path = tmp_path / "other.safetensors"
    save_encoder(path, exported[1].state_dict(), small_description(image_size=16))
    text = _error(path)
    assert "170 of 171 match, 1 of another shape" in text
    assert "vit_core.pos_embed: (1, 5, 192) instead of (1, 17, 192)" in text


def test_missing_and_unexpected_weights_are_counted_and_named(exported, tmp_path):
    weights = exported[1].state_dict()
    for name in ("vit_core.cls_token", "vit_core.norm.bias"):
        del weights[name]
    weights["head.weight"] = torch.zeros(3)
    path = tmp_path / "other.safetensors"
    save_encoder(path, weights, small_description())
    text = _error(path)
    assert "169 of 171 match" in text
    assert "2 missing (e.g. vit_core.cls_token), 1 unexpected (e.g. head.weight)" in text


def test_a_refused_load_changes_nothing(exported):
    encoder = small_encoder(seed=2)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    weights = exported[1].state_dict()
    del weights["vit_core.norm.bias"]
    with pytest.raises(WeightsError, match="here: "):
        load_strictly(encoder, weights, "here")
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_encode_is_the_encoder_on_normalised_tiles(exported):
    _, encoder, description = exported
    tiles = _tiles()
    mu, sigma = (np.float32(values)[:, None, None] for values in (description.mu, description.sigma))
    with torch.no_grad():
        expected = encoder(torch.from_numpy((tiles - mu) / sigma))
    features = encode(encoder, description, tiles)
    assert features.shape == (2, 192)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(encode(encoder, description, torch.from_numpy(tiles)), features)


@pytest.mark.parametrize("shape", [(BANDS, SIZE, SIZE), (1, BANDS + 1, SIZE, SIZE), (1, BANDS, SIZE, SIZE + 4)])
def test_encode_refuses_tiles_of_another_shape(exported, shape):
    with pytest.raises(WeightsError, match=r"this encoder takes \(B, 80, 8, 8\)") as raised:
        encode(exported[1], exported[2], np.zeros(shape, np.int16))
    assert str(shape) in str(raised.value)


def test_the_notebook_functions_go_from_shards_to_features(tmp_path):
    write_archive(tmp_path / "source", size=SIZE)
    pack(tmp_path / "source", tmp_path / "shards", PackConfig(tiles_per_shard=3))
    tiles = spectralforge.open_dataset(tmp_path / "shards")
    told = tiles.manifest
    description = small_description(
        wavelength_nm=told.wavelength_nm, fwhm_nm=told.fwhm_nm, mu=told.mean, sigma=told.std, dataset=told.content_hash
    )
    save_encoder(tmp_path / "encoder.safetensors", small_encoder().state_dict(), description)
    encoder, loaded = spectralforge.load_encoder(str(tmp_path / "encoder.safetensors"))
    features = torch.cat([spectralforge.encode(encoder, loaded, tiles[row][None]) for row in range(len(tiles))])
    assert features.shape == (10, 192)
    assert features.isfinite().all()
    assert torch.unique(features, dim=0).shape == (10, 192)

"""Features of a frozen encoder: computed once, kept, and never those of something else."""

import numpy as np
import pytest
import torch
import zarr

from finetune.datasets import LabelledWindows
from finetune.features import BATCH, frozen_features
from pretrain.models import Normaliser
from pretrain.models.initialise import initialise
from pretrain.models.vit import SpecViT

CPU = torch.device("cpu")
BANDS, SIZE = 80, 8
COUNT = BATCH + 3  # the last batch is a short one
NORMALISE = Normaliser([1000.0] * BANDS, [500.0] * BANDS)


def _encoder(seed: int = 1) -> SpecViT:
    encoder = SpecViT(SIZE, 4, width=16, depth=1, heads=2, mlp_hidden=32)
    initialise(encoder, "features", seed)
    return encoder.eval()


def _windows(seed: int = 0) -> LabelledWindows:
    images = np.random.default_rng(seed).integers(0, 4000, (COUNT, BANDS, SIZE, SIZE), dtype=np.int16)
    return LabelledWindows(images, np.zeros((COUNT, SIZE, SIZE), np.int64))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Features from one folder, counting how often the encoder runs."""
    calls = []
    path = tmp_path / "features" / "train.zarr"

    def features(encoder, windows, normalise=NORMALISE):
        with monkeypatch.context() as patch:
            dense = encoder.dense_features
            patch.setattr(encoder, "dense_features", lambda images: calls.append(len(images)) or dense(images))
            return frozen_features(encoder, normalise, windows, path, CPU, quiet=True)

    features.calls, features.path = calls, path
    return features


def _changes(path) -> dict:
    return {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}


def test_features_are_those_of_the_encoder(cache):
    encoder, windows = _encoder(), _windows()
    features = cache(encoder, windows)
    assert features.shape == (COUNT, 16, 2, 2)
    assert features.dtype == torch.float32
    with torch.no_grad():
        expected = encoder.dense_features(NORMALISE(torch.from_numpy(windows.images)))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_a_second_call_reads_the_cache(cache):
    encoder = _encoder()
    first = cache(encoder, _windows())
    assert cache.calls == [BATCH, 3]
    before = _changes(cache.path)
    assert torch.equal(cache(_encoder(), _windows()), first)
    assert cache.calls == [BATCH, 3]
    assert _changes(cache.path) == before


@pytest.mark.parametrize("name", ["vit_core.norm.bias", "spectral_adapter.4.running_var"])
def test_other_weights_or_buffers_are_computed_anew(cache, name):
    encoder = _encoder()
    first = cache(encoder, _windows())
    with torch.no_grad():
        encoder.state_dict()[name][0] += 1.0
    second = cache(encoder, _windows())
    assert cache.calls == [BATCH, 3] * 2
    assert not torch.equal(first, second)


def test_other_images_are_computed_anew(cache):
    cache(_encoder(), _windows())
    first = cache(_encoder(), _windows(seed=1))
    assert cache.calls == [BATCH, 3] * 2
    assert torch.equal(cache(_encoder(), _windows(seed=1)), first)


def test_another_normalisation_is_computed_anew(cache):
    first = cache(_encoder(), _windows())
    second = cache(_encoder(), _windows(), Normaliser([900.0] * BANDS, [400.0] * BANDS))
    assert not torch.equal(first, second)


def test_a_cache_that_was_cut_short_is_computed_anew(cache, monkeypatch):
    encoder = _encoder()
    whole = cache(encoder, _windows())
    stop = RuntimeError("killed")
    other = _encoder(seed=2)
    dense = other.dense_features
    seen = []

    def die_in_the_second_batch(images):
        seen.append(len(images))
        if len(seen) == 2:
            raise stop
        return dense(images)

    monkeypatch.setattr(other, "dense_features", die_in_the_second_batch)
    with pytest.raises(RuntimeError):
        frozen_features(other, NORMALISE, _windows(), cache.path, CPU, quiet=True)
    monkeypatch.undo()
    second = cache(_encoder(seed=2), _windows())
    assert cache.calls == [BATCH, 3] * 2
    assert not torch.equal(second, whole)
    assert second[BATCH:].any()


@pytest.mark.parametrize("text", ["", "{", "{}"])
def test_a_cache_with_damaged_metadata_is_computed_anew(cache, text):
    encoder = _encoder()
    first = cache(encoder, _windows())
    (cache.path / "zarr.json").write_text(text)
    assert torch.equal(cache(encoder, _windows()), first)
    assert cache.calls == [BATCH, 3] * 2


def test_the_cache_is_a_zarr_array_that_anyone_can_open(cache):
    features = cache(_encoder(), _windows())
    np.testing.assert_array_equal(zarr.open_array(cache.path, mode="r")[:], features.numpy())


def test_a_cache_that_lost_a_chunk_is_computed_anew(cache):
    """Zarr reads a missing chunk as zeros."""
    encoder = _encoder()
    first = cache(encoder, _windows())
    chunk = next(path for path in sorted((cache.path / "c").rglob("*")) if path.is_file())
    chunk.unlink()
    assert torch.equal(cache(encoder, _windows()), first)

"""Probes: neighbours and ridge regression against plain references, cells by majority, bad shards in one line."""

import numpy as np
import pytest
import torch
from support.objectives import small_config
from support.tiles import write_tile

from pretrain.probe import CELLS, Cells, EncoderProbe, nearest_neighbours, ridge_classes
from shards.build import PackConfig, pack
from shards.errors import ConfigError
from shards.scan import Labels


def _cells(count: int, seed: int, separable: bool = True) -> Cells:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, 4, (count,), generator=generator)
    centres = torch.eye(6)[labels] * (4.0 if separable else 0.0)
    return Cells(centres + torch.randn(count, 6, generator=generator), labels)


def test_neighbours_vote_by_similarity():
    train, features = _cells(50, 0), _cells(20, 1).features
    predicted = nearest_neighbours(train, features, 7)
    for feature, got in zip(features, predicted, strict=True):
        cosines = [float(torch.cosine_similarity(feature, other, dim=0)) for other in train.features]
        votes = {}
        for position in np.argsort(cosines)[-7:]:
            label = int(train.labels[position])
            votes[label] = votes.get(label, 0.0) + np.exp(cosines[position] / 0.07)
        assert int(got) == max(votes, key=votes.get)


@pytest.mark.parametrize("classify", [lambda train, x: nearest_neighbours(train, x, 20), ridge_classes])
def test_what_features_tell_is_found_and_what_they_do_not_is_not(classify):
    for separable, low, high in ((True, 0.9, 1.0), (False, 0.2, 0.5)):
        train, test = _cells(600, 2, separable), _cells(400, 3, separable)
        accuracy = float((classify(train, test.features) == test.labels).double().mean())
        assert low <= accuracy <= high


def test_ridge_does_not_care_for_scale_and_offset():
    train, test = _cells(200, 4), _cells(100, 5)
    moved = Cells(train.features * torch.tensor([1e3, 1, 1, 1, 1e-3, 1]) + 50, train.labels)
    features = test.features * torch.tensor([1e3, 1, 1, 1, 1e-3, 1]) + 50
    assert torch.equal(ridge_classes(train, test.features), ridge_classes(moved, features))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Twelve locations whose label tiles have two classes, one nodata label, side by side."""
    folder = tmp_path_factory.mktemp("labelled")
    for number in range(12):
        codes = np.full((12, 12), 1, np.int16)
        codes[:, 6:] = 2
        codes[:3] = 0
        name = f"{number:07d}/00001.tif"
        write_tile(folder / "source" / "enmap" / name, np.full((202, 12, 12), 100, np.int16))
        write_tile(folder / "labels" / name, codes[None])
    pack(folder / "source", folder / "shards", PackConfig(tiles_per_shard=4), labels=Labels(folder / "labels"))
    return folder


def _config(shards, **probe):
    return small_config({"mask_ratio": 0.5}, model={"image_size": 12}, probe={"shards": str(shards), **probe})


def test_a_cell_has_the_label_of_most_of_its_pixels(labelled):
    probe = EncoderProbe(_config(labelled / "shards"), 202)
    values, codes = probe._read(probe.splits["train"], 0)
    assert values.shape == (202, 12, 12)
    features = torch.arange(9.0).view(1, 3, 3)
    drawn, labels = probe._draw(0, features, codes)
    found = {int(cell): int(label) for cell, label in zip(drawn[:, 0], labels, strict=True)}
    majority = {}
    for cell in range(9):
        row, column = divmod(cell, 3)
        pixels = codes[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten().tolist()
        best = max(sorted(set(pixels)), key=pixels.count)
        if best != 0:
            majority[cell] = best
    assert found == majority
    assert len(found) <= CELLS
    assert set(found.values()) == {1, 2}


def test_shards_that_do_not_fit_are_refused(labelled, tmp_path):
    with pytest.raises(ConfigError, match=r"key 'probe.shards': tiles of \(202, 12, 12\); the run takes 80 bands"):
        EncoderProbe(_config(labelled / "shards"), 80)
    with pytest.raises(ConfigError, match="16 px"):
        EncoderProbe(
            small_config({"mask_ratio": 0.5}, model={"image_size": 16}, probe={"shards": str(labelled / "shards")}), 202
        )
    pack(labelled / "source", tmp_path / "plain", PackConfig(tiles_per_shard=4))
    with pytest.raises(ConfigError, match="no labelled tiles in 'train'"):
        EncoderProbe(_config(tmp_path / "plain"), 202)

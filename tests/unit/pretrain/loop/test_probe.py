"""Probes: neighbours and ridge regression against plain references, cells by majority, bad shards in one line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.objectives import manifest, small_config
from support.plain_engine import PlainEngine
from support.tiles import write_tile

from pretrain.config.data import DataConfig
from pretrain.config.run import RunConfig
from pretrain.loop.probe import CELLS, Cells, EncoderProbe, nearest_classes, ridge_classes
from pretrain.models.normalize import Normalizer
from pretrain.objectives.moco import MocoObjective
from shards.errors import ConfigError
from shards.pack.build import PackConfig, pack
from shards.pack.scan import Labels
from shards.sensors.sensor import NODATA


def _cells(count: int, seed: int, separable: bool = True) -> Cells:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, 4, (count,), generator=generator)
    centers = torch.eye(6)[labels] * (4.0 if separable else 0.0)
    return Cells(centers + torch.randn(count, 6, generator=generator), labels)


def test_neighbours_vote_by_similarity():
    train, features = _cells(50, 0, separable=False), _cells(40, 1, separable=False).features  # votes are close
    predicted = nearest_classes(train, features, 7)
    for feature, got in zip(features, predicted, strict=True):
        cosines = [float(torch.cosine_similarity(feature, other, dim=0)) for other in train.features]
        votes = {}
        for position in np.argsort(cosines)[-7:]:
            label = int(train.labels[position])
            votes[label] = votes.get(label, 0.0) + np.exp(cosines[position] / 0.07)
        assert int(got) == max(votes, key=votes.get)


@pytest.mark.parametrize("classify", [lambda train, x: nearest_classes(train, x, 20), ridge_classes])
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


def _pack_labeled(folder: Path, first: int = 1) -> Path:
    """Twelve locations: label 0 on top, below it class ``first`` and class 2 side by side, of different spectra."""
    rise = np.linspace(0, 2000, 202)[:, None, None]
    for number in range(12):
        codes = np.full((12, 12), first, np.int16)
        codes[:, 6:] = 2
        codes[:3] = 0
        codes[4, 0] = 2  # the first pixel of a cell of the other class
        noise = np.random.default_rng(number).normal(0, 50, (202, 12, 12))
        name = f"{number:07d}/00001.tif"
        write_tile(
            folder / "source" / "enmap" / name, (np.where(codes == 2, rise, 2000 - rise) + noise).astype(np.int16)
        )
        write_tile(folder / "labels" / name, codes[None])
    pack(folder / "source", folder / "shards", PackConfig(tiles_per_shard=4), labels=Labels(folder / "labels"))
    return folder


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    return _pack_labeled(tmp_path_factory.mktemp("labeled"))


@pytest.fixture(scope="module")
def contrast():
    """An encoder with drawn weights, in an objective."""
    moco = {"name": "moco", "queue": 12, "hidden": 16, "dim": 8}
    normalize = Normalizer([1000.0] * 202, [600.0] * 202)
    objective = MocoObjective(small_config(moco, model={"image_size": 12}), normalize, [manifest(202)])
    return objective, PlainEngine(objective.module)


def _config(shards, **probe):
    return small_config({"mask_ratio": 0.5}, model={"image_size": 12}, probe={"shards": str(shards), **probe})


def test_a_cell_has_the_label_of_most_of_its_pixels(labeled):
    probe = EncoderProbe(_config(labeled / "shards"), 202)
    values, codes = probe._read(int(probe.splits["train"][0]))
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


def test_scores_of_an_encoder(labeled, contrast):
    """Spectra tell the classes, and so does an encoder of random weights; asked again, it scores the same."""
    objective, engine = contrast
    before = {name: value.clone() for name, value in objective.module.state_dict().items()}
    probe = EncoderProbe(_config(labeled / "shards", neighbors=5), 202)
    scores = probe.scores(objective, engine)
    assert scores == {"knn_accuracy": 1.0, "linear_accuracy": 1.0}
    assert all(torch.equal(value, before[name]) for name, value in objective.module.state_dict().items())
    cells = probe._cells("train", objective, engine, lambda: False)
    assert cells.features.shape == (len(probe.splits["train"]) * 6, 192)  # two of three rows of cells are labeled
    assert set(cells.labels.tolist()) == {1, 2}
    again = probe._cells("train", objective, engine, lambda: False)
    assert torch.equal(cells.features, again.features)
    assert torch.equal(cells.labels, again.labels)


def test_the_probe_of_one_of_several_sources_has_its_statistics(labeled, contrast):
    normalize = Normalizer(torch.tensor([[0.0] * 202, [1000.0] * 202]), torch.tensor([[1.0] * 202, [600.0] * 202]))
    two = MocoObjective(contrast[0].config, normalize, [manifest(202)] * 2)
    sources = [{"shards": "a"}, {"shards": "b", "probe": str(labeled / "shards")}]
    config = _config(None).model_copy(update={"data": DataConfig.model_validate({"sources": sources})})
    probe = EncoderProbe(config, 202, source=1)
    cells = probe._cells("val", two, PlainEngine(two.module), lambda: False)
    alone = EncoderProbe(_config(labeled / "shards"), 202)._cells("val", *contrast, lambda: False)
    torch.testing.assert_close(cells.features, alone.features)
    with pytest.raises(ConfigError, match=r"key 'data\.sources\.1\.probe': tiles have shape .* takes 80 bands"):
        EncoderProbe(config, 80, source=1)


def test_only_as_many_tiles_are_read_as_cells_are_wanted(labeled, contrast):
    few = EncoderProbe(_config(labeled / "shards", samples=CELLS + 1), 202)._cells("train", *contrast, lambda: False)
    assert len(few.labels) == 2 * 6


def test_other_labels_can_be_ignored(labeled, contrast):
    """The middle column of cells is half and half, and the lower label counts then."""
    probe = EncoderProbe(_config(labeled / "shards", ignore=[0, 1]), 202)
    cells = probe._cells("val", *contrast, lambda: False)
    assert cells.labels.tolist() == [2] * 2 * len(probe.splits["val"])
    probe = EncoderProbe(_config(labeled / "shards", ignore=[0, 1, 2]), 202)
    with pytest.raises(ConfigError, match=r"key 'probe.ignore': no cell of 'train' has any other label"):
        probe.scores(*contrast)


def test_cells_without_a_label_do_not_count(tmp_path, contrast):
    folder = _pack_labeled(tmp_path, first=NODATA)
    cells = EncoderProbe(_config(folder / "shards"), 202)._cells("val", *contrast, lambda: False)
    assert set(cells.labels.tolist()) == {2}


def test_negative_labels_are_refused_unless_ignored(tmp_path, contrast):
    folder = _pack_labeled(tmp_path, first=-1)
    probe = EncoderProbe(_config(folder / "shards"), 202)
    with pytest.raises(
        ConfigError, match=r"key 'probe.ignore': label -1 of 'train' is negative: add it to probe\.ignore"
    ):
        probe.scores(*contrast)
    probe = EncoderProbe(_config(folder / "shards", ignore=[0, -1]), 202)
    assert probe.scores(*contrast) == {"knn_accuracy": 1.0, "linear_accuracy": 1.0}


@pytest.mark.parametrize("prefix", ["", "mask_"])
def test_a_damaged_tile_or_label_is_replaced_together_with_the_other(labeled, contrast, tmp_path, prefix):
    folder = Path(shutil.copytree(labeled / "shards", tmp_path / "shards"))
    config = _config(folder).model_copy(update={"run": RunConfig(dir=str(tmp_path / "run"))})
    probe = EncoderProbe(config, 202)
    bad = int(probe.splits["val"][0])
    with open(folder / probe.reader.manifest.shards[probe.reader.table["shard"][bad]].name, "r+b") as file:
        file.seek(int(probe.reader.table[prefix + "offset"][bad]) + int(probe.reader.table[prefix + "length"][bad]) - 3)
        file.write(b"\x55\xaa\x55")
    values, codes = probe._read(bad)
    whole = EncoderProbe(_config(labeled / "shards"), 202)
    others = [int(row) for row in probe.splits["val"] if row != bad]
    assert any(torch.equal(values, a) and torch.equal(codes, b) for a, b in map(whole._read, others))
    assert probe.quarantine.rows == [bad] and list((tmp_path / "run").glob("quarantine-*"))
    assert probe.scores(*contrast) == {"knn_accuracy": 1.0, "linear_accuracy": 1.0}


def test_shards_that_do_not_fit_are_refused(labeled, tmp_path):
    with pytest.raises(
        ConfigError, match=r"key 'probe.shards': tiles have shape \(202, 12, 12\), but the run takes 80 bands"
    ):
        EncoderProbe(_config(labeled / "shards"), 80)
    with pytest.raises(ConfigError, match="16 px"):
        EncoderProbe(
            small_config({"mask_ratio": 0.5}, model={"image_size": 16}, probe={"shards": str(labeled / "shards")}), 202
        )
    pack(labeled / "source", tmp_path / "plain", PackConfig(tiles_per_shard=4))
    with pytest.raises(ConfigError, match="no labeled tiles in 'train'"):
        EncoderProbe(_config(tmp_path / "plain"), 202)

"""Band tables of several sources, and digital numbers normalized by the tables of their source."""

import torch
from support.objectives import manifest

from pretrain.data.band_tables import BandTables
from pretrain.models.normalize import Normalizer
from shards.sensors.sensor import NODATA


def _tables() -> BandTables:
    few = manifest(2).model_copy(update={"mean": [10.0, 20.0], "std": [2.0, 4.0]})
    return BandTables.of([few, manifest(3)])


def test_tables_are_padded_to_the_widest_source():
    tables = _tables()
    assert tables.has_padding
    assert tables.present.tolist() == [[True, True, False], [True] * 3]
    assert tables.center_nm.tolist() == [[420, 430, 0], [420, 430, 440]]
    assert tables.mu[0].tolist() == [10, 20, 0]
    assert tables.sigma[0].tolist() == [2, 4, 1]
    assert not BandTables.of([manifest(3), manifest(3)]).has_padding


def test_tiles_are_normalized_by_the_table_of_their_source_and_padding_is_zero():
    tables = _tables()
    normalize = Normalizer(tables.mu, tables.sigma, clip=3.0)
    tiles = torch.randint(-50, 3000, (4, 3, 2, 2), dtype=torch.int16, generator=torch.Generator().manual_seed(0))
    tiles[:2, 2] = NODATA
    sources = torch.tensor([0, 0, 1, 1])
    scores = normalize(tiles, sources=sources)
    alone = [Normalizer(tables.mu[s], tables.sigma[s], clip=3.0)(tiles[row]) for row, s in enumerate(sources.tolist())]
    assert torch.equal(scores, torch.stack(alone))
    assert not scores[:2, 2].any()
    spectra = normalize.spectra(tiles.flatten(2).transpose(1, 2), sources)
    assert torch.equal(spectra, scores.flatten(2).transpose(1, 2))


def test_one_source_has_the_arithmetic_of_one_table():
    tables = BandTables.of([manifest(3)])
    one, plain = Normalizer(tables.mu, tables.sigma), Normalizer([1000.0] * 3, [400.0] * 3)
    assert torch.equal(one.mu, plain.mu)
    assert one.num_sources == 1

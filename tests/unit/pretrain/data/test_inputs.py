"""Several sources as the inputs of a run, and in one line each, those that can't be."""

import numpy as np
import pytest
from support.objectives import small_config
from support.tiles import spectra, write_archive, write_tile

from pretrain.data.inputs import _check_bands_known, open_inputs
from pretrain.data.stream import TileStream, micro_batches
from pretrain.distributed import device
from pretrain.registries import STEMS
from shards.errors import ConfigError, ShardError
from shards.pack.build import PackConfig, pack

CAMERA = [500.0 + 10 * band for band in range(80)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Shards ``large`` (12 px, 202 bands), ``small`` (the same bands, 8 px) and ``camera`` (8 px, 80 bands)."""
    folder = tmp_path_factory.mktemp("inputs")
    write_archive(folder / "large-tiles", size=12)
    pack(folder / "large-tiles", folder / "large", PackConfig(tiles_per_shard=3))
    write_archive(folder / "small-tiles", size=8, scenes={f"{n:07d}": ("00001",) for n in range(6)})
    pack(folder / "small-tiles", folder / "small", PackConfig(tiles_per_shard=3))
    for number in range(3):
        write_tile(folder / "camera-tiles" / f"field-{number}.tif", spectra(number, 8, 80), -32768, CAMERA)
    (folder / "camera.csv").write_text("wavelength_nm,fwhm_nm\n" + "".join(f"{nm},12\n" for nm in CAMERA))
    pack(folder / "camera-tiles", folder / "camera", PackConfig(sensor=str(folder / "camera.csv")))
    return folder


def _config(folder, *sources, **data):
    named = [{"shards": str(folder / name), **rest} for name, rest in sources]
    sections = {"data": {"shards": None, "sources": named, "holdout": 0.2, "read_threads": 2} | data}
    return small_config({"mask_ratio": 0.5}, run={"dir": str(folder / "run")}, **sections)


def _batches(inputs, config, steps=6):
    train = config.train
    stream = TileStream(inputs.reader, inputs.plan, device(), 2, inputs.quarantine)
    return stream.batches(micro_batches(0, steps, train.global_batch, train.micro_batch, 0, 1))


def test_each_batch_says_the_source_of_its_samples_and_tiles(lab):
    config = _config(lab, ("large", {"weight": 2}), ("small", {}))
    inputs = open_inputs(config)
    counts = np.zeros(2, dtype=int)
    for batch in _batches(inputs, config):
        sources = inputs.plan.sources(batch.samples)
        np.testing.assert_array_equal(batch.sources.numpy(), sources)
        np.testing.assert_array_equal(batch.tile_sources.numpy(), sources)
        assert batch.tiles.shape == (4, 202, 12, 12)
        assert ((batch.tiles[:, :, 8:] == -32768).all(3).all(2).all(1).numpy() == (sources == 1)).all()
        counts += np.bincount(sources, minlength=2)
    assert counts.tolist() == [16, 8]  # four cycles of three blocks of two


def test_views_and_held_out_shares_are_each_source_s_own_or_those_of_the_data(lab):
    view = {"keep": str(lab / "keep.txt")}
    (lab / "keep.txt").write_text("0000001\n0000002\n0000003\n")
    inputs = open_inputs(_config(lab, ("large", {"holdout": 0.0}), ("small", {"view": view, "name": "few"})))
    large, few = inputs.sources
    assert (len(large.plan.rows), len(large.held_out)) == (10, 0)
    assert len(few.plan.rows) + len(few.held_out) == 3 and len(few.held_out) >= 1
    assert few.held_out.min() >= 10  # numbered after the first source's
    assert [source.name for source in inputs.sources] == ["large", "few"]


def test_one_source_reads_what_its_shards_alone_are(lab):
    alone = open_inputs(small_config({"mask_ratio": 0.5}, data={"shards": str(lab / "large"), "holdout": 0.2}))
    one = open_inputs(_config(lab, ("large", {})))
    samples = np.arange(30)
    np.testing.assert_array_equal(one.plan.tiles(samples), alone.plan.tiles(samples))
    assert one.held_out_hash == alone.held_out_hash
    assert one.plan.dataset != alone.plan.dataset  # sources can be added to the one


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        (
            [("large", {}), ("small", {"view": {"max_cloud": 0.1}})],
            "key 'data.sources.1' (small): no tile is left to train on",
        ),
        (
            [("large", {}), ("small", {"holdout": 0.99})],
            "key 'data.sources.1' (small): key 'data.holdout': 6 locations",
        ),
        (
            [("large", {}), ("camera", {})],
            "key 'data.sources.1' (camera): 80 bands of camera, but large has 202 of enmap: this model's stem",
        ),
        ([("large", {"weight": 1.00001}), ("small", {})], "key 'data.sources': weights 1.00001, 1 repeat only after"),
    ],
)
def test_sources_that_can_not_be_trained_on_are_refused_in_one_line(lab, sources, says):
    with pytest.raises(ConfigError) as raised:
        open_inputs(_config(lab, *sources))
    assert says in str(raised.value)


def test_a_stem_by_wavelength_takes_any_sensors_whose_bands_are_known(lab):
    config = _config(lab, ("large", {}), ("camera", {}))
    config = config.model_copy(update={"model": config.model.model_copy(update={"stem": STEMS.validate("wave")})})
    manifests = open_inputs(config).manifests
    assert [manifest.tile_shape[0] for manifest in manifests] == [202, 80]
    blank = manifests[1].model_copy(update={"fwhm_nm": [0.0, *manifests[1].fwhm_nm[1:]]})
    with pytest.raises(ConfigError, match=r"center and width of every band, but 1 of camera have none: pack"):
        _check_bands_known(blank)


def test_a_source_that_is_not_there_is_refused(lab):
    with pytest.raises(ShardError, match="absent: no such folder of shards"):
        open_inputs(_config(lab, ("large", {}), ("absent", {})))

"""Objectives with encoders by wavelength: sources of several sensors, made-up sensors, hidden bands."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.objectives import SIZE, manifest, small_config, with_draws
from support.plain_engine import PlainEngine

from pretrain.data.band_tables import BandTables
from pretrain.data.stream import TileBatch
from pretrain.models.normalize import Normalizer
from pretrain.objectives import build_objective
from shards.sensors.sensor import NODATA

MAE = {"name": "mae", "mask_ratio": 0.5, "decoder": {"width": 16, "depth": 1, "heads": 2}}
OBJECTIVES = {
    "mae": MAE,
    "missing": MAE | {"ignore_nodata": True},
    "angle": MAE | {"norm_pix": False, "spectral_angle": 0.5},
    "spectral": MAE | {"masking": "spectral", "decode_share": 0.5},
    "decoupled": MAE | {"masking": "decoupled"},
    "tubes": MAE | {"masking": "tubes"},
    "moco": {"name": "moco", "queue": 8, "hidden": 16, "dim": 8},
    "dino": {
        "name": "dino",
        "hidden": 16,
        "bottleneck": 8,
        "prototypes": 12,
        "local_crops": {"count": 2, "size": 4, "scale": [0.1, 0.4]},
    },
}
WIDE, NARROW = 60, 20


def _objective(name: str, sensors: bool = True, **config: dict):
    manifests = [manifest(WIDE), manifest(NARROW)]
    tables = BandTables.of(manifests)
    augment = {"sensors": {}} if sensors else {}
    sections = {"model": {"stem": {"name": "wave"}}, "augment": augment} | config
    return build_objective(small_config(OBJECTIVES[name], **sections), Normalizer(tables.mu, tables.sigma), manifests)


def _batch(objective, sources=(0, 0, 1, 1), first: int = 0) -> TileBatch:
    """Return four samples of two dates, those of source 1 with padding bands."""
    generator, sources = np.random.default_rng(first), torch.tensor(sources)
    tiles = torch.from_numpy(generator.integers(0, 2000, (8, WIDE, SIZE, SIZE), dtype=np.int16))
    of_tiles = sources.repeat_interleave(2)
    tiles[of_tiles == 1, NARROW:] = NODATA
    samples = np.arange(first, first + 4)
    batch = TileBatch(tiles, samples, torch.arange(8).view(4, 2), torch.arange(4), sources, of_tiles)
    if objective.timestamps == 1:
        batch = TileBatch(tiles[::2], samples, torch.arange(4)[:, None], torch.arange(4), sources, sources)
    return with_draws(objective, batch)


@pytest.mark.parametrize("sensors", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_over_two_sensors_has_a_finite_loss_and_gradients_for_all_weights(name, sensors):
    objective = _objective(name, sensors)
    engine = PlainEngine(objective.module)
    losses = list(objective.losses(engine, iter([_batch(objective)]), 0))
    losses[0].backward()
    assert losses[0].isfinite()
    for parameter_name, parameter in objective.module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", OBJECTIVES)
def test_padding_bands_change_nothing(name):
    """The loss of samples of the narrow sensor is that of a run which has no other sensor."""
    objective = _objective(name, sensors=False)
    tiles, numbers = _batch(objective, (1, 1, 1, 1)).tiles[:4], np.arange(4)
    losses = objective.evaluate(PlainEngine(objective.module), tiles, numbers, torch.ones(4, dtype=torch.int64)).losses
    alone = build_objective(
        small_config(OBJECTIVES[name], model={"stem": {"name": "wave"}}),
        Normalizer([1000.0] * NARROW, [400.0] * NARROW),
        [manifest(NARROW)],
    )
    alone.module.load_state_dict(objective.module.state_dict())
    sources = torch.zeros(4, dtype=torch.int64)
    expected = alone.evaluate(PlainEngine(alone.module), tiles[:, :NARROW], numbers, sources).losses
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)


def test_a_sample_has_the_same_loss_in_any_micro_batch():
    """Its sensor and hidden bands are drawn by its group, whatever the rest of the batch is."""
    objective = _objective("decoupled")
    engine, batch = PlainEngine(objective.module), _batch(objective)
    whole = objective.loss(engine, batch, 0)
    halves = []
    for part in (slice(0, 2), slice(2, 4)):
        half = TileBatch(
            batch.tiles[part],
            batch.samples[part],
            torch.arange(2)[:, None],
            torch.arange(2),
            batch.sources[part],
            batch.sources[part],
        )
        halves.append(objective.loss(engine, with_draws(objective, half), 0))
    torch.testing.assert_close(torch.stack(halves).mean(), whole, rtol=1e-5, atol=0)


def test_hidden_bands_never_reach_the_encoder_and_are_all_that_spectral_masking_predicts():
    objective = _objective("spectral", sensors=False, augment={"crop_scale": None, "flip": False})
    batch = _batch(objective, (0, 0, 0, 0))
    bands, hidden = objective._bands(batch), batch.draws["hidden"][0]
    assert torch.equal(bands.seen.present, ~hidden)
    assert torch.equal(bands.wanted.present, hidden)
    assert hidden.any(1).all() and not hidden.all(1).any()
    images, masks = objective._images(batch), objective._masks(batch)
    module = objective.module.eval()
    changed = images.clone().view(2, 2, WIDE, *images.shape[2:])
    changed[hidden[:, None].expand(-1, 2, -1)] *= -1
    with torch.no_grad():
        before, after = (module.losses(x.view_as(images), masks, bands=bands) for x in (images, changed))
    torch.testing.assert_close(after[3], before[3])
    assert not torch.allclose(after[0], before[0])
    prediction = before[1].view(2, -1, WIDE)
    assert not prediction[0][:, ~hidden[0]].any()


def test_a_decoder_predicts_bands_that_it_never_saw():
    objective = _objective("mae", sensors=False)
    batch = _batch(objective)
    bands = objective._bands(batch)
    between = bands.wanted._replace(center_nm=bands.wanted.center_nm + 5)
    with torch.no_grad():
        masks = objective._masks(batch)
        usual, other = (
            objective.module(objective._images(batch), masks, None, None, bands._replace(wanted=wanted))[1]
            for wanted in (bands.wanted, between)
        )
    assert other.isfinite().all()
    assert not torch.allclose(usual, other)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"augment": {"sensors": {}}}, "augment.sensors needs model.stem wave"),
        ({"objective": MAE | {"masking": "spectral"}}, "objective.masking spectral needs model.stem wave"),
        (
            {"augment": {"sensors": dict.fromkeys(("own", "subset", "range", "dropped", "responses"), 0)}},
            "all kinds are 0",
        ),
    ],
)
def test_spectral_keys_without_a_wave_stem_are_refused(sections, says):
    with pytest.raises(ValidationError, match=says):
        small_config(sections.pop("objective", MAE), **sections)

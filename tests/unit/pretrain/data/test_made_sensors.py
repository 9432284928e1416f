"""Made-up sensors and hidden bands, drawn for groups of samples."""

import numpy as np
import pytest
import torch

from pretrain.config.data import SensorsConfig
from pretrain.data.made_sensors import MOST_RESPONSES, RUNS, draw_hidden, draw_sensors, made_spectrum
from pretrain.models.spectrum import Spectrum

GROUPS, BANDS = 40, 100
CENTERS = np.tile(np.linspace(420, 2440, BANDS, dtype=np.float32), (GROUPS, 1))
WIDTHS = np.full_like(CENTERS, 20.0)
FIRSTS = np.arange(0, 8 * GROUPS, 8)


def _only(kind: str) -> SensorsConfig:
    return SensorsConfig(**(dict.fromkeys(SensorsConfig.KINDS, 0.0) | {kind: 1.0}))


def _spectrum(kind: str) -> Spectrum:
    drawn = draw_sensors(_only(kind), FIRSTS, 1, CENTERS, WIDTHS)
    bands = Spectrum(torch.from_numpy(CENTERS), torch.from_numpy(WIDTHS))
    return made_spectrum(bands, *map(torch.from_numpy, drawn))


def test_a_group_has_the_same_sensor_in_any_batch():
    whole = draw_sensors(SensorsConfig(), FIRSTS, 1, CENTERS, WIDTHS)
    part = draw_sensors(SensorsConfig(), FIRSTS[7:9], 1, CENTERS[7:9], WIDTHS[7:9])
    for one, other in zip(whole, part, strict=True):
        np.testing.assert_array_equal(one[7:9], other)


@pytest.mark.parametrize("kind", ["own", "subset", "range", "dropped"])
def test_sensors_of_the_tiles_own_bands_leave_some_out(kind):
    spectrum = _spectrum(kind)
    counts = spectrum.present.sum(1)
    assert (counts == BANDS).all() if kind == "own" else len(set(counts.tolist())) > 5
    assert counts.min() >= 8
    assert torch.equal(spectrum.response, torch.eye(BANDS).expand(GROUPS, -1, -1))
    if kind == "range":
        edges = spectrum.present.int().diff(dim=1).abs().sum(1)
        assert edges.max() <= 2


def test_gaussian_responses_are_means_over_bands_around_their_centers():
    spectrum = _spectrum("responses")
    rows, present = spectrum.response, spectrum.present
    assert 8 <= present.sum(1).max() <= MOST_RESPONSES
    torch.testing.assert_close(rows.sum(-1)[present], torch.ones(int(present.sum())))
    means = (rows * torch.from_numpy(CENTERS)[:, None]).sum(-1)
    assert (means - spectrum.center_nm)[present].abs().max() < 60


def test_a_response_without_a_band_within_half_its_width_is_no_band():
    bands = Spectrum(torch.tensor([[500.0, 510.0]]), torch.tensor([[10.0, 10.0]]))
    wanted = torch.tensor([[505.0, 900.0]]), torch.tensor([[20.0, 20.0]]), torch.tensor([True])
    assert made_spectrum(bands, *wanted).present.tolist() == [[True, False]]


def test_hidden_bands_are_runs_of_neighbors_of_about_the_share():
    widths = WIDTHS.copy()
    widths[:, 60:] = 0
    hidden = draw_hidden(0.5, FIRSTS, 1, CENTERS, widths)
    assert not hidden[:, 60:].any()
    assert hidden[:, :60].mean() == pytest.approx(0.5, abs=0.05)
    assert np.abs(np.diff(hidden[:, :60].astype(int))).sum(1).max() <= RUNS
    few = draw_hidden(0.01, FIRSTS, 1, CENTERS[:, :2], WIDTHS[:, :2])
    assert (few.sum(1) == 1).all()

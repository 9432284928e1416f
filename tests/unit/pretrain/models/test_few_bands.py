"""Fewer bands than an encoder's stem takes are told before anything runs, with the encoders that take them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.objectives import small_config
from support.small_encoder import small_description
from support.tiles import write_tile

from finetune.config import LabeledDataConfig
from finetune.encoders.encoder import EncoderFile
from pretrain.data.inputs import open_inputs
from pretrain.models.adapter import SpectralAdapter
from pretrain.models.registry import ENCODERS, build_encoder, outline_encoder
from pretrain.weights.convert import main as convert
from pretrain.weights.description import WeightsError, with_sensor
from pretrain.weights.files import load_encoder, save_encoder
from shards.errors import ConfigError
from shards.pack.build import PackConfig, pack
from shards.sensors.sensor import get_sensor

CHRIS = 62


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 62 bands, and their band table."""
    folder = tmp_path_factory.mktemp("few")
    rows = [f"{410 + 10 * band},10" for band in range(CHRIS)]
    (folder / "chris.csv").write_text("\n".join(["wavelength_nm,fwhm_nm", *rows]))
    for number in range(4):
        values = np.random.default_rng(number).integers(0, 3000, (CHRIS, 8, 8)).astype(np.int16)
        write_tile(folder / "tiles" / f"t{number}.tif", values)
    pack(folder / "tiles", folder / "shards", PackConfig(sensor=str(folder / "chris.csv")))
    return folder


@torch.no_grad()
def test_the_adapter_takes_as_few_bands_as_is_said_and_no_fewer():
    adapter = SpectralAdapter()
    fewest = outline_encoder("spec_vit_tiny").min_bands
    assert fewest == 75
    assert adapter(torch.zeros(1, 2, fewest)).shape == (1, 2, 128)
    with pytest.raises(RuntimeError):
        adapter(torch.zeros(1, 2, fewest - 1))


@pytest.mark.parametrize("name", [name for name in ENCODERS.names() if name.startswith("spec_")])
def test_no_encoder_with_an_adapter_is_built_for_fewer(name):
    with pytest.raises(ValueError, match=f"{name} needs at least 75 bands, not 74"), torch.device("meta"):
        build_encoder(name, bands=74)


def test_pretraining_refuses_them_before_it_begins_and_its_advice_works(lab, tmp_path):
    sections = {"data": {"shards": str(lab / "shards"), "holdout": 0.0}, "run": {"dir": str(tmp_path)}}
    config = small_config({"name": "mae", "mask_ratio": 0.5}, **sections)
    with pytest.raises(
        ConfigError, match=r"'model\.name': spec_vit_tiny needs at least 75 .*, not 62.*vit_tiny, vit_small.*chris"
    ):
        open_inputs(config)
    for name in ("vit_tiny", "vit_small"):
        advised = small_config({"name": "mae", "mask_ratio": 0.5}, **sections, model={"name": name})
        inputs = open_inputs(advised)
        encoder = build_encoder(name, 8, 4, bands=inputs.manifests[0].tile_shape[0])
        assert encoder(torch.zeros(1, CHRIS, 8, 8)).shape[0] == 1


def test_fine_tuning_refuses_them_as_native_bands_and_resamples(lab):
    chris, known = get_sensor(str(lab / "chris.csv")), small_description()
    encoder = EncoderFile("x", known, 8, 4, (False,) * 4, chris, "", True, False)
    with pytest.raises(ConfigError, match=r"'data\.bands': native.*at least 75 bands, and chris has 62: use resample"):
        encoder.describe_input(_data("native"), None)
    assert np.shape(encoder.describe_input(_data("resample"), None).response) == (80, CHRIS)
    thermal = replace(chris, wavelength_nm=tuple(nm + 9000 for nm in chris.wavelength_nm))
    with pytest.raises(ConfigError, match="no band of chris overlaps"):
        replace(encoder, sensor=thermal).describe_input(_data("resample"), None)


def _data(bands: str) -> LabeledDataConfig:
    return LabeledDataConfig(shards="x", bands=bands)


def test_a_description_of_fewer_bands_is_refused(lab, tmp_path, capsys):
    unknown = replace(small_description(), wavelength_nm=[], fwhm_nm=[], bands=0)
    with pytest.raises(WeightsError, match=r"chris\.csv': spec_vit_tiny needs at least 75 bands, not 62"):
        with_sensor(unknown, str(lab / "chris.csv"))
    encoder = build_encoder("spec_vit_tiny", 8, 4)
    wrong = small_description(wavelength_nm=[500.0] * CHRIS, fwhm_nm=[5.0] * CHRIS, bands=CHRIS)
    save_encoder(tmp_path / "wrong.safetensors", encoder.state_dict(), wrong)
    with pytest.raises(WeightsError, match=r"wrong\.safetensors: spec_vit_tiny needs at least 75"):
        load_encoder(tmp_path / "wrong.safetensors")
    save_encoder(tmp_path / "right.safetensors", encoder.state_dict(), small_description())
    capsys.readouterr()
    arguments = [str(tmp_path / "right.safetensors"), str(tmp_path / "out.safetensors")]
    assert convert([*arguments, "--sensor", str(lab / "chris.csv")]) == 2
    assert "at least 75 bands, not 62" in capsys.readouterr().err

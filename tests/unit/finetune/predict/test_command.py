"""`python -m finetune predict`: what it says and does, and what a user did wrong."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from support.small_encoder import BANDS
from support.task_models import CPU, small_model
from support.tiles import NODATA, spectra, write_tile

from finetune.__main__ import main
from finetune.encoders.model_file import load_task_model, save_task_model
from finetune.predict import scene_map
from finetune.predict.scene_map import predict_scene
from pretrain.weights.files import save_encoder
from shards.errors import ConfigError, SourceError


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A folder with model.safetensors, encoder.safetensors and scene.tif."""
    folder, model = tmp_path_factory.mktemp("command"), small_model()
    save_task_model(folder / "model.safetensors", model)
    save_encoder(folder / "encoder.safetensors", model.encoder.state_dict(), model.description)
    write_tile(folder / "scene.tif", spectra(1, 20, BANDS), nodata=NODATA)
    return folder


def _main(command, tmp_path, *options, model="model.safetensors", scene="scene.tif"):
    return main(["predict", str(command / model), str(command / scene), str(tmp_path / "out.tif"), *options])


def test_the_command_says_what_it_did(command, tmp_path, capsys):
    assert _main(command, tmp_path, "--device", "cpu", "--overlap", "0.25") == 0
    told = capsys.readouterr().out
    assert "20 x 20 px from 9 windows" in told
    assert "0.25%  no data" in told
    assert str(tmp_path / "out.tif") in told
    assert _main(command, tmp_path, "--overwrite", model="encoder.safetensors") == 0
    with rasterio.open(tmp_path / "out.tif") as file:
        assert (file.count, file.height, file.width) == (192, 5, 5)


def test_a_model_from_its_file_maps_as_the_model_itself(command, tmp_path):
    assert _main(command, tmp_path) == 0
    predict_scene(small_model(), command / "scene.tif", tmp_path / "b.tif", 0.5, 1, CPU)
    with rasterio.open(tmp_path / "out.tif") as first, rasterio.open(tmp_path / "b.tif") as second:
        assert np.array_equal(first.read(), second.read())


def test_stopped_by_hand_it_leaves_nothing(command, tmp_path, capsys, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(scene_map, "predictor", lambda *_: stopped)
    assert _main(command, tmp_path) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def _damage(name):
    def change(folder: Path) -> dict[str, str]:
        (folder / name).write_bytes((folder / name).read_bytes()[:-5000])
        return {}

    return change


def _header(old: bytes, new: bytes):
    """Bytes of the model's header changed, as many as before."""

    def change(folder: Path) -> dict[str, str]:
        data = (folder / "model.safetensors").read_bytes()
        assert old in data
        assert len(old) == len(new)
        (folder / "model.safetensors").write_bytes(data.replace(old, new, 1))
        return {}

    return change


def _other_scene(values, **options):
    def change(folder: Path) -> dict[str, str]:
        write_tile(folder / "scene.tif", values, **options)
        return {}

    return change


def _text(folder: Path) -> dict[str, str]:
    (folder / "scene.tif").write_text("no image")
    return {}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda _: {"scene": "none.tif"}, "none.tif: no such scene"),
        (lambda _: {"scene": "."}, "no product of a sensor that is known"),
        (lambda _: {"model": "none.safetensors"}, "none.safetensors"),
        (_text, "scene.tif: not a readable raster"),
        (_damage("scene.tif"), "scene.tif: "),
        (_damage("model.safetensors"), "model.safetensors: "),
        (_header(b"dilate", b"dilute"), "model.safetensors: its description is damaged"),
        (_header(b"head.segm", b"head.sgem"), "model.safetensors: its description is damaged or doesn't fit"),
        (_other_scene(spectra(1, 9, 60)), "scene.tif: 60 bands without wavelengths"),
        (_other_scene(spectra(1, 9, 80), wavelengths=[500.0 + 5 * band for band in range(80)]), "wavelengths are not"),
        (_other_scene(spectra(1, 9, 80).astype(np.uint16)), "scene.tif: value 32768 in band 1 is beyond int16"),
    ],
)
def test_what_a_user_did_wrong_is_one_line(command, tmp_path, capsys, change, told):
    folder = tmp_path / "in"
    shutil.copytree(command, folder)
    assert _main(folder, tmp_path, **change(folder)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert told in error
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_output_is_not_replaced_unasked(command, tmp_path, capsys):
    (tmp_path / "out.tif").write_text("mine")
    assert _main(command, tmp_path) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out.tif").read_text() == "mine"
    scene, model = str(command / "scene.tif"), str(command / "model.safetensors")
    assert main(["predict", model, scene, scene, "--overwrite"]) == 2
    assert "belongs to the scene" in capsys.readouterr().err
    assert main(["predict", model, scene, str(tmp_path / "none" / "out.tif")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert _main(command, tmp_path, "--overwrite", "--device", "warp") == 2
    assert "--device warp" in capsys.readouterr().err


def test_a_model_without_wavelengths_is_refused(tmp_path):
    model = small_model(wavelength_nm=[], fwhm_nm=[], sensor="unknown")
    scene = write_tile(tmp_path / "scene.tif", spectra(1, 9, BANDS))
    with pytest.raises(ConfigError, match="doesn't say which"):
        predict_scene(model, scene, tmp_path / "map.tif", 0.5, 1, CPU)


def test_a_scene_of_radiance_in_fractions_is_refused(tmp_path):
    scene = write_tile(tmp_path / "scene.tif", spectra(1, 9, BANDS).astype(np.float32) / 64)
    with pytest.raises(SourceError, match="is not a whole number: store reflectance x 10000"):
        predict_scene(small_model(), scene, tmp_path / "map.tif", 0.5, 1, CPU)


def test_an_encoder_file_loads_as_a_model_without_a_head(command):
    assert load_task_model(command / "encoder.safetensors").task is None

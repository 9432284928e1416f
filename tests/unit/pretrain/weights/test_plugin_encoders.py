"""Encoders that a plugin registers are exported, described, loaded and found in state dicts like the project's own."""

import json

import pytest
import torch
from safetensors.torch import save_file
from support.foreign_checkpoints import our_checkpoint
from torch import nn

import spectralforge
from pretrain.models.registry import build_encoder
from pretrain.weights.description import WeightsError
from pretrain.weights.export import export_encoder
from pretrain.weights.files import load_encoder
from pretrain.weights.pretrained import PretrainedEncoder
from shards.plugins import load_plugins

BANDS, NAME = 80, "mean_spectrum"
PLUGIN = f"""
import torch
from torch import nn

from pretrain.models.encoder import Encoder
from pretrain.models.registry import ENCODERS


@ENCODERS.register("{NAME}")
class MeanSpectrum(Encoder):
    min_bands = 0

    def __init__(self, bands, width=8, **_):
        super().__init__()
        self.feature_dim, self.stride, self.head = width, 1, nn.Conv2d(bands, width, 1)

    def _pooled(self, images):
        return self._map(images).mean((2, 3))

    def _map(self, images):
        return self.head(images)
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    path = tmp_path_factory.mktemp("lab") / "mean_spectrum.py"
    path.write_text(PLUGIN)
    load_plugins([str(path)], "test")
    return path


@pytest.fixture(scope="module")
def exported(plugin, tmp_path_factory):
    """The export of a run with an encoder of the plugin, which has an option of its own."""
    folder = tmp_path_factory.mktemp("run")
    model = {"name": NAME, "image_size": 16, "patch_size": 4, "bn_group": 8, "attention": "auto", "width": 6}
    weights = build_encoder(NAME, bands=BANDS, width=6).state_dict()
    our_checkpoint(folder, 10, weights, config={"model": model, "plugins": [str(plugin)]})
    export_encoder(folder, folder / "encoder.safetensors")
    return folder / "encoder.safetensors", weights


def test_an_export_is_loaded_with_the_options_of_its_encoder(exported):
    encoder, told = load_encoder(exported[0])
    assert (told.architecture, told.config["plugins"], encoder.feature_dim) == (NAME, ["mean_spectrum.py"], 6)
    assert all(torch.equal(one, exported[1][name]) for name, one in encoder.state_dict().items())
    assert f"# {NAME}, mae" in exported[0].with_suffix(".md").read_text()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_state_dict_that_holds_one_gives_its_features(exported, plugin, tmp_path, suffix):
    encoder = spectralforge.load_encoder(exported[0], plugins=[str(plugin)])
    assert isinstance(encoder, PretrainedEncoder)
    state = nn.ModuleDict({"net": encoder, "head": nn.Linear(6, 2)}).state_dict()
    path = tmp_path / f"file{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    tiles = torch.randint(0, 3000, (2, BANDS, 16, 16), dtype=torch.int16)
    assert torch.equal(spectralforge.load_encoder(path).encode(tiles), encoder.encode(tiles))


def test_where_the_plugin_is_not_loaded_the_line_names_it(exported, tmp_path):
    data = exported[0].read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["spectralforge"] = header["__metadata__"]["spectralforge"].replace(NAME, "other_name")
    text = json.dumps(header).encode()
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(WeightsError, match="unknown encoder 'other_name'") as raised:
        load_encoder(path)
    assert "its run had plugins=['other_name.py']: give them to load_encoder" in str(raised.value)
    assert "\n" not in str(raised.value)

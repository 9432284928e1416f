"""Encoders in a Python file: the adapters of docs/extending.md, and files that can't be used."""

import re
import sys
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from support.processes import REPOSITORY
from torch import Tensor, nn

from finetune.config import FinetuneConfig
from finetune.data.items import Item
from finetune.encoders.function_encoder import FunctionFile, fit_function
from finetune.tasks import get_task
from shards.errors import ConfigError
from shards.sensors.sensor import get_sensor

PAGE = (REPOSITORY / "docs/extending.md").read_text()
ADAPTERS = dict(re.findall(r'^```python title="([^"]+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))
ENMAP = get_sensor("enmap")
NUMBERS = count()  # a file is imported once in a process, by its name


def _fit(folder: Path, text: str, task: str = "enmap_cdl", side: int = 16) -> FunctionFile:
    """Fit the encoder in a text to tiles of ``side`` pixels."""
    path = folder / f"encoder_{next(NUMBERS)}.py"
    path.write_text(text)
    sections = {"run": {"dir": "x"}, "task": task, "data": {"root": "x"}, "checkpoint": str(path)}
    config = FinetuneConfig.model_validate(sections, strict=False)
    image = np.zeros((ENMAP.num_bands, side, side), np.int16)
    items = [Item("tile", "0", "", "1", image.copy, np.zeros((side, side)).copy)]
    return fit_function(config, get_task(task), dict.fromkeys(("train", "val", "test"), items))


def _features(file: FunctionFile) -> tuple[torch.Size, torch.Size]:
    """Return the shapes of the map and of the pooled features of two windows."""
    encoder = file.build()
    encoder.default = SimpleNamespace(center_nm=torch.tensor([ENMAP.wavelength_nm]))
    images = torch.rand(2, ENMAP.num_bands, file.size, file.size)
    return encoder(images, "map").shape, encoder(images).shape


class Dofa(nn.Module):
    """A stand-in with DOFA's interface."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 12)])

    def forward_features(self, x: Tensor, wavelengths: list[float]) -> Tensor:
        assert x.shape[2:] == (224, 224)
        assert max(wavelengths) < 2.6  # micrometers
        return self.blocks[0](torch.zeros(len(x), 1 + 14 * 14, 3)).mean(1)


class Panopticon(nn.Module):
    """A stand-in with Panopticon's interface."""

    def get_intermediate_layers(self, x: dict[str, Tensor], n: int, return_class_token: bool) -> tuple:
        assert x["imgs"].shape[2:] == (224, 224)
        assert x["chn_ids"].shape == x["imgs"].shape[:2]
        return ((torch.zeros(len(x["imgs"]), 16 * 16, 12), torch.zeros(len(x["imgs"]), 12)),)


class HyperFree(nn.Module):
    """A stand-in with the interface of HyperFree's image encoder."""

    def forward(self, x: Tensor, test_mode: bool, input_wavelength: list[float], GSD: list[float]) -> list[Tensor]:
        assert test_mode
        assert len(input_wavelength) == x.shape[1]
        assert len(GSD) == len(x)
        return [torch.zeros(len(x), 12, side, side) for side in (32, 16)]


def _module(name: str, **attributes: object) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(attributes)
    return module


@pytest.mark.parametrize(("name", "size", "grid"), [("dofa", 112, 14), ("panopticon", 128, 16), ("hyperfree", 128, 16)])
def test_adapters_of_the_page_fit_the_interfaces_of_their_models(tmp_path, monkeypatch, name, size, grid):
    weights = SimpleNamespace(DOFA_MAE=None)
    torchgeo = {"DOFABase16_Weights": weights, "dofa_base_patch16_224": lambda weights: Dofa()}
    monkeypatch.setitem(sys.modules, "torchgeo", _module("torchgeo"))
    monkeypatch.setitem(sys.modules, "torchgeo.models", _module("torchgeo.models", **torchgeo))
    monkeypatch.setitem(sys.modules, "hyperfree", _module("hyperfree", load_image_encoder=HyperFree))
    monkeypatch.setattr(torch.hub, "load", lambda repository, model: Panopticon())
    file = _fit(tmp_path, ADAPTERS[f"{name}.py"], side=128)
    assert (file.size, file.stride) == (size, size // grid)
    assert _features(file) == ((2, 12, grid, grid), (2, 12))


def test_the_example_of_the_page_encodes_tiles(tmp_path):
    file = _fit(tmp_path, ADAPTERS["band_ratios.py"])
    assert (file.size, file.stride) == (16, 4)
    assert _features(file) == ((2, 45, 4, 4), (2, 45))


def test_weights_and_text_identify_an_encoder(tmp_path):
    text = "import torch\nfrom torch import nn\nmodel = nn.Conv2d(202, 3, 1)\nnn.init.constant_(model.weight, {})\n"
    text += "nn.init.zeros_(model.bias)\ndef encode(tiles, wavelengths):\n    return model(tiles)\n"
    same = [_fit(tmp_path, text.format(0.5)).sha256 for _ in range(2)]
    assert same[0] == same[1]
    assert _fit(tmp_path, text.format(0.6)).sha256 not in same
    assert _fit(tmp_path, text.format(0.5) + "# changed\n").sha256 not in same


@pytest.mark.parametrize(
    ("task", "text", "says"),
    [
        ("enmap_cdl", "x = 1\n", "define encode(tiles, wavelengths), which returns features"),
        ("enmap_cdl", "import no_such_package\n", "No module named 'no_such_package'"),
        (
            "enmap_cdl",
            "def encode(tiles):\n    return tiles\n",
            "encode fails on tiles (1, 202, 16, 16): TypeError: encode() takes 1 positional argument but 2 were given",
        ),
        (
            "enmap_cdl",
            "def encode(tiles, wavelengths):\n    return tiles.mean((2, 3))\n",
            "encode returned (1, 202) for tiles (1, 202, 16, 16): return a tensor (B, D, h, w) whose sides divide",
        ),
        (
            "enmap_cdl",
            "def encode(tiles, wavelengths):\n    return tiles[..., :6, :6]\n",
            "encode returned (1, 202, 6, 6) for tiles (1, 202, 16, 16)",
        ),
        (
            "enmap_corine",
            "def encode(tiles, wavelengths):\n    return tiles.numpy()\n",
            "encode returned ndarray for tiles (1, 202, 16, 16): return a tensor (B, D) or (B, D, h, w)",
        ),
        ("enmap_cdl", "size = '8'\ndef encode(tiles, wavelengths): ...\n", "size = '8': give a number of pixels"),
    ],
)
def test_a_file_that_can_not_be_used_is_one_line(tmp_path, task, text, says):
    with pytest.raises(ConfigError, match=re.escape(says)) as error:
        _fit(tmp_path, text, task)
    assert "\n" not in str(error.value)
    assert "encoder_" in str(error.value)


def test_a_tile_with_one_label_needs_one_vector(tmp_path):
    file = _fit(tmp_path, "def encode(tiles, wavelengths):\n    return tiles.mean((2, 3))\n", "enmap_corine")
    assert (file.size, file.stride) == (16, 16)

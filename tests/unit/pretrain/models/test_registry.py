"""Encoders and stems of other packages: built by name, counted, trained with layer-wise rates, exported and loaded."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.small_encoder import small_description
from torch import Tensor, nn

from pretrain.engine.optimizers import optimizer_state, parameter_groups
from pretrain.models.encoder import Encoder
from pretrain.models.registry import ENCODERS, STEMS, build_encoder, outline_encoder
from pretrain.models.stem import Stem
from pretrain.weights.files import load_encoder, save_encoder

BANDS = 20


class PairMeans(Stem):
    """Means of neighboring bands."""

    def __init__(self, bands: int, bn_group: int | None = None, size: int = 2) -> None:
        super().__init__()
        self.size, self.channels, self.min_bands = size, bands // size, size

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.unflatten(2, (self.channels, self.size)).mean(3)


class Pixelwise(Encoder):
    """A linear map of each pixel's spectrum."""

    stride = 1

    def __init__(self, bands: int, width: int, **_: Any) -> None:
        super().__init__()
        self.bands, self.feature_dim = bands, width
        self.project = nn.Linear(bands, width)

    def _map(self, images: Tensor) -> Tensor:
        return self.project(images.movedim(1, -1)).movedim(-1, 1)

    def _pooled(self, images: Any) -> Tensor:
        return self._map(images).mean((2, 3))


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    STEMS.register("pair_means")(PairMeans)
    ENCODERS.register("pixelwise")(Pixelwise)
    yield
    for registry, name in ((STEMS, "pair_means"), (ENCODERS, "pixelwise")):
        del registry._targets[name], registry._configs[name]


@torch.no_grad()
@pytest.mark.parametrize("name", ["spec_vit_tiny", "spec_resnet50"])
def test_a_stem_by_name_takes_the_place_of_the_adapter(name):
    encoder = build_encoder(name, 16, 4, bands=BANDS, stem={"name": "pair_means", "size": 4}).eval()
    assert isinstance(encoder.stem if name == "spec_vit_tiny" else encoder.spectral_adapter, PairMeans)
    assert encoder.spectral_adapter.channels == 5
    assert encoder(torch.randn(2, BANDS, 16, 16)).shape == (2, encoder.feature_dim)
    assert encoder.flops(BANDS, 16)["stem"] == 0


@torch.no_grad()
def test_no_stem_hands_the_bands_to_the_trunk():
    encoder = build_encoder("spec_vit_tiny", 8, 4, bands=BANDS, stem={"name": "none"}).eval()
    plain = build_encoder("vit_tiny", 8, 4, bands=BANDS).eval()
    plain.load_state_dict({name.removeprefix("vit_core."): value for name, value in encoder.state_dict().items()})
    images = torch.randn(2, BANDS, 8, 8)
    assert torch.equal(encoder(images), plain(images))
    assert encoder.training_flops(BANDS, 8)["patch_embed"] == plain.training_flops(BANDS, 8)["patch_embed"]
    with pytest.raises(ValueError, match="vit_tiny takes the bands directly, without a stem 'pair_means'"):
        build_encoder("vit_tiny", 8, 4, bands=BANDS, stem={"name": "pair_means"})


def test_fewer_bands_than_a_stem_takes_are_refused():
    with pytest.raises(ValueError, match="spec_vit_tiny needs at least 4 bands, not 3"):
        build_encoder("spec_vit_tiny", 8, 4, bands=3, stem={"name": "pair_means", "size": 4})


def test_an_encoder_with_two_methods_has_all_others():
    encoder = outline_encoder("pixelwise", bands=BANDS, width=6)
    assert encoder.flops(BANDS, 8) == {"encoder": 2 * 64 * BANDS * 6}
    assert encoder.training_flops(BANDS, 8) == {"encoder": 3 * 2 * 64 * BANDS * 6}
    encoder = build_encoder("pixelwise", bands=BANDS, width=6)
    images = torch.randn(2, BANDS, 8, 8)
    (last,) = encoder.get_intermediate_layers(images, n=1, reshape=True)
    assert torch.equal(last, encoder.dense_features(images))
    with pytest.raises(ValueError, match="this encoder has 1"):
        encoder.get_intermediate_layers(images, n=2)
    model = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(6, 2)})
    scales = {group["lr_scale"]: len(group["params"]) for group in parameter_groups(model, 0.05, 0.5)}
    assert scales.keys() == {0.5, 1.0}


def test_its_options_are_in_its_file(tmp_path):
    encoder = build_encoder("pixelwise", bands=BANDS, width=6)
    described = small_description(architecture="pixelwise", bands=BANDS, config={"model": {"name": "x", "width": 6}})
    described = replace(described, wavelength_nm=[500.0 + band for band in range(BANDS)], fwhm_nm=[1.0] * BANDS)
    save_encoder(tmp_path / "encoder.safetensors", encoder.state_dict(), described)
    loaded, read = load_encoder(tmp_path / "encoder.safetensors")
    assert isinstance(loaded, Pixelwise)
    assert torch.equal(loaded.project.weight, encoder.project.weight)
    assert not read.takes_any_bands


@pytest.mark.parametrize(
    ("optimizer", "moments", "counts"),
    [
        (torch.optim.AdamW, ("exp_avg", "exp_avg_sq"), True),
        (torch.optim.SGD, (), False),
        (torch.optim.RMSprop, ("square_avg",), True),
        (torch.optim.Adagrad, ("sum",), True),
    ],
)
def test_what_an_optimizer_keeps_is_found_by_a_trial_step(optimizer, moments, counts):
    weight = nn.Parameter(torch.ones(3, 2))
    built = optimizer([weight], lr=0.1)
    before = len(built.state)
    found = optimizer_state(built)
    assert (found.moments, found.counts_steps) == (moments, counts)
    assert torch.equal(weight, torch.ones(3, 2)) and len(built.state) == before

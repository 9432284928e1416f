"""Training that begins from a file: its encoder, strictly; what fits no run is one line, and lineage is kept."""

import hashlib
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from support.foreign_checkpoints import lightning, mae, our_checkpoint, prefixed
from support.objectives import normalizer, small_config
from support.plain_engine import PlainEngine
from support.range_server import RangeServer
from support.small_encoder import BANDS, SIZE, small_description, small_encoder

from pretrain.models.initialize import initialize
from pretrain.models.patches import resize_positions
from pretrain.models.published import SPEC_VITS
from pretrain.models.registry import build_encoder
from pretrain.objectives import build_objective
from pretrain.weights.description import WeightsError
from pretrain.weights.export import export_encoder
from pretrain.weights.files import load_encoder, save_encoder
from pretrain.weights.initial_weights import read_initial_weights
from shards.errors import ConfigError

OBJECTIVES = {
    "mae": {"mask_ratio": 0.5, "decoder": {"width": 32, "depth": 1, "heads": 2}},
    "moco": {"name": "moco", "queue": 8, "hidden": 16, "dim": 8},
    "dino": {"name": "dino", "hidden": 16, "bottleneck": 8, "prototypes": 10},
}
CENTERS = small_description().wavelength_nm


def _manifest(bands: int = BANDS, sensor: str = "enmap", shift: float = 0.0):
    centers = [400.25 + shift + 6.5 * band for band in range(bands)]
    columns = {"wavelength_nm": centers, "fwhm_nm": [6.5] * bands, "mean": [0.0] * bands, "std": [1.0] * bands}
    return SimpleNamespace(tile_shape=(bands, 12, 12), sensor=sensor, **columns)


def _config(init, objective="mae", accept=(), **model):
    values = small_config(OBJECTIVES[objective], model=model, checkpoint={"accept": accept})
    return values.model_copy(update={"init": None if init is None else str(init)})


def _begin(init, objective="mae", manifest=None, accept=(), **model):
    config, manifest = _config(init, objective, accept, **model), manifest or _manifest()
    return build_objective(config, normalizer(), [manifest], read_initial_weights(config, [manifest]))


@pytest.fixture(scope="module", autouse=True)
def _shallow():
    """One block says as much as twelve, and takes a tenth of the time to draw."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPEC_VITS, "spec_vit_tiny", replace(SPEC_VITS["spec_vit_tiny"], depth=1))
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("init") / "encoder.safetensors"
    save_encoder(path, small_encoder().state_dict(), small_description())
    return path


def _same(module, weights):
    found = module.state_dict()
    return found.keys() == weights.keys() and all(torch.equal(found[name], one) for name, one in weights.items())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_begins_from_the_encoder_and_draws_the_rest(exported, name, capsys):
    begun, drawn = _begin(exported, name), _begin(None, name)
    weights = small_encoder().state_dict()
    assert _same(begun.module.encoder, weights)
    for part, module in drawn.module.named_children():
        if part != "encoder":
            assert _same(begun.module.get_submodule(part), module.state_dict())
    if begun.momentum is not None:
        for key, own in begun.module.named_parameters():
            assert torch.equal(begun.momentum.shards[key], own.flatten())
    out = capsys.readouterr().out
    assert f"initialized from {exported} (sha256 " in out
    assert re.search(r"^matched +39 ", out, re.M)
    assert re.search(r"^(decoder|projection_head|head): new$", out, re.M)


@pytest.mark.parametrize(("name", "part"), [("mae", "decoder"), ("moco", "projection_head"), ("dino", "head")])
def test_our_checkpoint_of_the_same_objective_gives_its_heads_too(tmp_path, name, part, capsys):
    trained = _begin(None, name).module
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.5)
    heads = prefixed(f"{part}.", trained.get_submodule(part).state_dict())
    weights = trained.encoder.state_dict()
    config = {"objective": {"name": name}, "model": {"name": "spec_vit_tiny", "image_size": 8, "patch_size": 4}}
    teacher = weights if name == "dino" else None
    our_checkpoint(tmp_path / "run", 10, weights, teacher, config, heads)
    bands = _manifest()
    bands.wavelength_nm = [400.0 + 10 * n for n in range(80)]
    begun = _begin(tmp_path / "run", name, bands).module
    assert _same(begun.encoder, weights)
    assert _same(begun.get_submodule(part), trained.get_submodule(part).state_dict())
    assert f"{part}: also taken from the file" in capsys.readouterr().out
    other = "moco" if name == "mae" else "mae"
    _begin(tmp_path / "run", other, bands)
    assert "taken from the file" not in capsys.readouterr().out


def test_files_that_say_nothing_of_themselves_are_begun_from(tmp_path, capsys):
    weights = small_encoder(2).state_dict()
    torch.save(lightning(mae(weights)), tmp_path / "mae.ckpt")
    assert _same(_begin(tmp_path / "mae.ckpt", "dino").module.encoder, weights)
    assert "the file doesn't say which bands it was trained on" in capsys.readouterr().out


def test_positions_are_interpolated_to_the_image_size_of_the_run(exported, capsys):
    weights = small_encoder().state_dict()
    for name in ("mae", "dino"):
        begun = _begin(exported, name, image_size=12).module.encoder.state_dict()
        assert torch.equal(begun["vit_core.pos_embed"], resize_positions(weights["vit_core.pos_embed"], (3, 3)))
    assert (
        "position embeddings interpolated: vit_core.pos_embed: (1, 5, 192) to (1, 10, 192)" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "spec_vit_small"}, "model.name is spec_vit_tiny there, but spec_vit_small in this run; set "),
        ({"patch_size": 2}, "model.patch_size is 4 there, but 2 in this run; set model.patch_size=4"),
        ({"name": "vit_tiny"}, "model.name is spec_vit_tiny there"),
        ({"manifest": _manifest(78)}, "enmap, 80 bands from 400.2 to 913.8 nm, but data.shards has enmap, 78 bands"),
        ({"manifest": _manifest(shift=3.0)}, "enmap, 80 bands from 403.2 to 916.8 nm: other bands"),
        ({"manifest": _manifest(sensor="prisma", shift=3.0)}, "data.shards has prisma"),
    ],
)
def test_an_encoder_of_another_model_or_sensor_is_one_line(exported, options, says):
    with pytest.raises(ConfigError) as raised:
        _begin(exported, "dino", **options)
    text = str(raised.value)
    assert text.startswith(f"key 'init': {exported}")
    assert says in text and "\n" not in text


def test_other_bands_can_be_accepted_where_the_encoder_takes_any_number(exported, tmp_path, capsys):
    manifest = _manifest(78, "prisma")
    assert _same(_begin(exported, "dino", manifest, accept=("init",)).module.encoder, small_encoder().state_dict())
    assert "accepted by checkpoint.accept" in capsys.readouterr().out
    plain = build_encoder("vit_tiny", 8, bands=BANDS)
    initialize(plain, "test", 1)
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    with pytest.raises(ConfigError, match="takes only its own bands"):
        _begin(tmp_path / "plain.safetensors", "dino", manifest, accept=("init",), name="vit_tiny")


def test_what_is_no_encoder_in_full_is_refused(exported, tmp_path):
    weights = small_encoder().state_dict()
    del weights["vit_core.norm.bias"]
    save_file(weights, tmp_path / "less.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing \(e.g. vit_core.norm.bias\)"):
        _begin(tmp_path / "less.safetensors")
    with pytest.raises(WeightsError, match="no such encoder file"):
        _begin(tmp_path / "none.safetensors")


def test_a_url_is_as_good_as_a_file(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRALFORGE_CACHE", str(tmp_path / "cache"))
    with RangeServer(exported.parent) as server:
        assert _same(_begin(f"{server.url}/encoder.safetensors").module.encoder, small_encoder().state_dict())


def test_lineage_goes_from_the_file_to_checkpoints_exports_and_cards(exported, tmp_path):
    initial = read_initial_weights(_config(exported), [_manifest()])
    assert initial.lineage["sha256"] == hashlib.sha256(exported.read_bytes()).hexdigest()
    assert (initial.lineage["objective"], initial.lineage["samples_seen"]) == ("mae", 12345)
    step = our_checkpoint(tmp_path / "run", 5, small_encoder().state_dict(), config={"init": "/home/me/e.safetensors"})
    state = json.loads((step / "state.json").read_text()) | {"init": initial.lineage}
    (step / "state.json").write_text(json.dumps(state))
    seals = json.loads((step / "checkpoint.json").read_text())
    data = (step / "state.json").read_bytes()
    seals["files"]["state.json"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (step / "checkpoint.json").write_text(json.dumps(seals))
    export_encoder(tmp_path / "run", tmp_path / "encoder.safetensors")
    told = load_encoder(tmp_path / "encoder.safetensors")[1]
    assert told.init == initial.lineage
    assert told.config["init"] == "e.safetensors"
    card = (tmp_path / "encoder.md").read_text()
    assert f"Initialized from: `encoder.safetensors` (SHA-256 `{initial.lineage['sha256']}`, mae, 12345 tiles" in card
    again = _config(tmp_path / "encoder.safetensors", accept=("init",))
    assert read_initial_weights(again, [_manifest()]).lineage["init"] == initial.lineage


def test_tiles_of_bands_that_an_encoder_by_wavelength_was_not_trained_on_are_a_warning(tmp_path, capsys):
    stem = {"name": "wave"}
    network = build_encoder("spec_vit_tiny", SIZE, 4, stem=stem)
    initialize(network, "small", 1)
    described = small_description(config={"model": {"stem": stem}})
    save_encoder(tmp_path / "wave.safetensors", network.state_dict(), described)
    config = _config(tmp_path / "wave.safetensors", stem=stem)
    read_initial_weights(config, [_manifest(), _manifest(3, "hot", shift=3000.0)])
    outside = (
        "WARNING: key 'init': hot: 3 of 3 bands, from 3400 to 3413 nm, are outside of what this encoder was trained on"
    )
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{outside}, 400 to 914 nm")


def test_a_run_without_a_file_begins_as_ever(exported):
    assert read_initial_weights(_config(None), [_manifest()]) is None
    assert PlainEngine(_begin(None).module).module.encoder.image_size == SIZE

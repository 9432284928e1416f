"""Whatever this project or a user's own module writes is read again: the same weights, and the same features."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.foreign_checkpoints import prefixed
from support.range_server import RangeServer
from support.small_encoder import BANDS, SIZE, small_description, small_encoder
from torch import nn
from torch.optim.swa_utils import AveragedModel

import spectralforge
from finetune.encoders.model_file import InputDescription, TaskModel, save_task_model
from finetune.heads.build import build_head
from finetune.tasks import get_task
from finetune.tasks.kinds.kind import kind_of
from pretrain.models.initialize import initialize
from pretrain.models.published import SPEC_VITS
from pretrain.models.registry import build_encoder
from pretrain.weights.description import WeightsError
from pretrain.weights.files import load_encoder
from pretrain.weights.pretrained import PretrainedEncoder
from pretrain.weights.torch_files import read_torch

TILES = np.random.default_rng(0).integers(0, 3000, (2, BANDS, SIZE, SIZE), dtype=np.int16)


class UsersNet(nn.Module):
    """A user's model: an encoder under attributes of any name, and layers whose names an encoder has, too."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.resnet = nn.ModuleDict({"blocks": nn.ModuleDict({"network": encoder})})
        self.decode_head = nn.Sequential(nn.Conv2d(192, 8, 1), nn.BatchNorm2d(8))
        self.norm, self.conv1 = nn.LayerNorm(3), nn.Conv2d(3, 3, 1)


@pytest.fixture(scope="module", autouse=True)
def _shallow():
    """One block says as much as twelve, and takes a tenth of the time to draw."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPEC_VITS, "spec_vit_tiny", replace(SPEC_VITS["spec_vit_tiny"], depth=2))
        yield


@pytest.fixture(scope="module")
def encoder() -> PretrainedEncoder:
    return PretrainedEncoder(small_encoder(), small_description(objective="dino", network="teacher"))


@pytest.fixture(scope="module")
def features(encoder):
    return encoder.encode(TILES)


def _error(path, **options) -> str:
    with pytest.raises(WeightsError) as raised:
        load_encoder(path, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


STATES = {
    "its own": lambda e: e.state_dict(),
    "a user's module": lambda e: UsersNet(e).state_dict(),
    "compiled": lambda e: torch.compile(UsersNet(e)).state_dict(),
    "compiled inside": lambda e: UsersNet(PretrainedEncoder(torch.compile(e.encoder), e.description)).state_dict(),
    "DataParallel": lambda e: nn.DataParallel(nn.DataParallel(torch.compile(UsersNet(e)))).state_dict(),
    "FSDP": lambda e: prefixed("model._fsdp_wrapped_module.model.module.", e.state_dict()),
    "weight averaging": lambda e: AveragedModel(e).state_dict(),
    "under two names": lambda e: nn.ModuleDict({"a": e, "b": e.encoder}).state_dict(),
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_states_that_hold_a_pretrained_encoder_give_its_features(encoder, features, tmp_path, name, suffix):
    path, state = tmp_path / f"file{suffix}", STATES[name](encoder)
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file({key: tensor.clone() for key, tensor in state.items()}, path)
    loaded = spectralforge.load_encoder(path)
    assert torch.equal(loaded.encode(TILES), features)
    assert loaded.description == encoder.description


@pytest.mark.parametrize(
    "content",
    [
        lambda e: e,
        lambda e: UsersNet(e),
        lambda e: {"epoch": 3, "ema": UsersNet(e), "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
        lambda e: {"module": UsersNet(e).state_dict(), "ds_version": "0.19"},
        lambda e: {"trainer": {"step": 1, "net": {"weights": e.state_dict()}}},
    ],
    ids=["itself", "whole module", "module in a dict", "DeepSpeed", "nested dicts"],
)
def test_pickled_modules_and_any_nesting_of_dicts_are_read(encoder, features, tmp_path, content):
    torch.save(content(encoder), tmp_path / "file.pth")
    loaded = spectralforge.load_encoder(tmp_path / "file.pth")
    assert torch.equal(loaded.encode(TILES), features)
    assert loaded.description == encoder.description


def test_the_bare_network_of_any_module_is_read(encoder, tmp_path):
    for number, state in enumerate((UsersNet(encoder.encoder).state_dict(), AveragedModel(encoder.encoder))):
        path = tmp_path / f"{number}.bin"
        torch.save(state, path)
        loaded, told = load_encoder(path)
        assert told.mu == []
        assert all(torch.equal(t, encoder.encoder.state_dict()[name]) for name, t in loaded.state_dict().items())


def test_a_state_dict_brings_the_description_of_its_weights(encoder, features):
    other = PretrainedEncoder(small_encoder(2), small_description(mu=[0.0] * BANDS))
    bare = {name: tensor for name, tensor in encoder.state_dict().items() if "extra_state" not in name}
    other.load_state_dict(bare)  # of an earlier version
    assert other.description == small_description(mu=[0.0] * BANDS)
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other.encode(TILES), features)
    assert other.description == encoder.description


# ---- save ----


@pytest.mark.parametrize("name", ["encoder.safetensors", "new/small.safetensors", "folder"])
def test_a_saved_encoder_has_the_same_features(encoder, features, tmp_path, name):
    path = encoder.save(tmp_path / name)
    loaded = spectralforge.load_encoder(tmp_path / name)
    assert torch.equal(loaded.encode(TILES), features)
    assert loaded.description == encoder.description
    assert "# spec_vit_tiny, dino" in path.with_suffix(".md").read_text()
    assert {one.suffix for one in path.parent.iterdir()} <= {".safetensors", ".md"}


def test_an_encoder_that_was_trained_on_is_saved_as_it_is(tmp_path):
    network = build_encoder("spec_resnet50", dilate=(False, False, True, True)).eval()
    initialize(network, "test", 1)
    dilated = PretrainedEncoder(
        network, small_description(architecture="spec_resnet50", dilation=[False, False, True, True])
    )
    path = PretrainedEncoder(torch.compile(network), dilated.description).save(tmp_path / "e.safetensors")
    with torch.no_grad():
        next(network.parameters()).add_(1)  # later
    assert not torch.equal(spectralforge.load_encoder(path).encode(TILES), dilated.encode(TILES))
    dilated.save(path)
    assert torch.equal(spectralforge.load_encoder(path).encode(TILES), dilated.encode(TILES))
    assert load_encoder(path, dilate=(False,) * 4)[0].stride == 16


def test_what_could_not_be_read_again_is_not_written(encoder, tmp_path):
    with pytest.raises(WeightsError, match=r"end in \.safetensors"):
        encoder.save(tmp_path / "encoder.pt")
    changed = small_encoder()
    changed.vit_core.blocks[1].gamma = nn.Parameter(torch.ones(3))
    with pytest.raises(WeightsError, match=r"1 unexpected \(e\.g\. vit_core\.blocks\.1\.gamma\)"):
        PretrainedEncoder(changed, small_description()).save(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="can't be written"):
        encoder.save(tmp_path / "file" / "encoder.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ---- fine-tuned models ----


@pytest.mark.parametrize("native", [True, False], ids=["own bands", "resampled"])
def test_a_fine_tuned_model_gives_its_encoder_with_the_input_that_it_was_tuned_for(tmp_path, native):
    told, task = small_description(), get_task("sample_materials")
    bands = BANDS + 1
    inputs = InputDescription(
        sensor="prisma",
        wavelength_nm=[410.0 + 6 * band for band in range(bands)],
        fwhm_nm=[7.0] * bands,
        mu=[900.0] * (bands if native else BANDS),
        sigma=[400.0] * (bands if native else BANDS),
        clip=5.0,
        response=None if native else np.eye(BANDS, bands).tolist(),
    )
    head = build_head("linear", kind_of(task), 192, 4)
    model = TaskModel(small_encoder(), told, inputs, "linear", head, task).eval()
    save_task_model(tmp_path / "model.safetensors", model)
    loaded = spectralforge.load_encoder(tmp_path)
    assert (loaded.description.mu[0], loaded.description.clip) == (900.0, 5.0)
    assert loaded.description.sensor == ("prisma" if native else "enmap")
    tiles = np.random.default_rng(0).integers(0, 3000, (1, bands, SIZE, SIZE), dtype=np.int16)
    with torch.no_grad():
        expected = model.encoder(model.images(torch.from_numpy(tiles)))
    seen = tiles if native else tiles[:, :BANDS]
    torch.testing.assert_close(loaded.encode(seen), expected, rtol=1e-4, atol=1e-5)
    assert load_encoder(loaded.save(tmp_path / "out"))[1] == loaded.description


# ---- files in parts ----


def _in_parts(folder, state):
    names = list(state)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, mine in files.items():
        save_file({name: state[name].clone() for name in mine}, folder / file)
    index = folder / "model.safetensors.index.json"
    weight_map = {name: file for file, mine in files.items() for name in mine}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_files_in_parts_are_read_by_their_index(encoder, features, tmp_path, monkeypatch):
    index = _in_parts(tmp_path, UsersNet(encoder).state_dict())
    for location in (index, tmp_path):
        assert torch.equal(spectralforge.load_encoder(location).encode(TILES), features)
    monkeypatch.setenv("SPECTRALFORGE_CACHE", str(tmp_path / "cache"))
    with RangeServer(tmp_path) as server:
        url = f"{server.url}/{index.name}"
        assert torch.equal(spectralforge.load_encoder(url).encode(TILES), features)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors: no such encoder file" in _error(index)
    index.write_text('{"weight_map": {"a": "../b.safetensors"}}')
    assert "not an index of weights" in _error(index)


# ---- what can't be identified ----


def test_several_encoders_are_named_and_none_is_guessed(tmp_path):
    both = nn.ModuleDict({"before": small_encoder(1), "after": small_encoder(2)})
    torch.save(both.state_dict(), tmp_path / "two.pt")
    assert "contains several encoders, 'before' and 'after': save the one you mean" in _error(tmp_path / "two.pt")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda name: name.replace("qkv.", "qkv.base_layer."), "4 missing (e.g. vit_core.blocks.0.attn.qkv.bias)"),
        (lambda name: name.replace("blocks.1.", "blocks.2."), "has depth 2"),
        (lambda name: name if name.startswith("spectral") else f"x.{name}.y", "only spectral_adapter, x; save"),
    ],
)
def test_what_is_no_encoder_in_full_is_told_by_the_nearest(tmp_path, change, says):
    torch.save({change(name): tensor for name, tensor in small_encoder().state_dict().items()}, tmp_path / "file.pt")
    text = _error(tmp_path / "file.pt")
    assert says in text
    assert "spec_vit_tiny" in text or "only spectral_adapter, x" in text


def test_programs_are_told_from_weights(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "script.pt")
    assert "a compiled program (TorchScript, torch.export), not weights" in _error(tmp_path / "script.pt")


def test_a_folder_of_deepspeed_says_what_makes_a_file_of_it(tmp_path):
    (tmp_path / "zero_to_fp32.py").touch()
    assert "DeepSpeed" in _error(tmp_path)


def test_a_file_that_refers_to_itself_is_refused(tmp_path):
    endless: dict = {}
    endless.update(a=endless, b=endless)
    torch.save(endless, tmp_path / "file.pt")
    with pytest.raises(WeightsError, match="nested too deep"):
        read_torch(tmp_path / "file.pt", "auto", is_zip=True)

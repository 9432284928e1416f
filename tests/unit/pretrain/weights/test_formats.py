"""Every format that holds an encoder gives the same encoder, bit for bit; everything wrong with one is one line."""

import functools
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.foreign_checkpoints import (
    classification,
    dino,
    fork_names,
    lightning,
    mae,
    moco,
    our_checkpoint,
    prefixed,
    regression,
    segmentation,
    with_head,
)

from pretrain.models.initialize import initialize
from pretrain.models.registry import build_encoder
from pretrain.weights.description import WeightsError
from pretrain.weights.files import load_encoder, read_encoder
from pretrain.weights.recognize import recognize

SIZE = 16


def _weights(name: str = "spec_vit_tiny", seed: int = 1, size: int = SIZE, **options):
    encoder = build_encoder(name, size, **options)
    initialize(encoder, "test", seed)
    weights = encoder.state_dict()
    for leaf, tensor in weights.items():
        if leaf.endswith("num_batches_tracked"):
            tensor.fill_(2**40 + seed)  # no float32 holds it
        if leaf.endswith("running_mean"):
            tensor += 0.25 * seed
    return weights


@pytest.fixture(scope="module")
def vit():
    return _weights()


@pytest.fixture(scope="module")
def other():
    """A second network beside it."""
    return _weights(seed=2)


@pytest.fixture(scope="module")
def resnet():
    return _weights("spec_resnet50")


def _save(folder, content):
    path = folder / "file.pth"
    torch.save(content, path)
    return path


def _same(path, weights, **options):
    """The file gives exactly these weights, and the encoder with them computes exactly what it should."""
    encoder, description = load_encoder(path, **options)
    loaded = encoder.state_dict()
    assert loaded.keys() == weights.keys()
    for name, tensor in weights.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name
    twin = build_encoder(description.architecture, description.image_size, bands=description.bands)
    twin.load_state_dict(weights)
    images = torch.randn(1, description.bands, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.equal(encoder(images), twin.eval()(images))
    return description


def _error(path, **options) -> str:
    with pytest.raises(WeightsError) as raised:
        load_encoder(path, **options)
    text = str(raised.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text


FORMATS = {
    "flat": lambda w: w,
    "state_dict": lambda w: {"state_dict": w, "epoch": 3},
    "model": lambda w: {"model": w, "optimizer": {"lr": 1e-3}},
    "teacher": lambda w: {"student": prefixed("x.", w), "teacher": prefixed("module.", w)},
    "DDP": lambda w: prefixed("module.", w),
    "classes": with_head,
    "MoCo": lambda w: lightning(moco(w, {name: tensor + 1 for name, tensor in w.items()})),
    "DINO": lambda w: lightning(dino({name: tensor + 1 for name, tensor in w.items()}, w)),
    "segmentation": lambda w: lightning(segmentation(w)),
    "classification": lambda w: lightning(classification(w)),
    "regression": lambda w: lightning(regression(w)),
}
OF_VITS = {
    "MAE": lambda w: lightning(mae(w)),
    "MAE under DDP": lambda w: prefixed("module.", mae(w)),
    "fork": fork_names,
    "fork, both names": lambda w: w | fork_names(w),
    "flat MAE with its decoder": lambda w: w | {"decoder.mask_token": torch.ones(1), "mask_token": torch.ones(1)},
}


@pytest.mark.parametrize("name", FORMATS | OF_VITS)
def test_a_spec_vit_is_the_same_from_every_format(vit, tmp_path, name):
    described = _same(_save(tmp_path, (FORMATS | OF_VITS)[name](vit)), vit)
    assert (described.architecture, described.image_size, described.patch_size) == ("spec_vit_tiny", SIZE, 4)
    assert (described.sensor, described.bands, described.mu) == ("enmap", 202, [])
    assert described.network == ("teacher" if name in ("teacher", "DINO") else "student")


@pytest.mark.parametrize("name", ["flat", "classes", "MoCo", "segmentation", "classification", "regression"])
def test_a_spec_resnet_is_the_same_from_every_format(resnet, tmp_path, name):
    assert _same(_save(tmp_path, FORMATS[name](resnet)), resnet).architecture == "spec_resnet50"


@pytest.mark.parametrize("name", ["vit_tiny", "resnet50"])
@pytest.mark.parametrize("bands", [202, 12])
def test_plain_baselines_tell_their_bands(tmp_path, name, bands):
    weights = _weights(name, bands=bands)
    described = _same(_save(tmp_path, lightning(prefixed("model.", weights))), weights)
    assert (described.architecture, described.bands) == (name, bands)
    assert described.sensor == ("enmap" if bands == 202 else "unknown")


def test_a_training_checkpoint_of_mae_has_the_published_number_of_keys(vit):
    assert len(mae(vit)) == 565  # as counted for the published small encoder, which has the same depth


def test_what_was_done_with_each_name_is_told(vit, tmp_path):
    read = read_encoder(_save(tmp_path, lightning(mae(vit))))
    report = read.report
    assert read.layout == "MAE training checkpoint"
    assert read.description.objective == "mae"
    assert report.matched == list(vit) == list(read.weights)
    # both heads with classes, the mask token and twenty names of the decoder are no part of the encoder
    assert len(report.left_out) == 4 + 1 + 20
    assert len(report.copies) == 565 - 171 - 25
    assert (report.missing, report.unexpected, report.misshapen, report.reshaped) == ([], [], [], [])
    table = report.table()
    assert re.search(r"^matched +171 +spectral_adapter.0.weight", table, re.M)
    assert re.search(r"^left out +25 ", table, re.M)
    assert table.endswith(" 100%")


def test_either_network_of_dino_comes_when_asked_for(vit, other, tmp_path):
    path = _save(tmp_path, lightning(dino(vit, other)))
    assert _same(path, other).network == "teacher"
    assert _same(path, other, network="teacher").network == "teacher"
    assert _same(path, vit, network="student").network == "student"
    path = _save(tmp_path, {"student": vit, "teacher": other})
    assert _same(path, other).network == "teacher"
    assert _same(path, vit, network="student").network == "student"


def test_a_network_that_is_not_there_is_refused(vit, tmp_path):
    assert "no teacher in it" in _error(_save(tmp_path, lightning(moco(vit, vit))), network="teacher")
    assert "no teacher in it" in _error(_save(tmp_path, vit), network="teacher")
    step = our_checkpoint(tmp_path / "run", 1, vit)
    assert "this run has no teacher" in _error(step, network="teacher")


def test_safetensors_of_flat_names_need_no_description(vit, tmp_path):
    path = tmp_path / "flat.safetensors"
    save_file(vit, path)
    assert _same(path, vit).samples_seen == 0
    path = path.rename(tmp_path / "weights")  # the content tells, too
    assert _same(path, vit).samples_seen == 0


def test_files_of_the_old_torch_format_are_read(vit, tmp_path):
    torch.save(vit, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    _same(tmp_path / "old.pt", vit)


# ---- our checkpoints ----


@pytest.mark.parametrize("below", ["checkpoints/step-00000020", "checkpoints", ""])
def test_a_run_gives_its_newest_checkpoint(vit, other, tmp_path, below):
    our_checkpoint(tmp_path, 10, other)
    our_checkpoint(tmp_path, 20, vit)
    (tmp_path / "checkpoints" / "step-00000030.tmp").mkdir()
    described = _same(tmp_path / below, vit)
    assert (described.samples_seen, described.dataset, described.objective) == (320, "c" * 64, "mae")
    assert (described.bands, described.mu[0], described.version, described.clip) == (80, 1000.0, "0.1.0", None)
    assert described.config["train"] == {"steps": 20, "global_batch": 16}


def test_a_dino_run_gives_its_teacher(vit, other, tmp_path):
    places = {"run": {"dir": "/home/me/runs/a"}, "data": {"shards": "s3://bucket/mine/", "stage": None}}
    our_checkpoint(tmp_path, 10, vit, teacher=other, config={"augment": {"clip": 10.0}, **places})
    assert load_encoder(tmp_path)[1].config["run"] == {"dir": "a"}  # an export tells nothing of the machine
    assert load_encoder(tmp_path)[1].config["data"] == {"shards": "mine", "stage": None}
    described = _same(tmp_path, other)
    assert (described.network, described.objective, described.clip) == ("teacher", "dino", 10.0)
    assert _same(tmp_path, vit, network="student").network == "student"


def test_a_moco_run_gives_its_trained_network(vit, other, tmp_path):
    our_checkpoint(tmp_path, 10, vit, teacher=other, config={"objective": {"name": "moco"}})
    assert _same(tmp_path, vit).network == "student"
    assert _same(tmp_path, other, network="teacher").network == "teacher"


@pytest.mark.parametrize("name", ["checkpoint.json", "state.json", "weights-00001-of-00002.safetensors"])
@pytest.mark.parametrize("how", ["gone", "cut", "changed"])
def test_a_damaged_checkpoint_is_refused(vit, tmp_path, name, how):
    file = our_checkpoint(tmp_path, 10, vit) / name
    data = file.read_bytes()
    file.unlink()
    if how != "gone":
        file.write_bytes(data[:-2] if how == "cut" else b"x" + data[1:])
    text = _error(tmp_path)
    assert str(file) in text
    assert "take another checkpoint of the run" in text


def test_a_state_of_something_else_is_refused(vit, tmp_path):
    our_checkpoint(tmp_path, 10, vit, config={"model": {"name": "spec_vit_tiny"}})
    assert "not the state of a pretraining run" in _error(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path):
    assert "neither checkpoints nor encoder.safetensors in this folder" in _error(tmp_path)


# ---- files that are refused ----


@pytest.mark.parametrize("prefix", ["", "model.encoder."])
def test_missing_extra_and_misshapen_weights_are_refused(vit, tmp_path, prefix):
    weights = dict(vit)
    del weights["vit_core.blocks.3.norm1.bias"]
    weights["vit_core.blocks.3.gamma"] = torch.ones(192)
    weights["vit_core.norm.weight"] = torch.ones(191)
    text = _error(_save(tmp_path, prefixed(prefix, weights)))
    assert "169 of 171 match" in text
    assert "1 missing (e.g. vit_core.blocks.3.norm1.bias)" in text
    assert "1 unexpected (e.g. vit_core.blocks.3.gamma)" in text
    assert "1 of another shape (e.g. vit_core.norm.weight: (191,) instead of (192,))" in text


@pytest.mark.parametrize("name", ["vit_core.pos_embed", "vit_core.patch_embed.proj.weight", "vit_core.cls_token"])
def test_a_weight_that_tells_the_architecture_is_missed_too(vit, tmp_path, name):
    weights = {key: tensor for key, tensor in _weights(size=128).items() if key != name}
    assert f"170 of 171 match, 1 missing (e.g. {name})" in _error(_save(tmp_path, weights))


def test_an_unknown_name_in_a_flat_file_is_refused(vit, tmp_path):
    assert "1 unexpected (e.g. extra.weight)" in _error(_save(tmp_path, vit | {"extra.weight": torch.ones(1)}))


@pytest.mark.parametrize(
    "name",
    [
        "encoder.vit.vit_core.blocks.0.mlp.fc1.bias",
        "encoder.vit.patch_embed.proj.bias",
        "encoder.vit.spec_vit.vit_core.patch_embed.spectral_adapter.0.bias",
    ],
)
def test_copies_that_differ_are_refused(vit, tmp_path, name):
    state = mae(vit)
    state[name] = state[name] + 1
    text = _error(_save(tmp_path, lightning(state)))
    assert name in text
    assert "should be one weight and differ" in text


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.99])
def test_a_truncated_torch_file_is_refused(vit, tmp_path, zipped, share):
    path = tmp_path / "whole.pth"
    torch.save(vit, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "not a whole torch file" in _error(path)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_a_file_of_another_kind_is_refused(tmp_path, data):
    (tmp_path / "file.pth").write_bytes(data)
    assert "not a checkpoint: neither safetensors nor a torch file" in _error(tmp_path / "file.pth")


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), 7])
def test_a_torch_file_without_names_is_refused(tmp_path, content):
    assert "not tensors by name" in _error(_save(tmp_path, content))


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"epoch": 3}])
def test_a_file_without_tensors_is_refused(tmp_path, content):
    assert "it holds no tensors" in _error(_save(tmp_path, content))


def test_tensors_of_something_else_are_refused(tmp_path):
    text = _error(_save(tmp_path, {"stem.weight": torch.ones(1), "stem.bias": torch.ones(1)}))
    assert "none of its 2 tensors (e.g. stem.weight) has a known name" in text


class _HyperParameters:
    """Stands for what a training framework pickles beside the weights."""


class _Runs:
    """A pickle that calls a function where it is loaded in full."""

    def __init__(self, function, path) -> None:
        self.function, self.path = function, path

    def __reduce__(self):
        return self.function, (str(self.path),)


@pytest.mark.parametrize(
    "value",
    [_HyperParameters(), functools.partial(torch.optim.AdamW, lr=1e-3), Path("x")],
    ids=["own", "partial", "path"],
)
def test_objects_beside_the_weights_are_passed_over(vit, tmp_path, value):
    path = _save(tmp_path, lightning(vit, hyper_parameters={"optimizer": value}))
    encoder, _ = load_encoder(path)
    assert all(torch.equal(tensor, vit[name]) for name, tensor in encoder.state_dict().items())


def test_nothing_that_a_file_names_is_run(vit, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    load_encoder(_save(tmp_path, lightning(vit, hyper_parameters=_Runs(shutil.rmtree, precious))))
    text = _error(_save(tmp_path, lightning(vit, hyper_parameters=_Runs(os.rmdir, precious))))
    assert "posix.rmdir" in text
    assert "weights_only=False)['state_dict'], DEST)" in text
    assert precious.is_dir()


def test_an_unknown_architecture_says_what_was_found(vit, tmp_path):
    shallow = {name: tensor for name, tensor in vit.items() if ".blocks.11." not in name}
    text = _error(_save(tmp_path, shallow))
    assert "a Spec. ViT of width 192, depth 11 and MLP width 768" in text
    assert "spec_vit_gigantic" in text
    adapter = {name: tensor for name, tensor in vit.items() if name.startswith("spectral_adapter.")}
    assert "neither transformer blocks nor residual layers" in _error(_save(tmp_path, adapter))


def test_positions_that_are_no_square_are_refused(vit, tmp_path):
    weights = vit | {"vit_core.pos_embed": torch.zeros(1, 16, 192)}
    assert "has 16 positions" in _error(_save(tmp_path, weights))


def test_a_plain_encoder_without_its_first_layer_is_refused(tmp_path):
    weights = _weights("vit_tiny", bands=12)
    del weights["patch_embed.proj.weight"]
    assert "patch_embed.proj.weight is missing" in _error(_save(tmp_path, weights))


def test_every_published_model_is_recognized_by_its_shapes(reference):
    published = json.loads((reference / "state_dict_keys.json").read_text())
    assert len(published) == 10
    for name, shapes in published.items():
        weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        described = recognize(weights, "", "student", name)
        assert (described.architecture, described.image_size, described.patch_size) == (name, 128, 4)
        assert (described.bands, described.sensor) == (202, "enmap")

"""Every format that holds an encoder gives the same encoder, bit for bit."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from support.encoder_files import SIZE, drawn_weights, loading_error, save_torch
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

from pretrain.models.registry import build_encoder
from pretrain.weights.files import load_encoder, read_encoder
from pretrain.weights.recognize import recognize


@pytest.fixture(scope="module")
def vit():
    return drawn_weights()


@pytest.fixture(scope="module")
def other():
    """A second network beside it."""
    return drawn_weights(seed=2)


@pytest.fixture(scope="module")
def resnet():
    return drawn_weights("spec_resnet50")


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
    described = _same(save_torch(tmp_path, (FORMATS | OF_VITS)[name](vit)), vit)
    assert (described.architecture, described.image_size, described.patch_size) == ("spec_vit_tiny", SIZE, 4)
    assert (described.sensor, described.bands, described.mu) == ("enmap", 202, [])
    assert described.network == ("teacher" if name in ("teacher", "DINO") else "student")


@pytest.mark.parametrize("name", ["flat", "classes", "MoCo", "segmentation", "classification", "regression"])
def test_a_spec_resnet_is_the_same_from_every_format(resnet, tmp_path, name):
    assert _same(save_torch(tmp_path, FORMATS[name](resnet)), resnet).architecture == "spec_resnet50"


@pytest.mark.parametrize("name", ["vit_tiny", "resnet50"])
@pytest.mark.parametrize("bands", [202, 12])
def test_plain_baselines_tell_their_bands(tmp_path, name, bands):
    weights = drawn_weights(name, bands=bands)
    described = _same(save_torch(tmp_path, lightning(prefixed("model.", weights))), weights)
    assert (described.architecture, described.bands) == (name, bands)
    assert described.sensor == ("enmap" if bands == 202 else "unknown")


def test_a_training_checkpoint_of_mae_has_the_published_number_of_keys(vit):
    assert len(mae(vit)) == 565  # as counted for the published small encoder, which has the same depth


def test_what_was_done_with_each_name_is_told(vit, tmp_path):
    read = read_encoder(save_torch(tmp_path, lightning(mae(vit))))
    report = read.report
    assert read.format == "MAE training checkpoint"
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
    path = save_torch(tmp_path, lightning(dino(vit, other)))
    assert _same(path, other).network == "teacher"
    assert _same(path, other, network="teacher").network == "teacher"
    assert _same(path, vit, network="student").network == "student"
    path = save_torch(tmp_path, {"student": vit, "teacher": other})
    assert _same(path, other).network == "teacher"
    assert _same(path, vit, network="student").network == "student"


def test_a_network_that_is_not_there_is_refused(vit, tmp_path):
    assert "no teacher in it" in loading_error(save_torch(tmp_path, lightning(moco(vit, vit))), network="teacher")
    assert "no teacher in it" in loading_error(save_torch(tmp_path, vit), network="teacher")
    step = our_checkpoint(tmp_path / "run", 1, vit)
    assert "this run has no teacher" in loading_error(step, network="teacher")


def test_safetensors_of_flat_names_need_no_description(vit, tmp_path):
    path = tmp_path / "flat.safetensors"
    save_file(vit, path)
    assert _same(path, vit).samples_seen == 0
    path = path.rename(tmp_path / "weights")  # the content tells, too
    assert _same(path, vit).samples_seen == 0


def test_files_of_the_old_torch_format_are_read(vit, tmp_path):
    torch.save(vit, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    _same(tmp_path / "old.pt", vit)


def test_every_published_model_is_recognized_by_its_shapes(reference):
    published = json.loads((reference / "state_dict_keys.json").read_text())
    assert len(published) == 10
    for name, shapes in published.items():
        weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        described = recognize(weights, "", "student", name)
        assert (described.architecture, described.image_size, described.patch_size) == (name, 128, 4)
        assert (described.bands, described.sensor) == (202, "enmap")


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
    text = loading_error(tmp_path)
    assert str(file) in text
    assert "use another checkpoint of the run" in text


def test_a_state_of_something_else_is_refused(vit, tmp_path):
    our_checkpoint(tmp_path, 10, vit, config={"model": {"name": "spec_vit_tiny"}})
    assert "not the state of a pretraining run" in loading_error(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path):
    assert "neither checkpoints nor encoder.safetensors in this folder" in loading_error(tmp_path)

"""Everything that can be wrong with an encoder's file is one line, and nothing that a file names is run."""

import functools
import os
import shutil
from pathlib import Path

import pytest
import torch
from support.encoder_files import drawn_weights, loading_error, save_torch
from support.foreign_checkpoints import lightning, mae, prefixed

from pretrain.weights.files import load_encoder


@pytest.fixture(scope="module")
def vit():
    return drawn_weights()


@pytest.mark.parametrize("prefix", ["", "model.encoder."])
def test_missing_extra_and_misshapen_weights_are_refused(vit, tmp_path, prefix):
    weights = dict(vit)
    del weights["vit_core.blocks.3.norm1.bias"]
    weights["vit_core.blocks.3.gamma"] = torch.ones(192)
    weights["vit_core.norm.weight"] = torch.ones(191)
    text = loading_error(save_torch(tmp_path, prefixed(prefix, weights)))
    assert "169 of the 171 weights of" in text
    assert "1 missing (e.g. vit_core.blocks.3.norm1.bias)" in text
    assert "1 unexpected (e.g. vit_core.blocks.3.gamma)" in text
    assert "1 of a different shape (e.g. vit_core.norm.weight: (191,) instead of (192,))" in text


@pytest.mark.parametrize("name", ["vit_core.pos_embed", "vit_core.patch_embed.proj.weight", "vit_core.cls_token"])
def test_a_weight_that_tells_the_architecture_is_missed_too(vit, tmp_path, name):
    weights = {key: tensor for key, tensor in drawn_weights(size=128).items() if key != name}
    text = loading_error(save_torch(tmp_path, weights))
    assert "170 of the 171 weights of" in text and f"match, 1 missing (e.g. {name})" in text


def test_an_unknown_name_in_a_flat_file_is_refused(vit, tmp_path):
    assert "1 unexpected (e.g. extra.weight)" in loading_error(
        save_torch(tmp_path, vit | {"extra.weight": torch.ones(1)})
    )


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
    text = loading_error(save_torch(tmp_path, lightning(state)))
    assert name in text
    assert "should be the same weight but differ" in text


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.99])
def test_a_truncated_torch_file_is_refused(vit, tmp_path, zipped, share):
    path = tmp_path / "whole.pth"
    torch.save(vit, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "not a complete torch file" in loading_error(path)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_a_file_of_another_kind_is_refused(tmp_path, data):
    (tmp_path / "file.pth").write_bytes(data)
    assert "not a checkpoint: neither safetensors nor a torch file" in loading_error(tmp_path / "file.pth")


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), 7])
def test_a_torch_file_without_names_is_refused(tmp_path, content):
    assert "not tensors by name" in loading_error(save_torch(tmp_path, content))


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"epoch": 3}])
def test_a_file_without_tensors_is_refused(tmp_path, content):
    assert "it holds no tensors" in loading_error(save_torch(tmp_path, content))


def test_tensors_of_something_else_are_refused(tmp_path):
    text = loading_error(save_torch(tmp_path, {"stem.weight": torch.ones(1), "stem.bias": torch.ones(1)}))
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
    path = save_torch(tmp_path, lightning(vit, hyper_parameters={"optimizer": value}))
    encoder, _ = load_encoder(path)
    assert all(torch.equal(tensor, vit[name]) for name, tensor in encoder.state_dict().items())


def test_nothing_that_a_file_names_is_run(vit, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    load_encoder(save_torch(tmp_path, lightning(vit, hyper_parameters=_Runs(shutil.rmtree, precious))))
    text = loading_error(save_torch(tmp_path, lightning(vit, hyper_parameters=_Runs(os.rmdir, precious))))
    assert "posix.rmdir" in text
    assert "weights_only=False)['state_dict'], DEST)" in text
    assert precious.is_dir()


def test_an_unknown_architecture_says_what_was_found(vit, tmp_path):
    shallow = {name: tensor for name, tensor in vit.items() if ".blocks.11." not in name}
    text = loading_error(save_torch(tmp_path, shallow))
    assert "a Spec. ViT of width 192, depth 11 and MLP width 768" in text
    assert "spec_vit_gigantic" in text
    adapter = {name: tensor for name, tensor in vit.items() if name.startswith("spectral_adapter.")}
    assert "neither transformer blocks nor residual layers" in loading_error(save_torch(tmp_path, adapter))


def test_positions_that_are_no_square_are_refused(vit, tmp_path):
    weights = vit | {"vit_core.pos_embed": torch.zeros(1, 16, 192)}
    assert "has 16 positions" in loading_error(save_torch(tmp_path, weights))


def test_a_plain_encoder_without_its_first_layer_is_refused(tmp_path):
    weights = drawn_weights("vit_tiny", bands=12)
    del weights["patch_embed.proj.weight"]
    assert "patch_embed.proj.weight is missing" in loading_error(save_torch(tmp_path, weights))

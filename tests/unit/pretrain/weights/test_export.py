"""Encoders that leave Python: torch.export, TorchScript and ONNX programs give the features of the encoder itself."""

import importlib.util
import io
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.small_encoder import BANDS, small_description
from torch import nn

import spectralforge
from pretrain.models import resnet
from pretrain.models.initialize import initialize
from pretrain.models.published import PLAIN_VITS, SPEC_VITS
from pretrain.models.registry import build_encoder
from pretrain.weights.pretrained import PretrainedEncoder
from shards.config import REPOSITORY

SIZE = 8
BATCH = {0: torch.export.Dim("batch")}
ABSENT = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(ABSENT), reason=f"needs {', '.join(ABSENT)}: pip install {' '.join(ABSENT)}")

pytestmark = pytest.mark.filterwarnings("ignore")  # exporters warn of what they will be one day


@pytest.fixture(scope="module", autouse=True)
def _shallow():
    """One block of each kind says as much as all."""
    with pytest.MonkeyPatch.context() as patch:
        for sizes, name in ((SPEC_VITS, "spec_vit_tiny"), (PLAIN_VITS, "vit_tiny")):
            patch.setitem(sizes, name, replace(sizes[name], depth=1))
        patch.setattr(resnet, "LAYERS", tuple((outputs, width, 1) for outputs, width, _ in resnet.LAYERS))
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        yield


def _encoder(name: str) -> PretrainedEncoder:
    network = build_encoder(name, SIZE, bands=BANDS)
    initialize(network, "test", 1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, tensor in network.state_dict().items():  # norms that do something
            if key.endswith(("running_mean", "running_var")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.2 + 0.5 * key.endswith("var"))
            elif key.endswith("bn3.weight"):
                tensor.fill_(0.5)
    return PretrainedEncoder(network, small_description(architecture=name, image_size=SIZE, clip=8.0))


@pytest.fixture(scope="module", params=["spec_vit_tiny", "spec_resnet50"])
def encoder(request) -> PretrainedEncoder:
    return _encoder(request.param)


def _tiles(count: int, dtype=torch.int16) -> torch.Tensor:
    values = np.random.default_rng(count).integers(0, 3000, (count, BANDS, SIZE, SIZE), dtype=np.int16)
    values[0, :, 2, 3] = -32768
    return torch.from_numpy(values).to(dtype)


def _check(program, encoder, dtype=torch.int16) -> None:
    """The same features for other numbers of images than the example had."""
    for count in (1, 5):
        tiles = _tiles(count, dtype)
        found, expected = program(tiles), encoder.encode(tiles)
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_torch_export_takes_any_number_of_images(encoder):
    program = torch.export.export(encoder, (_tiles(2),), dynamic_shapes={"images": BATCH})
    _check(program.module(), encoder)


@pytest.mark.nightly
def test_the_network_alone_exports_its_map_too(encoder):
    class Map(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder.encoder

        def forward(self, images):
            return self.encoder(images, "map")

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, BANDS, SIZE, SIZE, generator=generator)
    program = torch.export.export(Map().eval(), (images[:2],), dynamic_shapes={"images": BATCH})
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), encoder.encoder(images, "map"), rtol=1e-4, atol=1e-5)


@pytest.mark.nightly
def test_plain_networks_export_as_well():
    for name in ("vit_tiny", "resnet50"):
        encoder = _encoder(name)
        size = 32 if name == "resnet50" else SIZE
        images = torch.randn(3, BANDS, size, size, generator=torch.Generator().manual_seed(0))
        program = torch.export.export(encoder.encoder, (images[:2],), dynamic_shapes=(BATCH,))
        with torch.no_grad():
            torch.testing.assert_close(program.module()(images), encoder.encoder(images), rtol=1e-4, atol=1e-5)


def test_a_traced_encoder_is_the_same(encoder):
    with torch.no_grad():
        traced = torch.jit.trace(encoder, (_tiles(2),))
    _check(traced, encoder)


@pytest.mark.nightly
@needs_onnx
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "TorchScript"])
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_onnx_programs_give_the_same_features(encoder, dynamo, dtype):
    import onnxruntime

    names = {"input_names": ["images"], "output_names": ["features"]}
    if dynamo:
        shapes = {"images": BATCH}
        program = torch.onnx.export(encoder, (_tiles(2, dtype),), dynamo=True, dynamic_shapes=shapes, **names)
        content = program.model_proto.SerializeToString()
    else:
        file, axes = io.BytesIO(), {"images": {0: "batch"}, "features": {0: "batch"}}
        torch.onnx.export(encoder, (_tiles(2, dtype),), file, dynamo=False, dynamic_axes=axes, **names)
        content = file.getvalue()
    session = onnxruntime.InferenceSession(content)
    _check(lambda tiles: torch.from_numpy(session.run(None, {"images": tiles.numpy()})[0]), encoder, dtype)


def test_the_lines_of_the_documentation_run(tmp_path, monkeypatch):
    text = (REPOSITORY / "docs" / "weights.md").read_text()
    code = text.split("## Export to other runtimes")[1].split("```python")[1].split("```")[0]
    described = small_description(image_size=SIZE)
    saved = PretrainedEncoder(_encoder("spec_vit_tiny").encoder, described)
    saved.save(tmp_path / "encoder.safetensors")
    monkeypatch.chdir(tmp_path)
    if ABSENT:
        code = "\n".join(line for line in code.splitlines() if "onnx" not in line)
    names: dict = {}
    exec(code, names)
    program = torch.export.load("encoder.pt2").module()
    _check(program, spectralforge.load_encoder("encoder.safetensors"), torch.float32)
    assert Path("encoder.onnx").is_file() or ABSENT

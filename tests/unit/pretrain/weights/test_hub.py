"""Encoders by location: folders, URLs and repositories of the Hugging Face Hub, downloaded once."""

import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from support.hub_server import HubServer, set_endpoint
from support.range_server import RangeServer
from support.small_encoder import small_description, small_encoder

from finetune.encoders.model_file import load_task_model
from pretrain.weights.description import WeightsError
from pretrain.weights.files import load_encoder, save_encoder
from pretrain.weights.hub import fetch
from pretrain.weights.hub_ranks import fetch_on_all_ranks
from pretrain.weights.pretrained import load_pretrained

REPOSITORY = "lab/small-encoder"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An encoder file, and what is in it."""
    path = tmp_path_factory.mktemp("export") / "encoder.safetensors"
    encoder, description = small_encoder(), small_description()
    save_encoder(path, encoder.state_dict(), description)
    return path, encoder, description


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRALFORGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _error(location) -> str:
    with pytest.raises(WeightsError) as raised:
        fetch(location)
    text = str(raised.value)
    assert "\n" not in text
    return text


def test_an_encoder_comes_from_a_folder_or_its_file(exported):
    path = exported[0]
    for location in (path, str(path), path.parent, f"{path.parent}/", f"file://{path.parent}"):
        assert load_pretrained(location).description == exported[2]
    assert load_pretrained(path, image_size=24).description.image_size == 24


def test_what_is_no_location_is_refused():
    with pytest.raises(WeightsError, match="7: give the path or URL of an encoder"):
        load_pretrained(7)


# ---- URLs ----


def test_a_download_is_made_once(exported, cache):
    with RangeServer(exported[0].parent) as server:
        for url in (f"{server.url}/encoder.safetensors", server.url, f"{server.url}/"):
            encoder, told = load_encoder(url)
        assert server.requests == {"encoder.safetensors": 1}
    assert told == exported[2]
    assert all(torch.equal(t, exported[1].state_dict()[name]) for name, t in encoder.state_dict().items())
    (copy,) = cache.rglob("*.*")
    assert copy.read_bytes() == exported[0].read_bytes()


@pytest.mark.parametrize(("fault", "says"), [("drop", "the download failed"), ("fail", "HTTP|the download failed|503")])
def test_a_download_that_breaks_off_leaves_nothing(exported, cache, fault, says):
    with RangeServer(exported[0].parent) as server:
        setattr(server, fault, 1)
        with pytest.raises(WeightsError, match=says) as raised:
            fetch(server.url)
        assert str(raised.value).startswith(f"{server.url}/encoder.safetensors: ")
        assert "\n" not in str(raised.value)
        assert list(cache.rglob("*.*")) == []
        assert load_encoder(server.url)[1] == exported[2]


def test_what_a_url_lacks_is_said_without_its_secrets(tmp_path):
    with RangeServer(tmp_path) as server:
        url = server.url.replace("://", "://me:secret@") + "/none.pth?signature=secret"
        text = _error(url)
    assert "no such file; check the URL" in text
    assert "secret" not in text
    assert "nonsense://x/encoder.safetensors: the download failed" in _error("nonsense://x")


# ---- the Hugging Face Hub ----


@pytest.fixture
def hub(exported, tmp_path, monkeypatch):
    """A repository with an encoder and its card."""
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy(exported[0], folder)
    (folder / "README.md").write_text("# small")
    with HubServer(REPOSITORY, folder) as server:
        set_endpoint(monkeypatch, server.url)
        yield server


def test_a_repository_or_a_file_of_the_hub_is_loaded(hub, exported, cache):
    for location in (f"hf://{REPOSITORY}", f"hf://{REPOSITORY}/encoder.safetensors", f"hf://{REPOSITORY}@main"):
        encoder, told = load_encoder(location)
        assert told == exported[2]
        assert all(torch.equal(t, exported[1].state_dict()[name]) for name, t in encoder.state_dict().items())
    assert hub.requests[f"/{REPOSITORY}/resolve/main/encoder.safetensors"] == 3  # one for each way to write it


def test_a_download_from_the_hub_is_kept(hub, exported):
    assert load_pretrained(f"hf://{REPOSITORY}").description == exported[2]
    asked = hub.requests.total()
    assert load_pretrained(f"hf://{REPOSITORY}").description == exported[2]
    assert fetch_on_all_ranks(f"hf://{REPOSITORY}") == fetch(f"hf://{REPOSITORY}/")
    assert hub.requests.total() == asked


def test_models_for_prediction_come_from_the_hub_too(hub, exported):
    model = load_task_model(f"hf://{REPOSITORY}")
    assert model.description == exported[2]
    assert all(torch.equal(t, exported[1].state_dict()[name]) for name, t in model.encoder.state_dict().items())


def test_the_endpoint_of_the_environment_is_asked(hub, cache):
    code = f"from pretrain.weights.hub import fetch; print(fetch('hf://{REPOSITORY}'))"
    environment = os.environ | {"HF_ENDPOINT": hub.url}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(str(cache)), done.stderr
    assert hub.requests[f"/{REPOSITORY}/resolve/main/encoder.safetensors"] == 1


def test_the_encoder_of_a_repository_is_not_another_file_that_was_loaded_before(hub, exported):
    save_encoder(hub.folder / "model.safetensors", small_encoder(2).state_dict(), small_description(version="2"))
    assert load_encoder(f"hf://{REPOSITORY}/model.safetensors")[1].version == "2"
    assert load_encoder(f"hf://{REPOSITORY}")[1] == exported[2]


def test_weights_under_other_names_are_found(hub, exported):
    (hub.folder / "encoder.safetensors").rename(hub.folder / "model.safetensors")
    assert load_encoder(f"hf://{REPOSITORY}")[1] == exported[2]


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("hf://lab", "no repository of the Hugging Face Hub; give hf://ORGANIZATION/NAME"),
        ("hf://lab/none", "no such repository; check its name, or log in if it is private (hf auth login)"),
        ("hf://lab/none/encoder.safetensors", "no such repository; check its name"),
        (f"hf://{REPOSITORY}@v2", "no such revision of the repository; check what follows the @"),
        (f"hf://{REPOSITORY}/none.pth", "no such file; check the URL"),
        ("hf://lab/a..b", "not the name of a repository"),
    ],
)
def test_what_the_hub_lacks_is_one_line(hub, cache, location, says):
    text = _error(location)
    assert text.startswith(f"{location}: ")
    assert says in text
    assert list(cache.rglob("*.*")) == []


def test_a_repository_without_an_encoder_says_what_it_needs(hub):
    (hub.folder / "encoder.safetensors").unlink()
    assert "the repository contains none of encoder.safetensors, model.safetensors" in _error(f"hf://{REPOSITORY}")


def test_a_gated_repository_says_where_to_ask(hub):
    hub.refusal = "GatedRepo"
    assert "the repository is gated; request access on its page" in _error(f"hf://{REPOSITORY}")


def test_no_network_is_one_line(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        set_endpoint(monkeypatch, f"http://127.0.0.1:{unused.getsockname()[1]}")
        text = _error(f"hf://{REPOSITORY}")
    assert text.startswith(f"hf://{REPOSITORY}: the download failed (ConnectError: ")


def test_without_the_library_the_line_says_what_to_install(cache):
    code = f"""
import sys
sys.modules["huggingface_hub"] = None
from pretrain.weights.hub import fetch
fetch("hf://{REPOSITORY}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "pip install 'spectralforge[remote]'" in done.stderr.splitlines()[-1]

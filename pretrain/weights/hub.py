"""Locations of encoders to files on this machine: paths, URLs, and repositories of the Hugging Face Hub.

A download is made once and kept in ``$SPECTRALFORGE_CACHE`` (``~/.cache/spectralforge``); remove it there to download
it again.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from pretrain.weights.description import WeightsError
from pretrain.weights.raw_checkpoint import ENCODER_FILE, FOLDER_FILES, INDEX, parts_of
from shards.files.atomic import atomic_open

CACHE_VARIABLE = "SPECTRALFORGE_CACHE"
HUB = "hf://"
_FILES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", INDEX)
_CHUNK = 8 << 20  # bytes of a download that are in memory
_MISSING = {
    "RepositoryNotFoundError": "no such repository; check its name, or log in if it is private (hf auth login)",
    "GatedRepoError": "the repository is gated; request access on its page, and log in (hf auth login)",
    "RevisionNotFoundError": "no such revision of the repository; check what follows the @",
    "RemoteEntryNotFoundError": "no such file; check the URL",
    "HfUriError": f"not the name of a repository; give {HUB}ORGANIZATION/NAME",
}
"""What errors of huggingface_hub mean, by the names of their classes."""

Result = TypeVar("Result")


def fetch(location: str | Path) -> Path:
    """Return the local path of a location, and download what is not on this machine.

    Args:
        location: a path; a URL that fsspec knows (``https://``, ``s3://``), of a file or of a folder with
            ``encoder.safetensors`` in it; or ``hf://ORGANIZATION/NAME[@REVISION][/FILE]``.

    Raises:
        WeightsError: nothing is at the URL, or the download broke off.
    """
    if not isinstance(location, str | Path):
        raise WeightsError(f"load_encoder: {location!r}: give the path or URL of an encoder")
    text = str(location)
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    if text.startswith(HUB):
        return _fetch_repository(text)
    return _fetch_url(text) if "://" in text else Path(location)


def cache_folder() -> Path:
    """Return the folder of downloads."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "spectralforge")


def _fetch_url(url: str) -> Path:
    parts = urlsplit(url)
    if not parts.path.endswith(_FILES):
        parts = parts._replace(path=f"{parts.path.rstrip('/')}/{ENCODER_FILE}")
    url = parts.geturl()
    return _download(url, _copies_of(url) / parts.path.rsplit("/", 1)[-1])


def _fetch_repository(url: str) -> Path:
    """The copy of a file of the Hub; of a repository, that of its encoder."""
    if len(url.removeprefix(HUB).strip("/").split("/")) < 2:
        raise WeightsError(f"{url}: no repository of the Hugging Face Hub; give {HUB}ORGANIZATION/NAME")
    url = url.rstrip("/")
    repository, name = url.rsplit("/", 1) if url.endswith(_FILES) else (url, "")
    copies = _copies_of(url)
    name = name or next((known for known in FOLDER_FILES if (copies / known).is_file()), "")
    name = name or _find_encoder_file(repository)
    return _download(f"{repository}/{name}", copies / name)


def _find_encoder_file(repository: str) -> str:
    """The name of the encoder's file in a repository of the Hub."""

    def list_files() -> list[str]:
        import fsspec

        files, path = fsspec.url_to_fs(repository)
        return [name.removeprefix(f"{path}/") for name in files.ls(path, detail=False)]

    names = _reach(repository, list_files)
    file = next((name for name in FOLDER_FILES if name in names), None)
    if file is None:
        known = ", ".join(FOLDER_FILES)
        raise WeightsError(f"{repository}: the repository contains none of {known}; name its file, {repository}/FILE")
    return file


def _copies_of(url: str) -> Path:
    return cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16]


def _download(url: str, copy: Path) -> Path:
    """Download a file, and those that it names where it is an index, unless their copies are there."""
    if not copy.is_file():
        _reach(url, lambda: _stream(url, copy))
    if copy.name.endswith(INDEX):
        parts = urlsplit(url)
        for name in sorted(set(parts_of(copy).values())):
            beside = f"{parts.path.rsplit('/', 1)[0]}/{quote(name)}"
            _download(parts._replace(path=beside).geturl(), copy.with_name(name))
    return copy


def _stream(url: str, copy: Path) -> None:
    import fsspec

    copy.parent.mkdir(parents=True, exist_ok=True)
    with fsspec.open(url, "rb", **_options(url)) as remote, atomic_open(copy) as local:
        while chunk := remote.read(_CHUNK):
            local.write(chunk)


def _options(url: str) -> dict[str, Any]:
    """Options of fsspec to read a file in one go: not every HTTP server knows ranges."""
    if url.startswith(HUB):
        return {"block_size": 0}
    return {"block_size": 0, "headers": {"Accept-Encoding": "identity"}} if url.startswith("http") else {}


def _reach(url: str, action: Callable[[], Result]) -> Result:
    """Call what reads a URL; its errors become one line without passwords and signatures."""
    shown = re.sub(r"://[^/@]*@", "://", url.split("?")[0])
    try:
        return action()
    except ImportError as error:
        raise WeightsError(f"{shown}: {error}; pip install 'spectralforge[remote]'") from None
    except Exception as error:  # every backend has errors of its own
        missing = next(
            (_MISSING[name] for cause in (error, error.__cause__) if (name := type(cause).__name__) in _MISSING), ""
        )
        if missing or isinstance(error, FileNotFoundError):
            raise WeightsError(f"{shown}: {missing or 'no such file; check the URL'}") from None
        reason = re.sub(r"https?://\S+", "", " ".join(str(error).split()))  # they repeat the whole URL
        raise WeightsError(f"{shown}: the download failed ({type(error).__name__}: {reason}); try again") from None

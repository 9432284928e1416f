"""Encoders from a folder or a URL, as model hubs hand them out; a download is kept and made once."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from pretrain.models.encoder import Encoder
from pretrain.weights.containers import ENCODER_FILE, INDEX, parts_of
from pretrain.weights.description import EncoderDescription, WeightsError
from pretrain.weights.files import load_encoder
from shards.files.atomic import atomic_open

CACHE_VARIABLE = "SPECTRALFORGE_CACHE"
_FILES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
_PIECE = 8 << 20  # bytes that are in memory of a download


def from_pretrained(location: str | Path, **options: Any) -> tuple[Encoder, EncoderDescription]:
    """The encoder in a folder, in a file or behind a URL of either.

    Args:
        location: a folder with ``encoder.safetensors`` in it, or the file itself, of any format that
            ``load_encoder`` reads; or ``https://``, ``s3://`` and what else fsspec knows. What was downloaded
            stays in ``$SPECTRALFORGE_CACHE`` (``~/.cache/spectralforge``): remove it there to have it anew.
        options: ``load_encoder``'s.

    Raises:
        WeightsError: see ``load_encoder``; or nothing is at the URL, or the download broke off.
    """
    return load_encoder(local_path(location), **options)


def local_path(location: str | Path) -> Path:
    """Where the files of a location are on this machine, downloaded where they weren't; see `from_pretrained`."""
    if not isinstance(location, str | Path):
        raise WeightsError(f"load_encoder: {location!r}: give the path or URL of an encoder")
    text = str(location)
    if text.startswith("file://"):
        location = unquote(urlsplit(text).path)
    elif "://" in text:
        return _download(text)
    path = Path(location)
    return path / ENCODER_FILE if (path / ENCODER_FILE).is_file() else path


def cache_folder() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "spectralforge")


def _download(url: str) -> Path:
    """The local copy of a URL's file, and of those that it names where it is an index, made where there is none."""
    parts = urlsplit(url)
    if not parts.path.endswith((*_FILES, INDEX)):
        parts = parts._replace(path=f"{parts.path.rstrip('/')}/{ENCODER_FILE}")
        url = parts.geturl()
    copy = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16] / parts.path.rsplit("/", 1)[-1]
    _fetch(url, copy)
    if copy.name.endswith(INDEX):
        for part in sorted(set(parts_of(copy).values())):
            beside = f"{parts.path.rsplit('/', 1)[0]}/{quote(part)}"
            _fetch(parts._replace(path=beside).geturl(), copy.with_name(part))
    return copy


def _fetch(url: str, copy: Path) -> None:
    """Download a file, unless its copy is there."""
    if copy.is_file():
        return
    parts = urlsplit(url)
    shown = re.sub(r"://[^/@]*@", "://", url.split("?")[0])  # messages are no place for a password or a signature
    try:
        import fsspec

        copy.parent.mkdir(parents=True, exist_ok=True)
        with fsspec.open(url, "rb", **_streaming(parts.scheme)) as remote, atomic_open(copy) as local:
            while piece := remote.read(_PIECE):
                local.write(piece)
    except ImportError as error:
        raise WeightsError(f"{shown}: {error}; pip install -e '.[remote]' in the checkout") from None
    except FileNotFoundError:
        raise WeightsError(f"{shown}: no such file; check the URL") from None
    except Exception as error:  # every backend has errors of its own
        reason = re.sub(r"https?://\S+", "", " ".join(str(error).split()))  # they repeat the whole URL
        raise WeightsError(f"{shown}: the download failed ({type(error).__name__}: {reason}); try again") from None


def _streaming(scheme: str) -> dict[str, Any]:
    """HTTP in one go: not every server of files knows ranges."""
    return {"block_size": 0, "headers": {"Accept-Encoding": "identity"}} if scheme in ("http", "https") else {}

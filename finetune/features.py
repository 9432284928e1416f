"""Features of a frozen encoder, computed once and kept as Zarr arrays: every head is trained on the cache."""

import hashlib
from pathlib import Path

import numpy as np
import torch
import zarr
from torch import Tensor
from tqdm import tqdm

from finetune.datasets import LabelledWindows
from pretrain.models import Normaliser
from pretrain.models.encoder import Encoder

BATCH = 16


def frozen_features(
    encoder: Encoder, normalise: Normaliser, windows: LabelledWindows, path: Path, device: torch.device, quiet: bool
) -> Tensor:
    """Patch features (N, D, g, g) float32 on the CPU, from ``path`` where they are these, else computed and kept.

    Args:
        encoder: in evaluation mode, on ``device``.
        path: of the Zarr array; its attribute ``fingerprint`` says of which weights, normalisation and images it is.
    """
    fingerprint = _fingerprint(encoder, normalise, windows)
    cached = _open(path, fingerprint)
    if cached is not None:
        return torch.from_numpy(cached[:])
    side = windows.images.shape[-1] // encoder.stride
    shape = (len(windows), encoder.feature_dim, side, side)
    array = zarr.create_array(path, shape=shape, chunks=(BATCH, *shape[1:]), dtype="float32", overwrite=True)
    begins = range(0, len(windows), BATCH)
    with torch.no_grad():
        for begin in tqdm(begins, desc=f"features {path.stem}", unit="batch", disable=quiet, mininterval=1.0):
            images = torch.from_numpy(windows.images[begin : begin + BATCH]).to(device)
            array[begin : begin + len(images)] = encoder.dense_features(normalise(images)).float().cpu().numpy()
    array.attrs["fingerprint"] = fingerprint  # written last: a cache that was cut short has none
    return torch.from_numpy(np.asarray(array[:]))


def _open(path: Path, fingerprint: str) -> zarr.Array | None:
    try:
        array = zarr.open_array(path, mode="r")
    except (FileNotFoundError, ValueError):
        return None
    whole = array.nchunks_initialized == array.nchunks  # a chunk that is missing would be read as zeros
    return array if whole and array.attrs.get("fingerprint") == fingerprint else None


def _fingerprint(encoder: Encoder, normalise: Normaliser, windows: LabelledWindows) -> str:
    digest = hashlib.sha256(windows.images.tobytes())
    for statistics in (normalise.mu, normalise.sigma):
        digest.update(statistics.cpu().numpy().tobytes())
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

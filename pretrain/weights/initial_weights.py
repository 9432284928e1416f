"""Initialize a run from an encoder file, config key ``init``, instead of from the seed.

The file is any that `load_encoder` reads, local or remote. It provides the encoder; decoder and heads are drawn from
the seed, unless the file is our checkpoint of the same objective. Step, optimizer and schedule start anew, and momentum
networks start as copies. A resumed run takes its weights from its checkpoint and doesn't need the file.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.console import log
from pretrain.models.encoder import Encoder
from pretrain.models.patches import fit_positions
from pretrain.models.registry import outline_encoder
from pretrain.weights.band_input import bands_outside
from pretrain.weights.checkpoint_files import SEAL
from pretrain.weights.description import EncoderDescription, last_name
from pretrain.weights.encoder_weights import EncoderWeights
from pretrain.weights.files import load_strictly, read_encoder
from pretrain.weights.hub import fetch
from pretrain.weights.hub_ranks import fetch_on_all_ranks
from pretrain.weights.raw_checkpoint import INDEX, parts_of, resolve
from shards.errors import ConfigError
from shards.format.manifest import Manifest
from shards.sensors.sensor import MATCH_TOLERANCE_NM


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a run starts from.

    Attributes:
        path: the file or checkpoint.
        read: its encoder, at the run's image size, and what was trained beside it.
        lineage: what checkpoints and exports of the run record about the file.
    """

    path: Path
    read: EncoderWeights
    lineage: dict[str, Any]

    def put_into(self, module: nn.Module, objective: str) -> None:
        """Load a model's ``encoder`` strictly, and those parts beside it that the file holds in full.

        Raises:
            WeightsError: not all of the encoder's weights are there.
        """
        description = self.read.description
        load_strictly(cast(Encoder, module.get_submodule("encoder")), self.read.weights, str(self.path))
        log(
            f"initialized from {self.path} (sha256 {self.lineage['sha256'][:16]}): {self.read.format}, "
            f"{description.architecture}, {description.network} network, "
            f"{description.objective or 'unknown objective'}, {description.samples_seen or 'unknown'} tiles seen; "
            "step, optimizer and schedule start over"
        )
        log(self.read.report.table())
        for line in self.read.report.reshaped:
            log(f"position embeddings interpolated: {line}")
        if not self.read.is_described:
            log("the file doesn't say which bands it was trained on: assuming those of data.shards")
        heads = self.read.heads if description.objective == objective else {}
        for name, part in module.named_children():
            if name != "encoder" and part.state_dict():
                log(f"{name}: {'also taken from the file' if _fill(name, part, heads) else 'new'}")


def read_initial_weights(config: PretrainConfig, manifests: Sequence[Manifest]) -> InitialWeights | None:
    """Read the file of ``config.init``; None if it is not set. Every rank calls this and gets the same weights.

    Args:
        manifests: descriptions of the run's datasets.

    Raises:
        ConfigError: the file holds another encoder than the run's; one line names the difference.
        WeightsError: see ``load_encoder``.
    """
    location = config.init
    if location is None:
        return None
    path = fetch_on_all_ranks(location, _find)
    read = distributed.raise_on_all_hosts(lambda: _read(path, config, manifests[0]))
    hashes = distributed.gather_objects(_quick_hash({**read.weights, **read.heads}))
    hosts = distributed.host_names()
    distributed.raise_on_all_ranks(lambda: _check_same_everywhere(location, hashes, hosts))
    description = read.description
    if config.model.by_wavelength and description.wavelength_nm:
        _warn_outside(description, manifests)
    lineage = {
        "file": last_name(str(path)),
        "sha256": distributed.broadcast_object(file_hash(path) if distributed.is_main() else ""),
        "objective": description.objective,
        "network": description.network,
        "samples_seen": description.samples_seen,
        "dataset": description.dataset,
        "init": description.init,
    }
    return InitialWeights(path, read, {name: value for name, value in lineage.items() if value})


def location_hash(location: str) -> str:
    """Return `file_hash` of the file that a location refers to now."""
    return file_hash(_find(location))


def file_hash(path: Path) -> str:
    """Return the SHA-256 of an encoder file; for a checkpoint's folder or an index, that of its files' hashes."""
    if path.is_dir():
        is_sealed = (path / SEAL).is_file()
        return file_hash(path / SEAL) if is_sealed else _hash_of([part for part in path.iterdir() if part.is_file()])
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not path.name.endswith(INDEX):
        return digest
    return _hash_of([path.with_name(part) for part in set(parts_of(path).values())], digest)


def _hash_of(files: list[Path], first: str = "") -> str:
    return hashlib.sha256("".join([first, *map(file_hash, sorted(files))]).encode()).hexdigest()


def _find(location: str) -> Path:
    """A file, or a checkpoint's folder: of a run, its newest checkpoint, which holds decoder and heads, too."""
    return resolve(fetch(location))


def _read(path: Path, config: PretrainConfig, manifest: Manifest) -> EncoderWeights:
    read = read_encoder(path)
    _check_same_encoder(read, path, config)
    _check_same_bands(read, path, config, manifest)
    return read.resized(config.model.image_size) if config.model.is_vit else read


def _check_same_encoder(read: EncoderWeights, path: Path, config: PretrainConfig) -> None:
    description, model = read.description, config.model
    pairs: dict[str, tuple[Any, Any]] = {"model.name": (description.architecture, model.name)}
    if model.is_vit:
        pairs["model.patch_size"] = (description.patch_size, model.patch_size)
    for key, (in_file, in_config) in pairs.items():
        if in_file != in_config:
            raise ConfigError(
                f"key 'init': {path} contains another encoder: {key} is {in_file} there, but {in_config} in this run; "
                f"set {key}={in_file}, or name another file"
            )


def _check_same_bands(read: EncoderWeights, path: Path, config: PretrainConfig, manifest: Manifest) -> None:
    """Refuse an encoder that was trained on other bands; ``checkpoint.accept`` allows one that takes any number."""
    description, bands = read.description, manifest.tile_shape[0]
    any_number = outline_encoder(**config.model.model_dump(), bands=bands).bands is None
    trained_on = _in_words(description.sensor, description.bands, description.wavelength_nm)
    difference = f"key 'init': {path}: trained on {trained_on}, but data.shards has "
    difference += _in_words(manifest.sensor, bands, manifest.wavelength_nm)
    if not any_number and description.bands != bands:
        raise ConfigError(f"{difference}: a {description.architecture} takes only its own bands; name another file")
    if (
        not read.is_described
        or not description.wavelength_nm
        or config.model.by_wavelength
        or _are_same(description.wavelength_nm, manifest.wavelength_nm)
    ):
        return
    if "init" not in config.checkpoint.accept:
        raise ConfigError(
            f"{difference}: other bands; name an encoder of this sensor, or add checkpoint.accept=[init] to start "
            "from it anyway"
        )
    log(f"WARNING: {difference}: accepted by checkpoint.accept")


def _warn_outside(description: EncoderDescription, manifests: Sequence[Manifest]) -> None:
    """Log which datasets have bands that the encoder was not trained on."""
    for manifest in manifests:
        centers, widths = np.asarray(manifest.wavelength_nm), np.asarray(manifest.fwhm_nm)
        if outside := bands_outside(description, centers, widths):
            log(f"WARNING: key 'init': {manifest.sensor}: {outside}")


def _in_words(sensor: str, bands: int, wavelength_nm: list[float]) -> str:
    reach = f" from {min(wavelength_nm):.1f} to {max(wavelength_nm):.1f} nm" if wavelength_nm else ""
    return f"{sensor}, {bands} bands{reach}"


def _are_same(first: list[float], second: list[float]) -> bool:
    return len(first) == len(second) and bool(np.abs(np.subtract(first, second)).max(initial=0) <= MATCH_TOLERANCE_NM)


def _fill(name: str, part: nn.Module, heads: Mapping[str, Tensor]) -> bool:
    """Load a decoder or head from a checkpoint that holds all of it; otherwise leave it unchanged."""
    fitted = {}
    for key, tensor in part.state_dict().items():
        value = heads.get(f"{name}.{key}")
        value = None if value is None else fit_positions(key, value, tensor.shape)
        if value is None or value.shape != tensor.shape:
            return False
        fitted[key] = value
    part.load_state_dict(fitted)
    return True


def _quick_hash(tensors: Mapping[str, Tensor]) -> str:
    digest = xxhash.xxh3_64()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_same_everywhere(location: str, hashes: list[str], hosts: list[str]) -> None:
    differing = next((rank for rank, rank_hash in enumerate(hashes) if rank_hash != hashes[0]), None)
    if differing is not None:
        raise ConfigError(
            f"key 'init': {location}: rank {differing} on {hosts[differing]} reads different weights than rank 0 on "
            f"{hosts[0]}: give all nodes the same file, and clear their download caches"
        )

"""The description in an encoder file: everything needed to use the encoder, and where it came from."""

import copy
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretrain.models.registry import outline_encoder
from shards.errors import ForgeError
from shards.files.untrusted import read_json_value
from shards.sensors.sensor import get_sensor
from shards.sensors.spectrum import gaps

if TYPE_CHECKING:
    from pretrain.models.encoder import Encoder

HEADER_KEY = "spectralforge"
"""Key of the description in a safetensors header."""

TASK_KEY = "spectralforge-task"
"""Key of the task in the header of a fine-tuned model."""

EXTRA_STATE = "_extra_state"
"""torch's name for the extra entry of a module in its state dict: here the description, as JSON in a uint8 tensor."""

UNKNOWN = "unknown"

SOURCE_KEYS = ("name", "sensor", "wavelength_nm", "fwhm_nm", "mu", "sigma")
"""What a description says of each of several sources."""


class WeightsError(ForgeError):
    """An encoder file that is missing, damaged, or of another model."""


class BandStatistics(NamedTuple):
    """Bands of a dataset, in the order of its tiles, and the mean and deviation of their digital numbers."""

    wavelength_nm: list[float]
    fwhm_nm: list[float]
    mu: list[float]
    sigma: list[float]

    def stretches(self) -> list[tuple[float, float]]:
        """Return the first and last center of each stretch of bands without a gap."""
        order = np.argsort(self.wavelength_nm, kind="stable")
        centers, widths = np.asarray(self.wavelength_nm)[order], np.asarray(self.fwhm_nm)[order]
        parts = np.split(centers, gaps(centers, widths)) if len(centers) else []
        return [(float(part[0]), float(part[-1])) for part in parts]


@dataclass(frozen=True)
class EncoderDescription:
    """Everything needed to use an encoder, stored in its file.

    Attributes:
        architecture, image_size, patch_size: arguments of ``build_encoder``.
        sensor, wavelength_nm, fwhm_nm: the bands it was trained on, in order.
        mu, sigma: per-band normalization of digital numbers; empty where it is unknown.
        objective, samples_seen, dataset: how it was trained; the dataset is a content hash. "" and 0 where unknown.
        version: the version of the code that wrote the file.
        clip: normalized values are clipped to ±clip; None for no clipping.
        bands: number of bands of an image; 0 stands for the number of wavelengths.
        network: "student", the trained network, or "teacher", its average over training.
        config: the whole config of the run, with only the last part of each folder.
        dilation: for each layer of a ResNet, whether a dilation replaces its stride; empty for none.
        init: what training began from (file, sha256, objective, samples_seen, and its own init); empty for new weights.
        sources: of a run on several datasets, the name, sensor, wavelength_nm, fwhm_nm, mu and sigma of each; the first
            one's are the fields above.
        max_error: largest error of the pixels of its dataset (shards/format/error_bounds.py), of several by name; empty
            if they are lossless, or if it is unknown.
    """

    architecture: str
    image_size: int
    patch_size: int
    sensor: str
    wavelength_nm: list[float]
    fwhm_nm: list[float]
    mu: list[float]
    sigma: list[float]
    objective: str
    samples_seen: int
    dataset: str
    version: str
    clip: float | None = None
    bands: int = 0
    network: str = "student"
    config: dict[str, Any] = field(default_factory=dict)
    dilation: list[bool] = field(default_factory=list)
    init: dict[str, Any] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)
    max_error: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bands", self.bands or len(self.wavelength_nm))

    @property
    def options(self) -> dict[str, Any]:
        """Further arguments of ``build_encoder``: other settings of the encoder in the run's config."""
        known = {"name", "image_size", "patch_size", "bn_group", "attention"}
        return {key: value for key, value in (self.config.get("model") or {}).items() if key not in known}

    @property
    def takes_any_bands(self) -> bool:
        """Whether the encoder takes any number of bands, from the fewest on."""
        return self._outline().bands is None

    @property
    def by_wavelength(self) -> bool:
        """Whether the encoder takes bands of any sensor, by their centers and widths."""
        return self._outline().by_wavelength

    @property
    def tables(self) -> list["BandStatistics"]:
        """The bands of each dataset it was trained on, with their statistics."""
        own = {"wavelength_nm": self.wavelength_nm, "fwhm_nm": self.fwhm_nm, "mu": self.mu, "sigma": self.sigma}
        return [BandStatistics(*(each[name] for name in BandStatistics._fields)) for each in self.sources or [own]]

    @property
    def pretrained_on(self) -> str:
        """The datasets that it was trained on, with their shares of the samples and the bounds on errors of lossy ones.

        It is empty if they are unknown.
        """
        data = self.config.get("data") or {}
        sources = data.get("sources") or ([{"shards": data["shards"], "weight": 1.0}] if data.get("shards") else [])
        total = sum(source["weight"] for source in sources)
        names = {source.get("name") or last_name(source["shards"]): source["weight"] / total for source in sources}
        text = ", ".join(f"{name} {100 * share:.3g} %" if len(names) > 1 else name for name, share in names.items())
        return f"{text}; max error {self.max_error}" if text and self.max_error else text

    @property
    def ranges_nm(self) -> list[tuple[float, float]]:
        """Ranges of wavelengths that it was trained on, ascending, without the gaps between them."""
        found: list[tuple[float, float]] = []
        for low, high in sorted(stretch for table in self.tables for stretch in table.stretches()):
            if found and low <= found[-1][1]:
                found[-1] = found[-1][0], max(found[-1][1], high)
            else:
                found.append((low, high))
        return found

    def _outline(self) -> "Encoder":
        sizes = {"image_size": self.image_size, "patch_size": self.patch_size, "bands": self.bands}
        return outline_encoder(self.architecture, **sizes, **self.options)

    def to_header(self) -> dict[str, str]:
        """Return the metadata of a safetensors file."""
        return {HEADER_KEY: json.dumps(asdict(self))}


def read_header(metadata: dict[str, str], where: str) -> EncoderDescription | None:
    """Return the description in a safetensors header, or None; files of older versions lack some fields.

    Raises:
        WeightsError: the description is there and damaged.
    """
    if HEADER_KEY not in metadata:
        return None
    try:
        return _from_values(read_json_value(metadata[HEADER_KEY]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{where}: its description is damaged ({error}); export or download it again") from None


def read_tuned_header(metadata: dict[str, str], where: str) -> EncoderDescription | None:
    """Return `read_header`'s description; of a fine-tuned model, with the bands and statistics it was tuned for.

    Raises:
        WeightsError: see `read_header`; or the description of the task is damaged.
    """
    described = read_header(metadata, where)
    if described is None or TASK_KEY not in metadata:
        return described
    try:
        task_header = read_json_value(metadata[TASK_KEY])
        return _fine_tuned(described, task_header["inputs"], task_header["dilate"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{where}: its description is damaged ({error}); train it again") from None


def to_extra_state(description: EncoderDescription | Mapping[str, Any]) -> Tensor:
    """Return a description as an entry of a state dict."""
    values = asdict(description) if isinstance(description, EncoderDescription) else dict(description)
    return torch.frombuffer(bytearray(json.dumps({HEADER_KEY: values}, default=str).encode()), dtype=torch.uint8)


def from_extra_state(state: Tensor) -> EncoderDescription | None:
    """Return the description in an entry of a state dict; None if the tensor is something else."""
    try:
        return _from_values(read_json_value(bytes(state.cpu().to(torch.uint8).flatten().tolist()))[HEADER_KEY])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return None


def _from_values(values: dict[str, Any]) -> EncoderDescription:
    """Raises ValueError, KeyError or TypeError if fields are missing or of another type."""
    present = [field for field in fields(EncoderDescription) if field.name in values or _is_required(field)]
    given = {field.name: values[field.name] for field in present}
    _check_types(given)
    return EncoderDescription(**given)


def _fine_tuned(described: EncoderDescription, inputs: dict[str, Any], dilate: list[bool]) -> EncoderDescription:
    """The description of a fine-tuned encoder, whose images may have had other bands."""
    known = ("mu", "sigma", "clip") if inputs.get("response") else ("mu", "sigma", "clip", *_BANDS)
    changed = {name: inputs[name] for name in known} | {"dilation": dilate if any(dilate) else []}
    _check_types(changed)
    bands = described.bands if inputs.get("response") else len(inputs["wavelength_nm"])
    return replace(described, **changed, bands=bands, sources=[])


def _is_required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


_BANDS = ("sensor", "wavelength_nm", "fwhm_nm")
_TEXTS = ("name", "architecture", "sensor", "objective", "dataset", "version", "network", "max_error")
_COUNTS = ("image_size", "patch_size", "samples_seen", "bands")
_NUMBERS = ("wavelength_nm", "fwhm_nm", "mu", "sigma")


def _check_types(values: dict[str, Any]) -> None:
    """Raise ValueError if a field of a description is not of its type."""
    for name, value in values.items():
        if name in _TEXTS:
            fits = isinstance(value, str)
        elif name in _COUNTS:
            fits = isinstance(value, int) and 0 <= value < 1 << 63
        elif name in _NUMBERS:
            fits = isinstance(value, list) and all(isinstance(item, int | float) for item in value)
        elif name == "clip":
            fits = value is None or isinstance(value, int | float)
        elif name == "dilation":
            fits = isinstance(value, list) and all(isinstance(one, bool) for one in value)
        elif name == "sources":
            fits = isinstance(value, list) and all(
                isinstance(one, dict) and set(one) == set(SOURCE_KEYS) for one in value
            )
            for source in value if fits else ():
                _check_types(source)
        else:
            fits = isinstance(value, dict)
        if not fits:
            raise ValueError(f"'{name}' is {str(value)[:40]!r}")


def describe_run(state: dict[str, Any], network: str, where: str) -> EncoderDescription:
    """Return the description of the encoder in one of our checkpoints, from its ``state.json``.

    Raises:
        WeightsError: the state lacks something.
    """
    try:
        config, data = state["config"], state["data"]
        model = config["model"]
        return EncoderDescription(
            architecture=model["name"],
            image_size=model["image_size"],
            patch_size=model["patch_size"],
            sensor=data["sensor"],
            wavelength_nm=data["wavelength_nm"],
            fwhm_nm=data["fwhm_nm"],
            mu=data["mu"],
            sigma=data["sigma"],
            objective=config["objective"]["name"],
            samples_seen=state["samples_seen"],
            dataset=data["content_hash"],
            version=state.get("version", ""),
            clip=config.get("augment", {}).get("clip"),
            network=network,
            config=_without_folders(config),
            init=state.get("init") or {},
            sources=[{key: source[key] for key in SOURCE_KEYS} for source in data.get("sources") or ()],
            max_error=data.get("max_error", ""),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise WeightsError(f"{where}: not the state of a pretraining run ({error}); use another checkpoint") from None


def _without_folders(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config without the folders of the machine: only the last part of each path is kept."""
    public = copy.deepcopy(config)
    folders = ("run", "dir"), ("data", "shards"), ("data", "stage"), ("checkpoint", "local"), ("probe", "shards")
    for section, key in folders:
        location = (public.get(section) or {}).get(key)
        if location:
            public[section][key] = last_name(location)
    for source in (public.get("data") or {}).get("sources") or ():
        source |= {key: last_name(source[key]) for key in ("shards", "probe") if source.get(key)}
    if public.get("plugins"):
        public["plugins"] = [last_name(plugin) for plugin in public["plugins"]]
    if public.get("init"):
        public["init"] = last_name(public["init"])
    return public


def last_name(location: str) -> str:
    """Return the last part of a path or URL, without its query, which may hold a signature."""
    return str(location).split("?")[0].rstrip("/").rsplit("/", 1)[-1]


def describe_foreign(
    architecture: str, image_size: int, patch_size: int, bands: int | None, objective: str, network: str
) -> EncoderDescription:
    """Return a description for a file that has none: EnMAP's bands where their number fits, normalization unknown.

    Args:
        bands: number of bands that the encoder takes; None for any.
    """
    described = EncoderDescription(
        architecture, image_size, patch_size, UNKNOWN, [], [], [], [], objective, 0, "", "", bands=bands or 0
    )
    enmap = get_sensor("enmap").num_bands
    return with_sensor(described, "enmap", network) if bands in (None, enmap) else replace(described, network=network)


def with_sensor(described: EncoderDescription, sensor: str, network: str | None = None) -> EncoderDescription:
    """Return the description with the bands of a sensor: a name of the registry or a band table (``get_sensor``).

    Raises:
        ConfigError: no such sensor.
        WeightsError: the encoder takes another number of bands.
    """
    known = get_sensor(sensor)
    try:
        outline_encoder(described.architecture, bands=known.num_bands, **described.options)
    except ValueError as error:
        raise WeightsError(f"sensor '{sensor}': {error}") from None
    if described.bands not in (0, known.num_bands):
        raise WeightsError(
            f"sensor '{sensor}' has {known.num_bands} bands, but this encoder takes {described.bands}: name another"
        )
    return replace(
        described,
        sensor=known.name,
        wavelength_nm=list(known.wavelength_nm),
        fwhm_nm=list(known.fwhm_nm),
        bands=known.num_bands,
        network=network or described.network,
    )

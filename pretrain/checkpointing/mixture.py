"""The identity of several sources in checkpoints: what their order depends on, and where it begins."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.inputs import Inputs
from shards.order.mixture import MixturePlan
from shards.sensors.sensor import MATCH_TOLERANCE_NM


@dataclass(frozen=True)
class MixtureSource:
    """One source; equal if it gives the same tiles in the same share, whatever its name.

    Attributes:
        name: in messages.
        weight: its share, a whole number.
        dataset: hash of the tiles of its view.
        held_out: hash of its held-out locations.
        sensor, wavelength_nm: its bands, which the hash of the tiles covers.
    """

    name: str = field(compare=False)
    weight: int
    dataset: str
    held_out: str
    sensor: str = field(compare=False)
    wavelength_nm: Sequence[float] = field(compare=False)

    @property
    def bands(self) -> str:
        """Number of bands and sensor, for messages."""
        return f"{len(self.wavelength_nm)} of {self.sensor}"

    def has_bands_of(self, other: "MixtureSource") -> bool:
        """Return whether its bands are those of another source, in the same order."""
        own, others = self.wavelength_nm, other.wavelength_nm
        return len(own) == len(others) and bool(np.allclose(own, others, rtol=0, atol=MATCH_TOLERANCE_NM))


@dataclass(frozen=True)
class Mixture:
    """All sources in their order, and the samples of a block (None for one source, whose order has no blocks)."""

    sources: tuple[MixtureSource, ...]
    block: int | None


def current_mixture(inputs: Inputs) -> Mixture:
    """Return the mixture of a run's inputs."""
    sources = (
        MixtureSource(
            source.name,
            source.weight,
            source.plan.dataset,
            source.held_out_hash,
            source.manifest.sensor,
            source.manifest.wavelength_nm,
        )
        for source in inputs.sources
    )
    plan = inputs.plan
    return Mixture(tuple(sources), plan.order.block if isinstance(plan, MixturePlan) and len(plan.plans) > 1 else None)


def saved_mixture(state: dict[str, Any]) -> Mixture:
    """Return the mixture of a checkpoint; a run of one dataset is a mixture of one source."""
    data = state["data"]
    if "sources" not in data:
        name = Path(state["config"]["data"].get("shards") or "").name
        bands = data.get("sensor", ""), data.get("wavelength_nm", [])
        return Mixture((MixtureSource(name, 1, data["content_hash"], data.get("held_out", ""), *bands),), None)
    keys = ("name", "weight", "dataset", "held_out", "sensor", "wavelength_nm")
    sources = (MixtureSource(*(each[key] for key in keys)) for each in data["sources"])
    return Mixture(tuple(sources), data["block"])


def mixture_identity(inputs: Inputs) -> dict[str, Any]:
    """Return what a checkpoint stores of several sources, besides their common hash: plain JSON."""
    mixture, plan = current_mixture(inputs), inputs.plan
    assert isinstance(plan, MixturePlan)
    described = [
        {
            **asdict(source),
            "fwhm_nm": manifest.fwhm_nm,
            "mu": manifest.mean,
            "sigma": manifest.std,
        }
        for source, manifest in zip(mixture.sources, inputs.manifests, strict=True)
    ]
    return {"sources": described, "block": mixture.block, "order_begin": plan.begin}


def order_begin(state: dict[str, Any], inputs: Inputs) -> int:
    """Return the sample number at which the order of a resumed run's sources begins.

    It is the checkpoint's if the sources are the same; others start their order where the checkpoint was saved.
    """
    if not isinstance(inputs.plan, MixturePlan):
        return 0
    same = saved_mixture(state) == current_mixture(inputs)
    return int(state["data"].get("order_begin", 0) if same else state["samples_seen"])


def sources_change(old: Mixture, new: Mixture) -> str:
    """Describe how two mixtures that differ differ, in words."""
    now = {source.name: source for source in new.sources}
    renamed = {source.dataset: name for name, source in now.items()}
    then = {renamed.get(source.dataset, source.name): source for source in old.sources}
    changes = [f"'{name}' was added" for name in now.keys() - then.keys()]
    changes += [f"'{name}' was removed" for name in then.keys() - now.keys()]
    for name in then.keys() & now.keys():
        if then[name].weight != now[name].weight:
            changes.append(f"'{name}' has weight {now[name].weight}, it had {then[name].weight}")
        if then[name].wavelength_nm and not now[name].has_bands_of(then[name]):  # earlier versions didn't save bands
            changes.append(f"'{name}' has other bands ({now[name].bands}, it had {then[name].bands})")
        elif then[name].dataset != now[name].dataset:
            changes.append(f"'{name}' has other tiles")
        elif then[name].held_out != now[name].held_out:
            changes.append(f"'{name}' holds out other locations")
    if old.sources == new.sources:
        changes.append(f"model.bn_group is {new.block}, it was {old.block}")
    return ", ".join(sorted(changes)) or "their order changed"

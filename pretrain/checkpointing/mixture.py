"""The identity of several sources in checkpoints: what their order depends on, and where it begins."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pretrain.data.inputs import Inputs
from shards.order.mixture import MixturePlan


@dataclass(frozen=True)
class MixtureSource:
    """One source; equal if it gives the same tiles in the same share, whatever its name.

    Attributes:
        name: in messages.
        weight: its share, a whole number.
        dataset: hash of the tiles of its view.
        held_out: hash of its held-out locations.
    """

    name: str = field(compare=False)
    weight: int
    dataset: str
    held_out: str


@dataclass(frozen=True)
class Mixture:
    """All sources in their order, and the samples of a block (None for one source, whose order has no blocks)."""

    sources: tuple[MixtureSource, ...]
    block: int | None


def current_mixture(inputs: Inputs) -> Mixture:
    """Return the mixture of a run's inputs."""
    sources = (
        MixtureSource(source.name, source.weight, source.plan.dataset, source.held_out_hash)
        for source in inputs.sources
    )
    plan = inputs.plan
    return Mixture(tuple(sources), plan.order.block if isinstance(plan, MixturePlan) and len(plan.plans) > 1 else None)


def saved_mixture(state: dict[str, Any]) -> Mixture:
    """Return the mixture of a checkpoint; a run of one dataset is a mixture of one source."""
    data = state["data"]
    if "sources" not in data:
        name = Path(state["config"]["data"].get("shards") or "").name
        return Mixture((MixtureSource(name, 1, data["content_hash"], data.get("held_out", "")),), None)
    keys = ("name", "weight", "dataset", "held_out")
    sources = (MixtureSource(*(each[key] for key in keys)) for each in data["sources"])
    return Mixture(tuple(sources), data["block"])


def mixture_identity(inputs: Inputs) -> dict[str, Any]:
    """Return what a checkpoint stores of several sources, besides their common hash: plain JSON."""
    mixture, plan = current_mixture(inputs), inputs.plan
    assert isinstance(plan, MixturePlan)
    described = [
        {
            **asdict(source),
            "sensor": manifest.sensor,
            "wavelength_nm": manifest.wavelength_nm,
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
        if then[name].dataset != now[name].dataset:
            changes.append(f"'{name}' has other tiles")
        elif then[name].held_out != now[name].held_out:
            changes.append(f"'{name}' holds out other locations")
    if old.sources == new.sources:
        changes.append(f"model.bn_group is {new.block}, it was {old.block}")
    return ", ".join(sorted(changes)) or "their order changed"

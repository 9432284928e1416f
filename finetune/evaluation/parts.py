"""Finished parts of an evaluation, looked up by everything they depend on and recomputed if any of it changes.

::

    RUN/parts/<encoder>-<protocol>-<portion>[-seed-lr]-<key>.npz    see results.py; the key is a hash of the provenance
    RUN/parts/<encoder>-<protocol>-<portion>-<key>.heads.safetensors    heads of the frozen protocol, see head_files.py

Parts of another provenance are kept, so returning to an earlier setting reuses them.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from finetune.baselines.registry import SPECTRA
from finetune.data.code_version import Stage, code_version
from finetune.data.contents import identify_images
from finetune.data.hashes import digest
from finetune.encoders.features import encoder_hash
from finetune.encoders.raw_spectra import RAW
from finetune.evaluation.context import EvaluationContext
from finetune.evaluation.portion import Portion
from finetune.evaluation.provenance import differences, of_data, of_encoder, of_training
from finetune.evaluation.results import Provenance, Result, read_part, write_part
from finetune.evaluation.runs import BASELINE
from pretrain import distributed
from pretrain.console import log

KEY = 12
"""Number of characters of the key in a file name."""


@dataclass(frozen=True)
class Part:
    """A unit of work whose results are kept.

    Attributes:
        name: name without the key.
        path: path of its results, with the key.
    """

    name: str
    provenance: Provenance
    path: Path

    @property
    def heads(self) -> Path:
        """The file of the trained heads, see head_files.py."""
        return self.path.with_suffix(".heads.safetensors")

    def read(self) -> list[Result] | None:
        """Return its results on every rank; None if it must be computed, with the reason logged."""
        results: list[Result] | None = distributed.broadcast_object(
            read_part(self.path) if distributed.is_main() else None
        )
        if results is None and distributed.is_main():
            changed = self._changed()
            log(f"{', '.join(changed)} changed: {self.name} is evaluated again" if changed else self.name)
        return results

    def write(self, results: list[Result]) -> None:
        """Save its results."""
        write_part(self.path, results)

    def _changed(self) -> list[str]:
        """Return the differences from the newest part of this name; empty if there is no such part."""
        earlier = [path for path in self.path.parent.glob("*.npz") if path.stem.rpartition("-")[0] == self.name]
        for path in sorted(earlier, key=lambda file: file.stat().st_mtime, reverse=True):
            if results := read_part(path):
                old = results[0].provenance
                return differences(self.provenance, old) if old else ["version"]
        return []


class Parts:
    """The parts of an evaluation; every rank creates an instance and makes the same calls."""

    def __init__(self, context: EvaluationContext) -> None:
        self.context, self.config = context, context.config

    def provenance(self, name: str, protocol: str, portion: Portion) -> Provenance:
        """Return everything that results depend on except their seeds."""
        context = self.context
        return {
            **of_training(protocol, context.recipe, self.config),
            "training windows": context.rows_identity(portion),
            **self._data,
            **of_encoder(context.encoder, name, self.encoder_hashes[name]),
            "code": code_version(self._stage(protocol)),
        }

    def single(self, name: str, protocol: str, portion: Portion) -> Part:
        """Return the single part of a protocol on features, with all its heads, rates and seeds."""
        seeds = self.context.seeds(protocol, portion)
        provenance = self.provenance(name, protocol, portion) | {"seeds": list(seeds)}
        return self._part(f"{name}-{protocol.replace(' ', '_')}-{portion.key}", provenance)

    def trainings(self, name: str, protocol: str, portion: Portion, seed: int) -> dict[float, Part]:
        """Return the parts of one seed by rate, for a protocol that runs the encoder; rates are independent."""
        recipe, head = self.context.tuning(protocol, name)
        shared = {key: value for key, value in self.provenance(name, protocol, portion).items() if key != "lrs"}
        shared |= {"head": head.to_plain(), "seed": seed}
        stem = f"{name}-{protocol}-{portion.key}-seed{seed}"
        return {lr: self._part(f"{stem}-lr{lr:g}", shared | {"lr": lr}) for lr in recipe.lrs}

    def with_models(self) -> list[Part]:
        """Return the parts whose models are offered for prediction: those trained on all tiles."""
        parts: list[Part] = []
        is_offered = 1.0 in self.config.fractions and self.context.encoder.is_trainable
        for protocol in self.config.protocol if is_offered else ():
            if self.context.is_tuned(protocol):
                for seed in self.config.seeds:
                    parts += self.trainings("pretrained", protocol, Portion(), seed).values()
            elif protocol == "frozen":
                parts.append(self.single("pretrained", protocol, Portion()))
        return parts

    @cached_property
    def encoder_hashes(self) -> dict[str, str]:
        """Hashes of the initial weights, by ``pretrained`` and ``random``, and of what takes their place."""
        needed = self.config.compare_random and distributed.is_main()
        random = distributed.broadcast_object(encoder_hash(self.context.model("random").encoder) if needed else "")
        raw = digest([RAW, self.context.encoder.stride])
        replacements = {"raw": raw, SPECTRA: digest([SPECTRA])}
        return {"pretrained": self.context.encoder.sha256, "random": random, **replacements}

    @cached_property
    def _data(self) -> Provenance:
        context = self.context
        identify_images(context.splits, context.folder / "contents.json", context.heartbeat)
        return of_data(context.task, context.splits, self.config.data.bands, context.inputs)

    def _stage(self, protocol: str) -> Stage:
        if protocol == BASELINE:
            return "baselines"
        return "tuning" if self.context.is_tuned(protocol) else "heads"

    def _part(self, name: str, provenance: Provenance) -> Part:
        path = self.context.folder / "parts" / f"{name}-{digest(provenance)[:KEY]}.npz"
        return Part(name, provenance, path)

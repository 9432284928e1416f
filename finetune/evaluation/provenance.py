"""Everything a result depends on, by name: it keys finished parts and distinguishes rows of the report.

Entries are recorded by content: not the files, folders and names in a config, but the values that they resolve to.
Config values outside these lists don't change results (test_provenance.py checks every key).
"""

from dataclasses import asdict
from typing import Any

from finetune.baselines.registry import LIBRARY, SPECTRA, library_version
from finetune.config import FinetuneConfig
from finetune.data.datasets import LabeledSplit
from finetune.data.hashes import digest
from finetune.encoders.encoder import EncoderFile
from finetune.encoders.model_file import InputDescription
from finetune.encoders.raw_spectra import RAW
from finetune.evaluation.layers import probed_layer
from finetune.evaluation.neighbors import tested_bands
from finetune.evaluation.recipe import Recipe
from finetune.evaluation.results import Provenance
from finetune.evaluation.runs import BASELINE
from finetune.tasks import Task
from shards.config import ConfigModel
from shards.sources.layouts import SPLITS

OF_ENCODER = ("encoder", "architecture", "window", "dilate", "statistics")
"""Names that belong to the encoder."""

REPLACEMENTS = {"raw": RAW, SPECTRA: SPECTRA}
"""What takes the place of an encoder, and its architecture in results."""

LINEAR = "linear"
"""The head of protocol ``layers``."""

EXCLUDED = {"quota_gb", "save_every", "heads", "head"}
"""Keys of a recipe that don't change results, or are recorded elsewhere."""


def of_training(protocol: str, recipe: Recipe, config: FinetuneConfig) -> Provenance:
    """Return how a protocol computes its results, with all defaults and published values resolved."""
    if protocol == "knn":
        return config.knn.model_dump(mode="json")
    if bands := tested_bands(protocol):
        return config.knn.model_dump(mode="json") | {"training bands": config.shift.train, "test bands": bands}
    if protocol == BASELINE:
        heads = [model.to_plain() for model in config.baseline.chosen]
        return {"heads": heads, "samples": config.baseline.samples, LIBRARY: library_version()}
    loss = recipe.loss.to_plain()
    frozen = {"select": recipe.select, "loss": loss, **_values(recipe.frozen)}
    del frozen["bn"]  # it is frozen, or the encoder would be run in every step, as below
    if (layer := probed_layer(protocol)) is not None:
        return {"heads": [LINEAR], "layer": layer, **frozen}
    if protocol == "probe" or (protocol == "frozen" and recipe.frozen.bn == "frozen"):
        chosen = recipe.heads if protocol == "frozen" else (recipe.full_head,)
        return {"heads": [head.to_plain() for head in chosen], **frozen}
    full = recipe.of_tuning(protocol)
    provenance = {"select": recipe.select, "loss": loss, **_values(full), "precision": config.engine.precision}
    if full.start == "probe":
        provenance["probe"] = digest(of_training(recipe.probe, recipe, config))
    if protocol != "blocks":
        del provenance["first_blocks"]
    if protocol == "lora":
        provenance |= {"rank": recipe.lora.rank, "alpha": recipe.lora.alpha, "targets": list(recipe.lora.targets)}
    # the guard's window and sigma decide which steps are skipped; its patience only ends a run
    return provenance | {"guard": [config.guard.window, config.guard.sigma]}


def _values(section: ConfigModel) -> dict[str, Any]:
    return {key: value for key, value in section.model_dump(mode="json").items() if key not in EXCLUDED}


def of_data(task: Task, splits: dict[str, LabeledSplit], bands: str, inputs: InputDescription) -> Provenance:
    """Return the data as the encoder and the head receive it."""
    provenance: Provenance = {"task": task_hash(task)}
    provenance |= {f"{name} labels": splits[name].labels_hash for name in SPLITS}
    provenance |= {f"{name} images": splits[name].images_hash for name in SPLITS}
    description = asdict(inputs)
    statistics = {key: description.pop(key) for key in ("mu", "sigma", "clip")}
    return provenance | {"bands": bands, "input": digest(description), "statistics": digest(statistics)}


def of_encoder(file: EncoderFile, name: str, sha256: str) -> Provenance:
    """Return the initial weights and their network, or what takes their place."""
    if name in REPLACEMENTS:
        return {"encoder": sha256, "architecture": REPLACEMENTS[name], "window": file.size}
    network = {"architecture": file.description.architecture, "window": file.size, "dilate": list(file.dilate)}
    return {"encoder": sha256, **network}


def task_hash(task: Task) -> str:
    """Return the hash of the kind, the classes with their codes or the targets with their units, and the ignored codes;
    titles and colors are excluded."""
    classes = [[entry.name, list(entry.all_codes)] for entry in task.classes]
    targets = [[target.name, target.description, *([target.unit] if target.unit else [])] for target in task.targets]
    ignored = task.ignore if isinstance(task.ignore, str) else sorted(task.ignore)
    return digest([task.kind.to_plain(), classes, targets, ignored])


def differences(new: Provenance, old: Provenance) -> list[str]:
    """Return the names whose values differ, in the order of ``new``; for code, the files that differ."""
    names: list[str] = []
    for name in dict.fromkeys((*new, *old)):
        after, before = new.get(name), old.get(name)
        if after == before:
            continue
        if isinstance(after, dict) and isinstance(before, dict):
            files = [key for key in dict.fromkeys((*after, *before)) if after.get(key) != before.get(key)]
            names.append(f"{name} ({', '.join(files[:3])}{', ...' if len(files) > 3 else ''})")
        else:
            names.append(name)
    for what in ("labels", "images"):
        of_splits = [f"{name} {what}" for name in SPLITS]
        if all(name in names for name in of_splits):
            index = names.index(of_splits[0])
            names = [*names[:index], what, *(name for name in names[index:] if name not in of_splits)]
    return names

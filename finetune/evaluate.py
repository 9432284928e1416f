"""One evaluation: an encoder and its random-init baseline on one task, under each protocol, to one folder of results.

::

    RUN/
      config.yaml  results.json  statistics.npz  examples.npz    see finetune/evaluation/results.py
      model.safetensors      the pretrained encoder's best model by validation, for prediction
      features/KEY.zarr      features of the frozen protocols
      parts/NAME.npz         finished trainings: rerunning the command continues after them
      work/NAME/             checkpoints of the training in progress
      rank0.pid run.lock status.json    as in a pretraining run; status.json counts parts
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from finetune.baselines.registry import require_library
from finetune.config import FinetuneConfig
from finetune.data.datasets import LabeledSplit
from finetune.data.label_rasters import declared_line
from finetune.data.layouts import find_items
from finetune.data.leakage import seen_in_pretraining
from finetune.data.positions import lonlats, nearest_km
from finetune.data.regroup import grouping
from finetune.encoders.encoder import fit_encoder
from finetune.encoders.function_encoder import fit_function, is_function_file
from finetune.evaluation.collector import example_rows
from finetune.evaluation.context import EvaluationContext, EvaluationStopped
from finetune.evaluation.portion import Portion, list_portions
from finetune.evaluation.recipe import Recipe, check_layers, resolve_recipe
from finetune.evaluation.results import Result, RunResults, write_results
from finetune.evaluation.runs import BASELINE, encoder_names, expand, list_runs
from finetune.protocols.baseline import count_labeled
from finetune.protocols.runner import Protocols
from finetune.protocols.training_batches import cut_batch
from finetune.tasks import get_task
from finetune.tasks.kinds.kind import TaskKind, kind_of
from pretrain import distributed
from pretrain.console import log
from pretrain.models.lora import has_attention
from pretrain.resilience.run_folder import open_run
from pretrain.resilience.status import Status
from pretrain.resilience.watchdog import Watchdog
from pretrain.weights.files import load_encoder
from pretrain.weights.hub_ranks import fetch_on_all_ranks
from shards.config import dump_config
from shards.errors import ConfigError, ForgeError
from shards.files.atomic import write_atomic
from shards.files.journal import BestEffort
from shards.format.error_bounds import max_error
from shards.read.reader import ShardReader
from shards.sensors.rgb import stretch
from shards.sensors.sensor import NODATA, Sensor
from shards.sources.layouts import SPLITS

TRAINED = {"adapter", "blocks", "lora", "full"}
"""Protocols that train through the encoder."""


class Evaluator:
    """One run; every rank creates an evaluator and must call `evaluate`.

    Raises:
        ConfigError, WeightsError, SourceError, TileError: the config can't be evaluated; on every rank, in one line.
    """

    def __init__(self, config: FinetuneConfig, watchdog: Watchdog) -> None:
        self.config, self.folder = config, Path(config.run.dir)
        self.run = open_run(self.folder, watchdog, config.run.notify)
        fetch_on_all_ranks(config.checkpoint)  # `prepare` finds the download
        self.context: EvaluationContext = distributed.raise_on_all_hosts(lambda: prepare(config, watchdog))
        self.protocols = Protocols(self.context)
        self.config = config = self.context.config
        self.names = encoder_names(config.protocol, config.compare_random, config.compare_raw)

    def evaluate(self) -> bool:
        """Run the missing parts and write the results; return False if a stop was requested, after saving."""
        try:
            return self._evaluate()
        except ForgeError as error:
            self.run.end("failed", str(error))
            raise
        finally:
            self.run.release()

    def _evaluate(self) -> bool:
        config, context = self.config, self.context
        protocols = expand(config.protocol, config.shift.train, config.shift.test, config.layers.numbers or ())
        runs = list_runs(self.names, protocols, list_portions(config.fractions, config.shots))
        counts = ", ".join(f"{len(context.items[name])} {name}" for name in SPLITS)
        windows = f"{len(context.splits['train'])} training windows of {context.encoder.size} px"
        log(f"{context.task.name}: {counts} tiles, {windows}")
        if config.shots and (fewer := context.few_shots.fewer(max(config.shots))):
            found = ", ".join(f"{context.task.outputs[number]} {count}" for number, count in fewer.items())
            log(f"shots: fewer than {max(config.shots)} places have {found}: all of them are used")
        if distributed.is_main():
            path = self.folder / "config.yaml"
            with BestEffort(path):
                write_atomic(path, dump_config(self.config))
        distributed.barrier()
        results: list[Result] = []
        for number, (name, protocol, portion) in enumerate(runs):
            self._write_status("running", number, len(runs), f"{name}, {protocol}, {portion.key}")
            try:
                if number == 0:
                    self.protocols.begin()
                part_results = self.protocols.run(name, protocol, portion)
            except EvaluationStopped:
                log("stop requested; run the same command again to continue")
                part_results = None
            if part_results is None:
                self._write_status("stopped", number, len(runs))
                return False
            results += part_results
        if distributed.is_main():
            self.protocols.best_model.finish()
            write_results(self.folder, self._collect(results))
            shutil.rmtree(self.folder / "work", ignore_errors=True)
            log(f"{len(results)} results in {self.folder}; for a report, run python -m finetune report {self.folder}")
        distributed.barrier()
        self._write_status("complete", len(runs), len(runs), "")
        return True

    def _collect(self, results: list[Result]) -> RunResults:
        context, config = self.context, self.config
        kind, test, items = context.kind, context.splits["test"], context.items
        shown, hashes = example_rows(len(test)), self.protocols.parts.encoder_hashes
        data = {
            "tiles": {name: len(items[name]) for name in SPLITS},
            "images": {name: context.splits[name].images_hash for name in SPLITS},
            "labels": {name: context.splits[name].labels_hash for name in SPLITS},
            "sensor": context.encoder.sensor.name,
            "bands": config.data.bands,
            "split": grouping(config.data, items) or ("published" if config.data.splits else "location"),
            "window": context.encoder.size,
        }
        if bound := max_error_of(config.data.shards):
            data["max error"] = bound
        if BASELINE in config.protocol:
            data["baseline samples"] = {f"{fraction:g}": self._samples(fraction) for fraction in config.fractions}
        cost = {"features": self.protocols.feature_seconds}
        for result in results:
            key = f"{result.encoder}, {result.protocol}"
            cost[key] = cost.get(key, 0.0) + result.seconds
        test_lonlats, train_lonlats = (lonlats(items[name], config.data.read_threads) for name in ("test", "train"))
        return RunResults(
            task=context.task,
            encoders={name: self._describe(name, hashes[name]) for name in self.names},
            data=data,
            results=results,
            tiles=[item.name for item in items["test"]],
            places=[item.place for item in items["test"]],
            seen=seen_in_pretraining(config.data.pretraining, items["test"]),
            baseline=None if context.baseline is None else context.baseline.tolist(),
            cost=cost,
            rgb=_pictures(test, shown, context.encoder.sensor),
            labels=test.labels[shown].astype(kind.label_type),
            distance_km=nearest_km(test_lonlats, train_lonlats),
        )

    def _describe(self, name: str, sha256: str) -> dict[str, Any]:
        """Return the results' record of an encoder, with the operations of a forward on one window."""
        encoder = self.context.encoder
        gflops = encoder.gflops(len(self.context.inputs.mu)) if name in ("pretrained", "random") else None
        return encoder.describe(name, sha256) | ({} if gflops is None else {"gflops": gflops})

    def _samples(self, fraction: float) -> list[int]:
        """Return how many labeled training pixels, or tiles, baselines are fitted to, and how many there are."""
        context = self.context
        labeled = int(count_labeled(context.kind, context.splits["train"], context.rows(Portion(fraction), 0)).sum())
        return [min(labeled, self.config.baseline.samples), labeled]

    def _write_status(self, status: Status, done: int, total: int, part: str | None = None) -> None:
        if distributed.is_main():
            self.run.write_status(status, done, total, self.run.record.samples, part)


def prepare(config: FinetuneConfig, watchdog: Watchdog) -> EvaluationContext:
    """Read the inputs that a config names; local work, the same on every rank.

    Raises:
        ConfigError, WeightsError, SourceError, TileError: an input is missing or invalid; in one line.
    """
    if BASELINE in config.protocol:
        require_library()
    task = get_task(config.task)
    kind = kind_of(task)
    loaded = None if is_function_file(config.checkpoint) else load_encoder(config.checkpoint)
    if config.shots and kind.outputs_are != "classes":
        raise ConfigError(f"key 'shots': task {task.name} has targets and no classes: use fractions")
    if "lora" in config.protocol and loaded is not None and not has_attention(loaded[0]):
        raise ConfigError(
            f"key 'protocol': lora needs an encoder with attention, and {loaded[1].architecture} has none: choose "
            "adapter, blocks or full"
        )
    items = find_items(config.data, task, config.run.seed, warn=lambda line: log(f"WARNING: {line}"))
    encoder = fit_encoder(*loaded, config, task, items) if loaded else fit_function(config, task, items)
    recipe = resolve_recipe(config, kind, encoder.is_transformer)
    is_trained = bool(TRAINED & set(config.protocol)) or recipe.frozen.bn == "adapt"
    config = _with_layers(config, recipe, encoder.num_layers)
    if not encoder.is_trainable:
        config = _without_training(config, is_trained)
    if is_trained:
        cut_batch(recipe.full, distributed.world_size())
    tiles, image = sum(len(items[name]) for name in SPLITS), items["train"][0].image()
    keep = tiles * image.nbytes <= config.data.memory_gb * 1e9
    quiet = not distributed.is_main()
    splits = {
        name: LabeledSplit(items[name], task, encoder.size, config.data.read_threads, keep, quiet) for name in SPLITS
    }
    for name, split in splits.items():
        _check_labels(name, split, kind)
    items = {name: list(split.items) for name, split in splits.items()}
    inputs = encoder.describe_input(config.data, splits["train"])
    return EvaluationContext(config, watchdog, task, items, splits, encoder, inputs, recipe)


def _with_layers(config: FinetuneConfig, recipe: Recipe, num_layers: int) -> FinetuneConfig:
    """Return the config with the numbers of the layers that protocol ``layers`` probes."""
    numbers = config.layers.numbers
    check_layers(recipe, numbers or (), num_layers)
    layers = config.layers.model_copy(update={"numbers": numbers or tuple(range(num_layers))})
    return config.model_copy(update={"layers": layers}) if "layers" in config.protocol else config


def _without_training(config: FinetuneConfig, is_trained: bool) -> FinetuneConfig:
    """Return the config without a random-init baseline; raise ConfigError if it trains the encoder."""
    if is_trained:
        raise ConfigError(
            f"key 'protocol': {config.checkpoint} encodes and can't be trained: choose from knn, shift, frozen (with "
            "frozen.bn: frozen), layers and baseline"
        )
    if config.compare_random and distributed.is_main():
        log(f"{config.checkpoint} has no random-init baseline and no model.safetensors for maps")
    return config.model_copy(update={"compare_random": False})


def _check_labels(name: str, split: LabeledSplit, kind: TaskKind) -> None:
    """Warn about outputs without a label; raise ConfigError if a split has no labels."""
    if split.declared:
        log(f"WARNING: {name}: {declared_line(split.declared)}")
    labeled = kind.known(kind.tally(split.labels))
    if not labeled.any():
        raise ConfigError(f"task {kind.task.name}: no label of the '{name}' split is one of its {kind.outputs_are}")
    empty = [output for output, known in zip(kind.task.outputs, labeled, strict=True) if not known]
    if empty and distributed.is_main():
        note = "" if name == "train" else f"; means over {kind.outputs_are} exclude them unless they are predicted"
        log(f"WARNING: {name}: no label of {', '.join(empty)}{note}")


def _pictures(split: LabeledSplit, rows: np.ndarray, sensor: Sensor) -> np.ndarray:
    """Return windows as color pictures, uint8 (n, S, S, 3)."""
    images = split.images(rows)[:, list(sensor.rgb)].astype(np.float32).transpose(0, 2, 3, 1)
    return (255 * stretch(np.where(images == NODATA, np.nan, images))).astype(np.uint8)


def max_error_of(shards: str | None) -> str:
    """Return the largest error of the pixels of labeled shards; empty if they are lossless, or for other data."""
    return "" if shards is None else max_error(ShardReader(shards).manifest)

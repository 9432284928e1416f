"""One evaluation: an encoder and its untrained twin on one task, under each protocol, to one folder of results.

::

    RUN/
      config.yaml  results.json  units.npz  examples.npz    see finetune/evaluation/results.py
      model.safetensors      the pretrained encoder's best model by validation, for prediction
      features/KEY.zarr      features of the frozen protocols
      parts/NAME.npz         finished trainings: the same command goes on after them
      work/NAME/             checkpoints of the training that is under way
      rank0.pid run.lock status.json    as of a pretraining run; status.json counts parts
"""

import shutil
from pathlib import Path

import numpy as np

from finetune.config import FinetuneConfig
from finetune.data.datasets import LabeledSplit
from finetune.data.layouts import declared_line, find_items, grouping
from finetune.data.leakage import seen_in_pretraining
from finetune.encoders.encoder import fit_encoder
from finetune.evaluation.recipe import resolve_recipe
from finetune.evaluation.results import Result, RunResults, write_results
from finetune.evaluation.setting import Setting
from finetune.metrics.scoring import example_rows
from finetune.protocols.runner import Protocols, Stopped
from finetune.protocols.training_batches import cut_batch
from finetune.tasks import get_task
from pretrain import distributed
from pretrain.console import log
from pretrain.resilience.run_folder import open_run
from pretrain.resilience.status import Status
from pretrain.resilience.watchdog import Watchdog
from pretrain.weights.files import load_encoder
from pretrain.weights.hub_ranks import fetch_on_all_ranks
from shards.config import dump_config
from shards.errors import ConfigError, ForgeError
from shards.files.atomic import write_atomic
from shards.files.journal import BestEffort
from shards.sensors.rgb import stretch
from shards.sensors.sensor import NODATA, Sensor
from shards.sources.layouts import SPLITS

TRAINED = {"adapter", "blocks", "full"}
"""Protocols that train through the encoder."""


class Evaluator:
    """One run; every rank makes one, and `evaluate` is to be called on all.

    Raises:
        ConfigError, WeightsError, SourceError, TileError: what can't be evaluated, on every rank, in one line.
    """

    def __init__(self, config: FinetuneConfig, watchdog: Watchdog) -> None:
        self.config, self.folder = config, Path(config.run.dir)
        self.run = open_run(self.folder, watchdog)
        fetch_on_all_ranks(config.checkpoint)  # `prepare` finds the download
        self.setting: Setting = distributed.raise_on_all_ranks(lambda: prepare(config))
        self.protocols = Protocols(config, self.setting, self.folder, watchdog)
        self.names = ("pretrained", "random") if config.compare_random else ("pretrained",)

    def evaluate(self) -> bool:
        """Run what is not done yet and write the results. Returns False where it was asked to stop, and has saved."""
        try:
            return self._evaluate()
        except ForgeError as error:
            self.run.end("failed", str(error))
            raise
        finally:
            self.run.release()

    def _evaluate(self) -> bool:
        config, setting = self.config, self.setting
        wanted = [
            (name, protocol, fraction)
            for name in self.names
            for fraction in config.fractions
            for protocol in config.protocol
        ]
        told = ", ".join(f"{len(setting.items[name])} {name}" for name in SPLITS)
        windows = f"{len(setting.splits['train'])} training windows of {setting.encoder.size} px"
        log(f"{setting.task.name}: {told} tiles, {windows}")
        if distributed.is_main():
            path = self.folder / "config.yaml"
            with BestEffort(path):
                write_atomic(path, dump_config(self.config))
        distributed.barrier()
        results: list[Result] = []
        for number, (name, protocol, fraction) in enumerate(wanted):
            self._tell("running", number, len(wanted), f"{name}, {protocol}, {fraction:g}")
            try:
                if number == 0:
                    self.protocols.begin()
                found = self.protocols.run(name, protocol, fraction)
            except Stopped:
                log("asked to stop; the same command goes on after what is done")
                found = None
            if found is None:
                self._tell("stopped", number, len(wanted))
                return False
            results += found
        if distributed.is_main():
            self.protocols.best_model.finish()
            write_results(self.folder, self._collect(results))
            shutil.rmtree(self.folder / "work", ignore_errors=True)
            log(
                f"{len(results)} results in {self.folder}; python -m finetune report {self.folder} makes a page of them"
            )
        distributed.barrier()
        self._tell("complete", len(wanted), len(wanted), "")
        return True

    def _collect(self, results: list[Result]) -> RunResults:
        setting, config = self.setting, self.config
        task, test, items = setting.task, setting.splits["test"], setting.items
        shown, hashes = example_rows(len(test)), self.protocols.parts.encoder_hashes
        data = {
            "tiles": {name: len(items[name]) for name in SPLITS},
            "images": {name: setting.splits[name].images_hash for name in SPLITS},
            "labels": {name: setting.splits[name].labels_hash for name in SPLITS},
            "sensor": setting.encoder.sensor.name,
            "bands": config.data.bands,
            "split": grouping(config.data, items) or ("published" if config.data.splits else "location"),
            "window": setting.encoder.size,
        }
        cost = {"features": self.protocols.feature_seconds}
        for one in results:
            key = f"{one.encoder}, {one.protocol}"
            cost[key] = cost.get(key, 0.0) + one.seconds
        return RunResults(
            task=task,
            encoders={name: setting.encoder.told(name, hashes[name]) for name in self.names},
            data=data,
            results=results,
            tiles=[item.name for item in items["test"]],
            places=[item.place for item in items["test"]],
            seen=seen_in_pretraining(config.data.pretraining, items["test"]),
            baseline=None if setting.baseline is None else setting.baseline.tolist(),
            cost=cost,
            rgb=_pictures(test, shown, setting.encoder.sensor),
            labels=test.labels[shown].astype(np.int16 if task.kind == "segmentation" else np.float32),
        )

    def _tell(self, status: Status, done: int, wanted: int, part: str | None = None) -> None:
        if distributed.is_main():
            self.run.write_status(status, done, wanted, self.run.record.samples, part)


def prepare(config: FinetuneConfig) -> Setting:
    """Read what a config names; local work, the same on every rank.

    Raises:
        ConfigError, WeightsError, SourceError, TileError: in one line.
    """
    task = get_task(config.task)
    loaded = load_encoder(config.checkpoint)
    items = find_items(config.data, task, config.run.seed, tell=lambda line: log(f"WARNING: {line}"))
    encoder = fit_encoder(*loaded, config, task, items)
    recipe = resolve_recipe(config, task, encoder.is_vit)
    if TRAINED & set(config.protocol) or recipe.frozen.bn == "adapt":
        cut_batch(recipe.full, distributed.world_size())
    tiles, image = sum(len(items[name]) for name in SPLITS), items["train"][0].image()
    keep = tiles * image.nbytes <= config.data.memory_gb * 1e9
    quiet = not distributed.is_main()
    splits = {
        name: LabeledSplit(items[name], task, encoder.size, config.data.read_threads, keep, quiet) for name in SPLITS
    }
    items = {name: list(split.items) for name, split in splits.items()}
    if task.kind != "regression":
        _look_for_empty_classes(splits)
    baseline = splits["train"].labels.mean(0).astype(np.float64) if task.kind == "regression" else None
    inputs = encoder.describe_input(config.data, splits["train"])
    return Setting(task, items, splits, encoder, inputs, recipe, baseline, config.run.seed)


def _look_for_empty_classes(splits: dict[str, LabeledSplit]) -> None:
    """Warn of classes without a label; raise ConfigError where a split has none at all."""
    for name, split in splits.items():
        task, labels = split.task, split.labels
        if split.declared:
            log(f"WARNING: {name}: {declared_line(split.declared)}")
        if task.kind == "segmentation":
            counts = np.bincount(labels.ravel(), minlength=len(task.classes) + 1)[:-1]
        else:
            counts = labels.sum(0)
        empty = [one for one, count in zip(task.outputs, counts, strict=True) if not count]
        if not counts.any():
            raise ConfigError(f"task {task.name}: no label of the '{name}' split is one of its classes")
        if empty and distributed.is_main():
            left_out = "" if name == "train" else "; means over classes leave them out where nothing predicts them"
            log(f"WARNING: {name}: no label of {', '.join(empty)}{left_out}")


def _pictures(split: LabeledSplit, rows: np.ndarray, sensor: Sensor) -> np.ndarray:
    """Windows as people see them, uint8 (n, S, S, 3)."""
    images = split.images(rows)[:, list(sensor.rgb)].astype(np.float32).transpose(0, 2, 3, 1)
    return (255 * stretch(np.where(images == NODATA, np.nan, images))).astype(np.uint8)

"""One evaluation: an encoder and its untrained twin on one task, under each protocol, to one folder of results.

::

    RUN/
      config.yaml  results.json  units.npz  examples.npz    see finetune/results.py
      model.safetensors      the pretrained encoder's best model by validation, for prediction
      features/KEY.zarr      features of the frozen protocols
      parts/NAME.npz         finished trainings: the same command goes on after them
      work/NAME/             checkpoints of the training that is under way
      rank0.pid status.json  as of a pretraining run
"""

import hashlib
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.audit import seen_in_pretraining
from finetune.config import FinetuneConfig
from finetune.datasets import LabelledSplit
from finetune.encoders import EncoderFile, open_encoder, untrained_twin
from finetune.features import frozen_features
from finetune.heads import build_head
from finetune.knn import NearestNeighbours
from finetune.layouts import Split, find_items, items_hash
from finetune.metrics import Scores
from finetune.model_file import InputDescription, TaskModel, save_task_model
from finetune.probe import Sweep, Trained
from finetune.recipe import Recipe, adapting, resolve_recipe
from finetune.results import Result, RunResults, read_part, write_part, write_results
from finetune.scoring import Collector, Evaluation, example_rows, is_better, subset_rows
from finetune.tasks import Task, get_task
from finetune.tune import Tuned, Tuning, cut_batch
from pretrain import distributed
from pretrain.checkpoint import read_weights
from pretrain.models.initialise import initialise
from pretrain.run_folder import RunFolder, Status
from pretrain.telemetry import say
from pretrain.watchdog import Watchdog
from shards.atomic import write_atomic
from shards.config import dump_config
from shards.errors import ConfigError
from shards.sensors import get_sensor
from shards.sources import SPLITS


class Evaluator:
    """One run; every rank makes one, and `evaluate` is to be called on all.

    Raises:
        ConfigError, WeightsError, SourceError, TileError: what can't be evaluated, on every rank, in one line.
    """

    def __init__(self, config: FinetuneConfig, watchdog: Watchdog) -> None:
        self.config, self.watchdog, self.folder = config, watchdog, Path(config.run.dir)
        self.run = distributed.together(lambda: RunFolder(self.folder) if distributed.is_main() else None)
        distributed.together(self._prepare)
        self.cost: dict[str, float] = {}
        self.results: list[Result] = []

    def _prepare(self) -> None:
        config = self.config
        self.task: Task = get_task(config.task)
        self.items: Split = find_items(config.data, self.task, config.run.seed)
        self.encoder: EncoderFile = open_encoder(config, self.task, self.items)
        self.recipe: Recipe = resolve_recipe(config, self.task, self.encoder.is_vit)
        if {"full", "adapter", "blocks"} & set(config.protocol) or self.recipe.frozen.bn == "adapt":
            cut_batch(self.recipe.full, distributed.world_size())
        self.splits = self._read_splits()
        self._warn_of_empty_classes()
        self.inputs: InputDescription = self.encoder.describe_input(config.data, self.splits["train"])
        labels = self.splits["train"].labels
        self.baseline = labels.mean(0).astype(np.float64) if self.task.kind == "regression" else None
        self.names = ("pretrained", "random") if config.compare_random else ("pretrained",)

    def evaluate(self) -> bool:
        """Run what is not done yet and write the results. Returns False where it was asked to stop, and has saved."""
        self._tell("running")
        told = ", ".join(f"{len(self.items[name])} {name}" for name in SPLITS)
        say(f"{self.task.name}: {told} tiles, {len(self.splits['train'])} training windows of {self.encoder.size} px")
        distributed.barrier()
        for name in self.names:
            for fraction in self.config.fractions:
                for protocol in self.config.protocol:
                    found = self._run_part(name, protocol, fraction)
                    if found is None:
                        self._tell("stopped")
                        return False
                    self.results += found
        if distributed.is_main():
            write_results(self.folder, self._collect())
            shutil.rmtree(self.folder / "work", ignore_errors=True)
        distributed.barrier()
        self._tell("complete")
        return True

    # ---- parts ----

    def _part(self, name: str, protocol: str, fraction: float, rest: str = "") -> Path:
        """File of a part's results; its name changes with everything that they depend on."""
        config = self.config.model_dump(mode="json")
        for key in (
            "run",
            "watchdog",
            "guard",
            "protocol",
            "fractions",
            "compare_random",
            *(["seeds"] if rest else []),
        ):
            del config[key]
        told = [config, self.config.run.seed, self.encoder.sha256, items_hash(self.items["train"])]
        digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]
        return self.folder / "parts" / f"{name}-{protocol}-{fraction:g}{rest}-{digest}.npz"

    def _run_part(self, name: str, protocol: str, fraction: float) -> list[Result] | None:
        adapts = protocol == "frozen" and self.recipe.frozen.bn == "adapt"
        if protocol in ("knn", "frozen") and not adapts:
            run = self._knn if protocol == "knn" else self._frozen
            return self._once(self._part(name, protocol, fraction), lambda: run(name, fraction))
        results = []
        for seed in self.config.seeds:
            found = self._tuned_seed(name, protocol, fraction, seed)
            if found is None:
                return None
            results.append(found)
        return results

    def _once(self, path: Path, run: Any) -> list[Result]:
        """A part's results: from the file that an earlier start left, or now."""
        found: list[Result] | None = distributed.from_main(read_part(path))
        if found is None:
            begin = time.monotonic()
            say(path.stem)
            found = run()
            seconds = time.monotonic() - begin
            found = [replace(one, seconds=seconds / max(len(found), 1)) for one in found]
            if distributed.is_main():
                write_part(path, found)
        return found

    def _knn(self, name: str, fraction: float) -> list[Result]:
        """The first seed alone: nothing is drawn but the bank, where it is too large."""
        seed, device = self.config.seeds[0], distributed.device()
        model = self._model(name).to(device)
        features = self._features(model, self.recipe.frozen.views if "frozen" in self.config.protocol else 1)
        rows = subset_rows(self.splits["train"], fraction, self.config.run.seed)
        results = []
        if distributed.is_main():
            bank = NearestNeighbours(features["train"], self.splits["train"], rows, self.task, self.config.knn, seed)
            found = {part: self._knn_scores(bank, features[part], part) for part in ("val", "test")}
            results = [_result(name, "knn", "knn", seed, fraction, None, None, found["val"].scores, found["test"], [])]
        return distributed.from_main(results)

    def _knn_scores(self, bank: NearestNeighbours, features: Any, part: str) -> Evaluation:
        split = self.splits[part]
        collector = Collector(split, self.task, self.baseline)
        for begin in range(0, len(split), 32):
            rows = np.arange(begin, min(begin + 32, len(split)))
            found = features.batch(rows, np.zeros(len(rows), np.int64))
            collector.add(rows, bank.predict(found, split.size).cpu().numpy())
        return collector.finish()

    def _frozen(self, name: str, fraction: float) -> list[Result]:
        """All heads, rates and seeds; seeds are shared out over the ranks."""
        config, frozen = self.config, self.recipe.frozen
        model = self._model(name).to(distributed.device())
        features = self._features(model, frozen.views)
        rows = subset_rows(self.splits["train"], fraction, config.run.seed)
        seeds = config.seeds[distributed.rank() :: distributed.world_size()]
        trained: list[Trained] = []
        if seeds:
            sweep = Sweep(
                features,
                self.splits,
                rows,
                self.task,
                model.encoder.stride,
                model.encoder.feature_dim,
                self.recipe.heads,
                frozen,
                self.recipe.select,
                self.baseline,
                lambda epoch: self.watchdog.begin("evaluation", epoch),
            )
            trained = sweep.run(seeds)
        if name == "pretrained" and fraction == 1.0:
            self._save_best_head(model, trained)
        mine = [
            _result(
                name,
                "frozen",
                one.member.name,
                one.member.seed,
                fraction,
                one.member.lr,
                one.member.best_epoch,
                one.member.best or Scores(),
                one.test,
                one.member.curve,
            )
            for one in trained
        ]
        return [one for part in distributed.gather_objects(mine) for one in part]

    def _tuned_seed(self, name: str, protocol: str, fraction: float, seed: int) -> Result | None:
        """The rate with the best validation score, of one seed."""
        frozen, recipe = self.recipe.frozen, self.recipe.full
        head = self.recipe.full_head
        if protocol == "frozen":
            recipe, head = adapting(frozen, recipe), self.recipe.heads[0]
        best: Result | None = None
        for lr in recipe.lrs:
            path = self._part(name, protocol, fraction, f"-seed{seed}-lr{lr:g}")
            part = path.stem
            found: list[Result] | None = distributed.from_main(read_part(path))
            if found is None:
                begin = time.monotonic()
                tuning = self._tuning(part, name, protocol, head, fraction, seed, lr)
                tuned = tuning.fit()
                if tuned is None:
                    return None
                scores, seconds = tuned.validation, time.monotonic() - begin
                one = _result(name, protocol, head, seed, fraction, lr, tuned.epoch, scores, tuned.test, tuned.curve)
                found = [replace(one, seconds=seconds)]
                if name == "pretrained" and fraction == 1.0 and distributed.is_main():
                    self._save_best_model(tuned, head, found[0])
                distributed.barrier()
                if distributed.is_main():
                    write_part(path, found)
                    shutil.rmtree(self.folder / "work" / part, ignore_errors=True)
            old = None if best is None else Scores(best.validation)
            if is_better(self.task, self.recipe.select, Scores(found[0].validation), old):
                best = found[0]
        return best

    def _tuning(self, part: str, name: str, protocol: str, head: Any, fraction: float, seed: int, lr: float) -> Tuning:
        recipe = self.recipe.full
        if protocol == "frozen":
            recipe = adapting(self.recipe.frozen, recipe)
        model = self._model(name, recipe.bn_group)
        model.head_name = head
        model.head = build_head(
            head,
            self.task.kind,
            model.encoder.feature_dim,
            len(self.task.outputs),
            model.encoder.stride,
            recipe.bn_group,
        )
        initialise(model.head, f"head.{head}", seed)
        rows = subset_rows(self.splits["train"], fraction, self.config.run.seed)
        return Tuning(
            model,
            self.splits,
            rows,
            self.folder / "work" / part,
            "none" if protocol == "frozen" else protocol,
            self.config.model_copy(update={"select": self.recipe.select, "frozen": self.recipe.frozen}),
            recipe,
            lr,
            seed,
            self.baseline,
            self.watchdog,
            part,
        )

    # ---- models ----

    def _model(self, name: str, bn_group: int | None = None) -> TaskModel:
        encoder = self.encoder.build(bn_group)
        if name == "random":
            untrained_twin(encoder, self.encoder.description, self.config.run.seed)
        dilate = self.encoder.dilate
        return TaskModel(encoder, self.encoder.description, self.inputs, task=self.task, dilate=dilate).eval()

    def _features(self, model: TaskModel, views: int) -> dict[str, Any]:
        """Of all splits; views other than the first are for training alone."""
        config, memory = self.config, self.config.data.memory_gb
        begin = time.monotonic()
        found = {
            part: frozen_features(
                model,
                self.splits[part],
                views if part == "train" else 1,
                self.folder / "features",
                config.frozen.quota_gb,
                memory,
                distributed.device(),
                part,
                lambda: self.watchdog.begin("evaluation", 0),
            )
            for part in SPLITS
        }
        self.cost["features"] = self.cost.get("features", 0.0) + time.monotonic() - begin
        return found

    def _save_best_head(self, model: TaskModel, trained: list[Trained]) -> None:
        """Keep encoder and best head of all ranks as the model for prediction."""
        mine = [(one.member.best, one.member.name, one.member.best_weights) for one in trained]
        everyone = [one for part in distributed.gather_objects(mine) for one in part]
        best: tuple | None = None
        for one in everyone:
            if is_better(self.task, self.recipe.select, one[0], None if best is None else best[0]):
                best = one
        if best is None or not distributed.is_main() or not self._is_best_model(best[0]):
            return
        encoder = {f"encoder.{key}": value for key, value in model.encoder.state_dict().items()}
        weights = encoder | {f"head.{key}": value for key, value in best[2].items()}
        model.head_name = best[1]
        save_task_model(self.folder / "model.safetensors", model, weights)
        self._note_best_model(best[0])

    def _save_best_model(self, tuned: Tuned, head: str, result: Result) -> None:
        if not self._is_best_model(Scores(result.validation)):
            return
        weights = {
            f"{part}.{key}": value
            for part in ("encoder", "head")
            for key, value in read_weights(tuned.checkpoint, part).items()
        }
        model = self._model("pretrained")
        model.head_name = head
        save_task_model(self.folder / "model.safetensors", model, weights)
        self._note_best_model(Scores(result.validation))

    def _is_best_model(self, scores: Scores) -> bool:
        noted = read_part(self.folder / "parts" / "best-model.npz")
        return is_better(self.task, self.recipe.select, scores, Scores(noted[0].validation) if noted else None)

    def _note_best_model(self, scores: Scores) -> None:
        empty = Evaluation(Scores(), np.zeros(0), np.zeros(0))
        best = _result("pretrained", "", "", 0, 1.0, None, None, scores, empty, [])
        write_part(self.folder / "parts" / "best-model.npz", [best])

    # ---- data and results ----

    def _read_splits(self) -> dict[str, LabelledSplit]:
        data, size = self.config.data, self.encoder.size
        tiles = sum(len(self.items[name]) for name in SPLITS)
        image = self.items["train"][0].image()
        keep = tiles * image.nbytes <= data.memory_gb * 1e9
        quiet = not distributed.is_main()
        return {
            name: LabelledSplit(self.items[name], self.task, size, data.read_threads, keep, quiet) for name in SPLITS
        }

    def _warn_of_empty_classes(self) -> None:
        if self.task.kind == "regression":
            return
        for name in SPLITS:
            labels = self.splits[name].labels
            if self.task.kind == "segmentation":
                counts = np.bincount(labels.ravel(), minlength=len(self.task.classes) + 1)[:-1]
            else:
                counts = labels.sum(0)
            empty = [one for one, count in zip(self.task.outputs, counts, strict=True) if not count]
            if not counts.any():
                raise ConfigError(f"task {self.task.name}: no label of the '{name}' split is one of its classes")
            if empty and distributed.is_main():
                left_out = "" if name == "train" else "; means over classes leave them out where nothing predicts them"
                say(f"WARNING: {name}: no label of {', '.join(empty)}{left_out}")

    def _collect(self) -> RunResults:
        test, kind = self.splits["test"], self.task.kind
        shown = example_rows(len(test))
        sensor = get_sensor(self.task.sensor)
        images = test.images(shown)[:, list(sensor.rgb)].astype(np.float32).transpose(0, 2, 3, 1)
        top = max(float(np.percentile(images, 98)), 1.0)
        rgb = (255 * np.clip(images / top, 0, 1) ** 0.8).astype(np.uint8)
        data = {
            "tiles": {name: len(self.items[name]) for name in SPLITS},
            "hash": {name: items_hash(self.items[name]) for name in SPLITS},
            "sensor": self.task.sensor,
            "bands": self.config.data.bands,
            "split": self.config.data.group or ("published" if self.config.data.splits else "location"),
            "window": self.encoder.size,
        }
        self.cost |= {
            f"{encoder}, {protocol}": sum(
                one.seconds for one in self.results if (one.encoder, one.protocol) == (encoder, protocol)
            )
            for encoder in self.names
            for protocol in self.config.protocol
        }
        return RunResults(
            task=self.task,
            encoders={name: self.encoder.told(name) for name in self.names},
            data=data,
            results=self.results,
            tiles=[item.name for item in self.items["test"]],
            places=[item.place for item in self.items["test"]],
            seen=seen_in_pretraining(self.config.data.pretraining, self.items["test"]),
            baseline=None if self.baseline is None else self.baseline.tolist(),
            cost=self.cost,
            rgb=rgb,
            labels=test.labels[shown].astype(np.int16 if kind == "segmentation" else np.float32),
        )

    def _tell(self, status: Status) -> None:
        if self.run is not None:
            if status == "running":
                write_atomic(self.folder / "config.yaml", dump_config(self.config))
            self.run.tell(status, len(self.results), len(self.names) * len(self.config.protocol))


def _result(
    encoder: str,
    protocol: str,
    head: str,
    seed: int,
    fraction: float,
    lr: float | None,
    epoch: int | None,
    validation: Scores,
    test: Evaluation,
    curve: list[dict[str, float]],
) -> Result:
    return Result(
        encoder,
        protocol,
        head,
        seed,
        fraction,
        lr,
        epoch,
        validation.values,
        test.scores.values,
        test.scores.by_output,
        curve,
        units=test.units,
        maps=test.maps,
    )

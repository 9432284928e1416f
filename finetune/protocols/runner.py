"""The protocols of an evaluation, each from a fresh encoder to results; what is done is kept and not done again."""

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.config import FinetuneConfig, FullConfig
from finetune.data.datasets import LabeledSplit
from finetune.data.hashes import digest
from finetune.encoders.features import Features, frozen_features
from finetune.encoders.model_file import TaskModel
from finetune.evaluation.best_model import BestModel
from finetune.evaluation.head_files import load_head, save_heads
from finetune.evaluation.parts import Part, Parts
from finetune.evaluation.results import Result
from finetune.evaluation.setting import Setting
from finetune.heads.heads import HeadName, build_head
from finetune.metrics.scores import Scores
from finetune.metrics.scoring import Collector, Evaluation, is_better
from finetune.protocols.frozen import HeadsDiverged, Sweep, Trained
from finetune.protocols.full import TrainingPlan, Tuned, Tuning
from finetune.protocols.knn import NearestNeighbours
from pretrain import distributed
from pretrain.checkpointing.checkpoint import read_weights
from pretrain.console import log
from pretrain.models.initialize import initialize
from pretrain.resilience.guard import Diverged
from pretrain.resilience.watchdog import Watchdog
from shards.errors import ForgeError
from shards.sources.layouts import SPLITS

VOTERS = 32
"""Windows that are asked for their neighbours at once."""


class Stopped(Exception):
    """A rank was asked to stop while there was nothing to save that isn't saved."""


class Protocols:
    """Runs protocols; every rank makes one and calls `run` with the same arguments.

    Args:
        folder: of the run.

    Attributes:
        feature_seconds: spent on features of frozen encoders.
    """

    def __init__(self, config: FinetuneConfig, setting: Setting, folder: Path, watchdog: Watchdog) -> None:
        self.config, self.setting, self.folder, self.watchdog = config, setting, folder, watchdog
        self.task, self.splits, self.recipe = setting.task, setting.splits, setting.recipe
        self.parts = Parts(config, setting, folder, self._alive)
        self.best_model = BestModel(folder, setting.task, setting.recipe.select)
        self.feature_seconds = 0.0

    def begin(self) -> None:
        """Look at what earlier starts left, before the first part.

        Raises:
            Stopped: it was asked to stop.
        """
        parts = self.parts.with_models()
        if distributed.is_main():
            self.best_model.begin(parts)
        distributed.barrier()

    def run(self, name: str, protocol: str, fraction: float) -> list[Result] | None:
        """Results of all seeds; None where the run was asked to stop, and has saved.

        Args:
            name: ``pretrained`` or ``random``.
            fraction: of the training tiles.

        Raises:
            Stopped: it was asked to stop on the way to features or heads.
        """
        results: list[Result] = []
        if self.setting.is_tuned(protocol):
            for seed in self.config.seeds:
                found = self._best_rate(name, protocol, fraction, seed)
                if found is None:
                    return None
                results.append(found)
        else:
            results = self._once(name, protocol, fraction)
        provenance = self.parts.provenance(name, protocol, fraction)
        told = provenance | {"code": digest(provenance["code"])}
        return [replace(one, provenance=told) for one in results]

    def _once(self, name: str, protocol: str, fraction: float) -> list[Result]:
        """Results of a protocol on features: from the file that an earlier start left, or now."""
        part = self.parts.whole(name, protocol, fraction)
        found = part.read()
        if found is None:
            begin = time.monotonic()
            found = self._knn(name, fraction, part) if protocol == "knn" else self._frozen(name, fraction, part)
            seconds = (time.monotonic() - begin) / max(len(found), 1)
            found = [replace(one, seconds=seconds) for one in found]
            if distributed.is_main():
                part.write(found)
        return found

    def _alive(self, number: int = 0) -> None:
        """Tell the watchdog that work goes on, and hear from it whether it shall."""
        self.watchdog.begin("evaluation", number)
        if self.watchdog.run is not None:
            self.watchdog.run.report_progress()
        if self.watchdog.stop_requested():
            raise Stopped

    # ---- on features of a frozen encoder ----

    def _knn(self, name: str, fraction: float, part: Part) -> list[Result]:
        """For the first seed alone: nothing is drawn but the bank, where it is too large."""
        seed, train = self.config.seeds[0], self.splits["train"]
        features = self._features(self.setting.model(name), self.recipe.frozen.views)
        bank = NearestNeighbours(features["train"], train, self.parts.rows(fraction), self.task, self.config.knn, seed)
        val, test = (self._vote(bank, features[split], self.splits[split]) for split in ("val", "test"))
        return [_result((name, "knn", "knn", seed, fraction), None, None, val.scores, test, [], part)]

    def _vote(self, bank: NearestNeighbours, features: Features, split: LabeledSplit) -> Evaluation:
        """Ranks share the windows."""
        collector = Collector(split, self.task, self.setting.baseline)
        for begin in range(distributed.rank() * VOTERS, len(split), distributed.world_size() * VOTERS):
            rows = np.arange(begin, min(begin + VOTERS, len(split)))
            found = features.batch(rows, np.zeros(len(rows), np.int64))
            collector.add(rows, bank.predict(found, split.size).cpu().numpy())
            self._alive()
        distributed.store_barrier(self._alive)
        sums = torch.from_numpy(collector.sums).to(distributed.device())
        return collector.finish(distributed.all_reduce_sum(sums).cpu().numpy())

    def _frozen(self, name: str, fraction: float, part: Part) -> list[Result]:
        """Train all heads at all rates for all seeds; seeds are shared out over the ranks."""
        model = self.setting.model(name)
        features, rows = self._features(model, self.recipe.frozen.views), self.parts.rows(fraction)
        seeds = self.config.seeds[distributed.rank() :: distributed.world_size()]
        trained: list[Trained] = []
        diverged: HeadsDiverged | None = None
        try:
            trained = self._sweep(model, features, rows, part.provenance["heads"]).run(seeds) if seeds else []
        except HeadsDiverged as error:
            diverged = error
        distributed.store_barrier(self._alive)  # some ranks have a seed more
        told = distributed.raise_on_all_ranks(lambda: _raise_or([_told(one) for one in trained], diverged))
        everyone = [one for some in distributed.gather_objects(told) for one in some]
        results = [
            _result((name, "frozen", head, seed, fraction), lr, epoch, validation, test, curve, part)
            for head, seed, lr, epoch, validation, test, curve, _ in everyone
        ]
        if distributed.is_main():
            save_heads(part.heads, {(head, seed): weights for head, seed, *_, weights in everyone})
        if name == "pretrained" and fraction == 1.0 and "frozen" in self.config.protocol and distributed.is_main():
            encoder = {f"encoder.{key}": value for key, value in model.encoder.state_dict().items()}
            for result, (head, *_, weights) in zip(results, everyone, strict=True):
                heads = {f"head.{key}": value for key, value in weights.items()}
                self.best_model.offer(model, head, encoder | heads, result)
        return results

    def _sweep(
        self, model: TaskModel, features: dict[str, Features], rows: np.ndarray, heads: Sequence[HeadName]
    ) -> Sweep:
        return Sweep(
            features,
            self.splits,
            rows,
            self.task,
            model.encoder.stride,
            model.encoder.feature_dim,
            tuple(heads),
            self.recipe.frozen,
            self.recipe.select,
            self.setting.baseline,
            self._alive,
        )

    def _features(self, model: TaskModel, views: int) -> dict[str, Features]:
        """Of all splits; views other than the first are for training alone."""
        begin, device = time.monotonic(), distributed.device()
        model.to(device)
        found = {
            split: frozen_features(
                model,
                self.splits[split],
                views if split == "train" else 1,
                self.folder / "features",
                self.config.frozen.quota_gb,
                self.config.data.memory_gb,
                device,
                split,
                self._alive,
            )
            for split in SPLITS
        }
        self.feature_seconds += time.monotonic() - begin
        return found

    # ---- through the encoder ----

    def _best_rate(self, name: str, protocol: str, fraction: float, seed: int) -> Result | None:
        """Of one seed, the rate with the best validation score."""
        recipe, head = self.setting.tuning(protocol)
        best: Result | None = None
        diverged: Diverged | None = None
        for lr, part in self.parts.trainings(name, protocol, fraction, seed).items():
            found = part.read()
            if found is None:
                rows = self.parts.rows(fraction)
                start = self._probe(name, fraction, head, seed) if recipe.start == "probe" else None
                begin = time.monotonic()
                try:
                    tuned = self._tuning(part.path.stem, name, protocol, recipe, head, rows, lr, seed, start).fit()
                except Diverged as error:  # on every rank alike; the other rates count
                    diverged = error
                    log(f"WARNING: {error}: lr {lr:g} is left out")
                    continue
                if tuned is None:
                    return None
                what = (name, protocol, head, seed, fraction)
                result = _result(what, lr, tuned.epoch, tuned.validation, tuned.test, tuned.curve, part)
                found = [replace(result, seconds=time.monotonic() - begin)]
                if distributed.is_main():
                    self._finish(part, tuned, found[0])
                distributed.barrier()
            before = None if best is None else Scores(best.validation)
            if is_better(self.task, self.recipe.select, Scores(found[0].validation), before):
                best = found[0]
        if best is None and diverged is not None:
            raise diverged
        return best

    def _probe(self, name: str, fraction: float, head: HeadName, seed: int) -> dict[str, Tensor]:
        """Return the head that training on frozen features finds for a seed, from its part or trained now (LP-FT)."""
        protocol = self.recipe.probe
        part = self.parts.whole(name, protocol, fraction)
        found = self._read_head(part, head, seed)
        if found is None:
            if distributed.is_main():
                part.path.unlink(missing_ok=True)  # of a version that kept no heads
            distributed.barrier()
            self._once(name, protocol, fraction)
            found = self._read_head(part, head, seed)
        assert found is not None
        return found

    def _read_head(self, part: Part, head: HeadName, seed: int) -> dict[str, Tensor] | None:
        found: dict[str, Tensor] | None = distributed.broadcast_object(
            load_head(part.heads, head, seed) if distributed.is_main() else None
        )
        return found

    def _tuning(
        self,
        part: str,
        name: str,
        protocol: str,
        recipe: FullConfig,
        head: HeadName,
        rows: np.ndarray,
        lr: float,
        seed: int,
        start: dict[str, Tensor] | None,
    ) -> Tuning:
        model = self.setting.model(name, recipe.bn_group)
        encoder, outputs = model.encoder, len(self.task.outputs)
        model.head = build_head(head, self.task.kind, encoder.feature_dim, outputs, encoder.stride, recipe.bn_group)
        initialize(model.head, f"head.{head}", seed)
        if start is not None:
            model.head.load_state_dict(start)
        plan = TrainingPlan(part, "none" if protocol == "frozen" else protocol, recipe, lr, seed, rows)
        return Tuning(plan, model, self.setting, self.folder / "work" / part, self.config, self.watchdog)

    def _finish(self, part: Part, tuned: Tuned, result: Result) -> None:
        """Keep a training's results, and its weights where they are the best, and drop its checkpoints."""
        if result.encoder == "pretrained" and result.fraction == 1.0:
            weights: dict[str, Any] = {}
            for name in ("encoder", "head"):
                weights |= {f"{name}.{key}": value for key, value in read_weights(tuned.checkpoint, name).items()}
            self.best_model.offer(self.setting.model("pretrained"), result.head, weights, result)
        part.write([result])
        shutil.rmtree(self.folder / "work" / part.path.stem, ignore_errors=True)


def _told(one: Trained) -> tuple:
    """Of a trained head, what other ranks need to know."""
    member = one.member
    scores = member.best or Scores()
    return member.name, member.seed, member.lr, member.best_epoch, scores, one.test, member.curve, member.best_weights


def _raise_or(value: list[tuple], error: ForgeError | None) -> list[tuple]:
    if error is not None:
        raise error
    return value


def _result(
    what: tuple[str, str, str, int, float],
    lr: float | None,
    epoch: int | None,
    validation: Scores,
    test: Evaluation,
    curve: list[dict[str, float]],
    part: Part,
) -> Result:
    for split, found in (("validation", validation), ("test", test.scores)):
        if not found.are_finite:
            bad = ", ".join(f"{key} {value}" for key, value in found.values.items() if not math.isfinite(value))
            encoder, protocol, head, seed, fraction = what
            raise Diverged(
                f"{encoder}, {protocol}, head {head}, seed {seed}, fraction {fraction:g}: {split} scores that are not "
                f"finite ({bad}): lower the learning rate, or look at the tiles of the '{split}' split"
            )
    return Result(
        *what,
        lr,
        epoch,
        validation.values,
        test.scores.values,
        test.scores.by_output,
        curve,
        provenance=part.provenance,
        units=test.units,
        maps=test.maps,
    )

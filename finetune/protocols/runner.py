"""The protocols of an evaluation, each from a fresh encoder to results; finished parts are saved and reused."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from finetune.data.hashes import digest
from finetune.encoders.features import Features
from finetune.encoders.model_file import TaskModel
from finetune.evaluation.best_model import BestModel
from finetune.evaluation.collector import Evaluation
from finetune.evaluation.context import EvaluationContext
from finetune.evaluation.head_files import load_head, save_heads
from finetune.evaluation.layers import probed_layer
from finetune.evaluation.neighbors import is_by_neighbors, tested_bands
from finetune.evaluation.parts import Part, Parts
from finetune.evaluation.portion import Portion
from finetune.evaluation.results import Result
from finetune.evaluation.runs import BASELINE
from finetune.evaluation.selection import is_better
from finetune.heads.inputs import HeadInput, input_of, input_of_layer
from finetune.heads.registry import HeadConfig, head_config
from finetune.metrics.scores import Scores
from finetune.protocols.baseline import BaselineSweep, FittedBaseline
from finetune.protocols.frozen import HeadsDiverged, HeadSweep, Trained
from finetune.protocols.full import TrainingPlan, Tuned, Tuning
from finetune.protocols.knn import NearestNeighbors
from finetune.protocols.outcome import SeedOutcome
from finetune.protocols.same_place import match_places
from pretrain import distributed
from pretrain.console import log
from pretrain.resilience.guard import Diverged
from shards.errors import ForgeError
from shards.sources.layouts import SPLITS

QUERIES = 32
"""Number of windows per batch of the neighbor search."""


class Protocols:
    """Runs protocols; every rank creates an instance and calls `run` with the same arguments.

    Attributes:
        feature_seconds: seconds spent on features of frozen encoders.
    """

    def __init__(self, context: EvaluationContext) -> None:
        self.context, self.config, self.recipe = context, context.config, context.recipe
        self.parts = Parts(context)
        self.best_model = BestModel(context.folder, context.kind, context.recipe.select)
        self.feature_seconds = 0.0

    def begin(self) -> None:
        """Check the results of earlier starts, before the first part.

        Raises:
            EvaluationStopped: the run was asked to stop.
        """
        parts = self.parts.with_models()
        if distributed.is_main():
            self.best_model.begin(parts)
        distributed.barrier()

    def run(self, name: str, protocol: str, portion: Portion) -> list[Result] | None:
        """Return the results of all seeds; None if a stop was requested, after saving.

        Args:
            name: ``pretrained``, ``random``, ``raw`` or ``spectra``.
            portion: portion of the training tiles.

        Raises:
            EvaluationStopped: the run was asked to stop while features were computed or heads were trained.
        """
        results: list[Result] = []
        if self.context.is_tuned(protocol):
            for seed in self.config.seeds:
                result = self._best_rate(name, protocol, portion, seed)
                if result is None:
                    return None
                results.append(result)
        else:
            results = self._once(name, protocol, portion)
        provenance = self.parts.provenance(name, protocol, portion)
        shared = provenance | {"code": digest(provenance["code"])}
        return [replace(result, provenance=shared) for result in results]

    def _once(self, name: str, protocol: str, portion: Portion) -> list[Result]:
        """Return the results of a protocol on features, read from an earlier start's file or computed."""
        part = self.parts.single(name, protocol, portion)
        results = part.read()
        if results is None:
            begin = time.monotonic()
            by_protocol = {BASELINE: self._baseline}
            evaluate = by_protocol.get(protocol, self._knn if is_by_neighbors(protocol) else self._frozen)
            results = evaluate(name, protocol, portion, part)
            seconds = (time.monotonic() - begin) / max(len(results), 1)
            results = [replace(result, seconds=seconds) for result in results]
            if distributed.is_main():
                part.write(results)
        return results

    # ---- on features of a frozen encoder ----

    def _knn(self, name: str, protocol: str, portion: Portion, part: Part) -> list[Result]:
        """Evaluate nearest neighbors: with few shots for each seed, else for one, as nothing but a large bank is drawn.

        In ``shift to NAME``, validation and test tiles are seen through other bands than those of the bank, and test
        tiles are searched for among all tiles through the bands of the bank.
        """
        context, bands, train = self.context, tested_bands(protocol), self.context.splits["train"]
        features = known = self._features(context.model(name, bands=bands and self.config.shift.train))
        if bands:
            features = self._features(context.model(name, bands=bands), ("val", "test"))
        results = []
        for seed in context.seeds(protocol, portion):
            rows = context.rows(portion, seed)
            bank = NearestNeighbors(known["train"], train, rows, context.kind, self.config.knn, seed)
            val, test = (self._vote(bank, features[split], split) for split in ("val", "test"))
            results.append(self._result(SeedOutcome("knn", seed, val.scores, test), name, protocol, portion, part))
        if bands is None or bands == self.config.shift.train:
            return results
        candidates = [(known[split], context.splits[split]) for split in reversed(SPLITS)]
        same_place, scores = match_places((features["test"], context.splits["test"]), candidates, self.config.knn.bank)
        return [replace(result, test=result.test | scores, same_place=same_place) for result in results]

    def _vote(self, bank: NearestNeighbors, features: Features, name: str) -> Evaluation:
        """Evaluate a split; ranks share the windows."""
        context, split = self.context, self.context.splits[name]
        collector = context.collector(name)
        for begin in range(distributed.rank() * QUERIES, len(split), distributed.world_size() * QUERIES):
            rows = np.arange(begin, min(begin + QUERIES, len(split)))
            found = features.batch(rows, np.zeros(len(rows), np.int64))
            collector.add_votes(rows, bank.vote(found, split.size))
            context.heartbeat()
        distributed.store_barrier(context.heartbeat)
        sums = torch.from_numpy(collector.sums).to(distributed.device())
        return collector.finish(distributed.all_reduce_sum(sums).cpu().numpy())

    def _frozen(self, name: str, protocol: str, portion: Portion, part: Part) -> list[Result]:
        """Train and evaluate all heads, rates and seeds; heads on the same features are trained together."""
        context = self.context
        model = context.model(name)
        heads = tuple(head_config(head) for head in part.provenance["heads"])
        layer = probed_layer(protocol)
        of_layer = None if layer is None else input_of_layer(layer, context.kind)
        probed = (
            [] if layer is None else [input_of_layer(each, context.kind) for each in self.config.layers.numbers or ()]
        )
        by_source: dict[HeadInput, list[HeadConfig]] = {}
        for config in heads:
            by_source.setdefault(of_layer or input_of(config, context.kind, model.encoder), []).append(config)
        outcomes: list[SeedOutcome] = []
        for source, chosen in by_source.items():
            features = self._features(model, SPLITS, source, probed)
            sweeps = [
                (HeadSweep(context, model.encoder, features, rows, tuple(chosen), source), seeds)
                for rows, seeds in self._draws(portion)
            ]
            outcomes += self._sweep(sweeps)
        labels = [config.label for config in heads]
        outcomes.sort(key=lambda outcome: (self.config.seeds.index(outcome.seed), labels.index(outcome.head)))
        results = [self._result(outcome, name, protocol, portion, part) for outcome in outcomes]
        if distributed.is_main():
            save_heads(part.heads, {(outcome.head, outcome.seed): outcome.weights or {} for outcome in outcomes})
        is_offered = context.encoder.is_trainable and "frozen" in self.config.protocol and layer is None
        if name == "pretrained" and portion.is_all and is_offered and distributed.is_main():
            encoder = {f"encoder.{key}": value for key, value in model.encoder.state_dict().items()}
            for result, outcome in zip(results, outcomes, strict=True):
                assert outcome.weights is not None
                head = {f"head.{key}": value for key, value in outcome.weights.items()}
                self.best_model.offer(model, head_config(outcome.head_options), encoder | head, result)
        return results

    def _sweep(self, sweeps: list[tuple[HeadSweep, tuple[int, ...]]]) -> list[SeedOutcome]:
        """Train the heads of sweeps, each with this rank's seeds of the same training windows."""
        return self._gather(
            lambda: [_seed_outcome(head) for sweep, seeds in sweeps if seeds for head in sweep.run(seeds)]
        )

    def _baseline(self, name: str, protocol: str, portion: Portion, part: Part) -> list[Result]:
        """Fit and evaluate models on spectra; seeds are distributed over the ranks."""
        sweeps = [(BaselineSweep(self.context, rows), seeds) for rows, seeds in self._draws(portion)]
        outcomes = self._gather(
            lambda: [_fitted_outcome(model) for sweep, seeds in sweeps for seed in seeds for model in sweep.run(seed)]
        )
        outcomes.sort(key=lambda outcome: outcome.seed)
        return [self._result(outcome, name, protocol, portion, part) for outcome in outcomes]

    def _draws(self, portion: Portion) -> list[tuple[np.ndarray, tuple[int, ...]]]:
        """Return training windows with those of this rank's seeds that train on them."""
        seeds = self.config.seeds[distributed.rank() :: distributed.world_size()]
        if portion.shots is None:
            return [(self.context.rows(portion, 0), seeds)]
        return [(self.context.rows(portion, seed), (seed,)) for seed in seeds]

    def _gather(self, compute: Callable[[], list[SeedOutcome]]) -> list[SeedOutcome]:
        """Compute this rank's seeds, and return the outcomes of all ranks; an error is raised on every rank."""
        own: list[SeedOutcome] = []
        failed: ForgeError | None = None
        try:
            own = compute()
        except HeadsDiverged as error:
            failed = error
        distributed.store_barrier(self.context.heartbeat)  # some ranks have one more seed
        own = distributed.raise_on_all_ranks(lambda: _raise_or(own, failed))
        return [outcome for of_rank in distributed.gather_objects(own) for outcome in of_rank]

    def _features(
        self,
        model: TaskModel,
        names: Sequence[str] = SPLITS,
        source: HeadInput | None = None,
        beside: Sequence[HeadInput] = (),
    ) -> dict[str, Features]:
        """Return the features of splits; only training uses views other than the first.

        Args:
            source, beside: see `FeatureStore.load`.
        """
        begin, store = time.monotonic(), self.context.feature_store
        model.to(distributed.device())
        splits, views = self.context.splits, self.recipe.frozen.views
        found = {
            name: store.load(model, splits[name], views if name == "train" else 1, name, source, beside)
            for name in names
        }
        self.feature_seconds += time.monotonic() - begin
        return found

    # ---- through the encoder ----

    def _best_rate(self, name: str, protocol: str, portion: Portion, seed: int) -> Result | None:
        """Return the result of one seed at the rate with the best validation score; None if stopped."""
        best: Result | None = None
        diverged: Diverged | None = None
        for lr, part in self.parts.trainings(name, protocol, portion, seed).items():
            results = part.read()
            if results is None:
                try:
                    result = self._tune(part, name, protocol, portion, lr, seed)
                except Diverged as error:  # raised on every rank; the other rates count
                    diverged = error
                    log(f"WARNING: {error}: lr {lr:g} is excluded")
                    continue
                if result is None:
                    return None
                results = [result]
            before = None if best is None else Scores(best.validation)
            if is_better(self.context.kind, self.recipe.select, Scores(results[0].validation), before):
                best = results[0]
        if best is None and diverged is not None:
            raise diverged
        return best

    def _probe(self, name: str, portion: Portion, head: HeadConfig, seed: int) -> dict[str, Tensor]:
        """Return a seed's head trained on frozen features, from its part or trained now (LP-FT)."""
        part = self.parts.single(name, self.recipe.probe, portion)
        weights = self._read_head(part, head, seed)
        if weights is None:
            if distributed.is_main():
                part.path.unlink(missing_ok=True)  # from a version that did not save heads
            distributed.barrier()
            self._once(name, self.recipe.probe, portion)
            weights = self._read_head(part, head, seed)
        assert weights is not None
        return weights

    def _read_head(self, part: Part, head: HeadConfig, seed: int) -> dict[str, Tensor] | None:
        weights: dict[str, Tensor] | None = distributed.broadcast_object(
            load_head(part.heads, head.label, seed) if distributed.is_main() else None
        )
        return weights

    def _tune(self, part: Part, name: str, protocol: str, portion: Portion, lr: float, seed: int) -> Result | None:
        """Train one model and save its result; return None if a stop was requested.

        Raises:
            Diverged: the training or its scores diverged.
        """
        context, rows = self.context, self.context.rows(portion, seed)
        recipe, head = context.tuning(protocol, name)
        start = self._probe(name, portion, head, seed) if recipe.start == "probe" else None
        begin = time.monotonic()
        model = context.model(name, recipe.bn_group)
        model.head_config = head
        model.head = context.head(head, model.encoder, model.head_input, seed, rows, recipe.bn_group)
        if start is not None:
            model.head.load_state_dict(start)
        plan = TrainingPlan(part.path.stem, "none" if protocol == "frozen" else protocol, recipe, lr, seed, rows)
        tuned = Tuning(plan, model, context).fit()
        if tuned is None:
            return None
        outcome = SeedOutcome(head.label, seed, tuned.validation, tuned.test, lr, tuned.epoch, tuned.curve)
        result = self._result(outcome, name, protocol, portion, part)
        result = replace(result, seconds=time.monotonic() - begin, size=tuned.size)
        if distributed.is_main():
            self._finish(part, tuned, head, result)
        distributed.barrier()
        return result

    def _finish(self, part: Part, tuned: Tuned, head: HeadConfig, result: Result) -> None:
        """Save a training's results, and its weights if they are the best, and remove its checkpoints."""
        if result.encoder == "pretrained" and result.portion.is_all:
            self.best_model.offer(self.context.model("pretrained"), head, tuned.weights(), result)
        part.write([result])
        shutil.rmtree(self.context.folder / "work" / part.path.stem, ignore_errors=True)

    def _result(self, outcome: SeedOutcome, name: str, protocol: str, portion: Portion, part: Part) -> Result:
        share = self.context.share(portion, outcome.seed)
        return outcome.to_result(name, protocol, portion, share, part.provenance)


def _seed_outcome(trained: Trained) -> SeedOutcome:
    """Return the outcome of a trained head, to be sent to other ranks."""
    trial, head = trained.trial, trained.trial.head_config
    validation = trial.best or Scores()
    selected = trial.lr, trial.best_epoch, trial.curve
    return SeedOutcome(head.label, trial.seed, validation, trained.test, *selected, head.to_plain(), trial.best_weights)


def _fitted_outcome(fitted: FittedBaseline) -> SeedOutcome:
    return SeedOutcome(fitted.config.label, fitted.seed, fitted.validation, fitted.test)


def _raise_or(value: list[SeedOutcome], error: ForgeError | None) -> list[SeedOutcome]:
    if error is not None:
        raise error
    return value

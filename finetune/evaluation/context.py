"""The validated inputs of an evaluation, in the one object that its protocols share."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import nn

from finetune.config import FinetuneConfig, FullConfig
from finetune.data.batches import subset_rows
from finetune.data.datasets import LabeledSplit
from finetune.data.few_shots import FewShots
from finetune.data.hashes import array_hash, digest
from finetune.data.items import Split
from finetune.encoders.band_sets import band_set
from finetune.encoders.encoder import EncoderFile, initialize_as_pretraining
from finetune.encoders.features import FeatureStore
from finetune.encoders.model_file import InputDescription, TaskModel
from finetune.encoders.raw_spectra import RAW, RawSpectra
from finetune.evaluation.collector import Collector
from finetune.evaluation.layers import probed_layer
from finetune.evaluation.neighbors import is_by_neighbors
from finetune.evaluation.portion import Portion
from finetune.evaluation.recipe import Recipe, from_scratch
from finetune.evaluation.runs import BASELINE
from finetune.heads.build import build_head, fit_to_labels
from finetune.heads.inputs import HeadInput
from finetune.heads.registry import HeadConfig
from finetune.losses.loss import Loss, build_loss
from finetune.tasks import Task
from finetune.tasks.kinds.kind import LabelSummary, TaskKind, kind_of
from pretrain import distributed
from pretrain.models.encoder import Encoder
from pretrain.models.initialize import initialize
from pretrain.resilience.watchdog import Watchdog
from shards.order.random_bits import fold_in


class EvaluationStopped(Exception):
    """A rank was asked to stop while there was nothing left to save."""


@dataclass(frozen=True)
class EvaluationContext:
    """Inputs of an evaluation, the same on every rank.

    Attributes:
        items: tiles by split.
        splits: windows by split.
        inputs: how tiles are converted to the encoder's input.
        recipe: how heads and models are trained.
    """

    config: FinetuneConfig
    watchdog: Watchdog
    task: Task
    items: Split
    splits: dict[str, LabeledSplit]
    encoder: EncoderFile
    inputs: InputDescription
    recipe: Recipe

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.config.run.dir)

    @cached_property
    def kind(self) -> TaskKind:
        """The kind of the task."""
        return kind_of(self.task)

    @cached_property
    def labels(self) -> LabelSummary:
        """Summary of all training labels."""
        return self.kind.summarize(self.splits["train"].labels)

    @property
    def baseline(self) -> np.ndarray | None:
        """The training mean of each target (T,); None for classes."""
        return self.labels.mean

    def heartbeat(self, number: int = 0) -> None:
        """Report progress to the watchdog.

        Args:
            number: epoch number, for messages.

        Raises:
            EvaluationStopped: the run was asked to stop.
        """
        self.watchdog.begin("evaluation", number)
        if self.watchdog.run is not None:
            self.watchdog.run.report_progress()
        if self.watchdog.stop_requested():
            raise EvaluationStopped

    # ---- data ----

    def rows(self, portion: Portion, seed: int) -> np.ndarray:
        """Return the training windows of a portion of the tiles; the seed of a training draws few shots anew."""
        train, run_seed = self.splits["train"], self.config.run.seed
        if portion.fraction is not None:
            return subset_rows(train, portion.fraction, run_seed)
        assert portion.shots is not None
        return self.few_shots.rows(portion.shots, fold_in(run_seed, "shots", seed))

    def rows_identity(self, portion: Portion) -> str:
        """Return a hash of everything that the windows of a portion depend on except the seed of a training."""
        if portion.fraction is not None:
            return array_hash(self.rows(portion, 0))
        return digest([self.few_shots.identity, portion.shots, self.config.run.seed])

    def share(self, portion: Portion, seed: int) -> float:
        """Return the fraction of the training tiles that a seed trains on."""
        if portion.fraction is not None:
            return portion.fraction
        train = self.splits["train"]
        return len(np.unique(train.tile_of[self.rows(portion, seed)])) / len(train.items)

    @cached_property
    def few_shots(self) -> FewShots:
        """The places of the training tiles, by class."""
        return FewShots.of(self.splits["train"])

    def seeds(self, protocol: str, portion: Portion) -> tuple[int, ...]:
        """Return the seeds of a protocol: the first one where nothing but the bank of neighbors is drawn."""
        is_drawn_once = is_by_neighbors(protocol) and portion.shots is None
        return self.config.seeds[:1] if is_drawn_once else self.config.seeds

    def collector(self, split: str, loss: Loss | None = None) -> Collector:
        """Return a collector of predictions for a split; the calibration is that of the test tiles."""
        return Collector(self.splits[split], self.kind, self.baseline, loss, calibrate=split == "test")

    # ---- models ----

    def model(self, name: str, bn_group: int | None = None, bands: str | None = None) -> TaskModel:
        """Build encoder and input, without a head, on the CPU.

        Args:
            name: ``pretrained``, ``random`` or ``raw``.
            bands: band set through which tiles are seen; None for the tiles' own bands.
        """
        file, inputs = self.encoder, self.inputs
        if bands is not None:
            inputs = file.describe_band_set(band_set(bands, file.sensor), inputs, name)
        if name == "raw":
            raw = RawSpectra(len(inputs.mu), file.stride)
            return TaskModel(raw, replace(file.description, architecture=RAW), inputs, task=self.task).eval()
        encoder = file.build(bn_group)
        if name == "random":
            initialize_as_pretraining(encoder, file.description, self.config.run.seed)
        return TaskModel(encoder, file.description, inputs, task=self.task, dilate=file.dilate).eval()

    def head(
        self,
        config: HeadConfig,
        encoder: Encoder,
        source: HeadInput,
        seed: int,
        rows: np.ndarray,
        bn_group: int | None = None,
    ) -> nn.Module:
        """Build a head with its initial weights, on the CPU.

        Args:
            encoder, source: determine the shape of the features that it gets.
            rows: training windows; their labels standardize the targets.
        """
        features, stride, layers = source.shape(encoder)
        head = build_head(config, self.kind, features, stride, bn_group, layers)
        initialize(head, f"head.{config.name}", seed)
        fit_to_labels(head, self._summary(rows))
        return head

    def loss(self, rows: np.ndarray) -> Loss:
        """Build the loss for training on these windows."""
        return build_loss(self.recipe.loss, self.kind, self._summary(rows))

    def _summary(self, rows: np.ndarray) -> LabelSummary:
        return self.kind.summarize(self.splits["train"].labels[rows])

    @property
    def feature_store(self) -> FeatureStore:
        """The store for features of frozen encoders."""
        config = self.config
        limits = config.frozen.quota_gb, config.data.memory_gb
        return FeatureStore(self.folder / "features", *limits, distributed.device(), self.heartbeat)

    # ---- protocols ----

    def is_tuned(self, protocol: str) -> bool:
        """Return whether a protocol runs the encoder in every step instead of computing features once."""
        if protocol in (BASELINE, "layers") or is_by_neighbors(protocol) or probed_layer(protocol) is not None:
            return False
        return protocol != "frozen" or self.recipe.frozen.bn == "adapt"

    def tuning(self, protocol: str, encoder: str) -> tuple[FullConfig, HeadConfig]:
        """Return the recipe and head of a protocol that runs the encoder in every step.

        The random-init baseline is trained from scratch: it has no features that a random head could distort, no
        statistics in its batch norms, and no reason to train its lower layers less than the upper ones. With ``lora``
        most of it stays as it is, so that it is trained like the pretrained encoder.
        """
        is_scratch = encoder != "pretrained" and protocol != "lora"
        recipe = from_scratch(self.recipe) if is_scratch else self.recipe
        return recipe.of_tuning(protocol), recipe.heads[0] if protocol == "frozen" else recipe.full_head

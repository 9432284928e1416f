"""Training of the full encoder or of parts of it, in the loop of pretraining.

::

    WORK/checkpoints/step-N/    checkpoints for resuming, see pretrain/checkpointing/checkpoint.py
    WORK/best/step-N/           weights with the best validation scores
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finetune.config import FullConfig
from finetune.encoders.model_file import TaskModel
from finetune.evaluation.collector import Evaluation
from finetune.evaluation.context import EvaluationContext
from finetune.metrics.scores import Scores
from finetune.protocols.epoch_evaluation import EpochEvaluation
from finetune.protocols.training_batches import LabeledBatch, TrainingBatches
from finetune.protocols.training_status import TrainingStatus
from finetune.protocols.tuned_model import TunedModel
from pretrain import distributed
from pretrain.checkpointing.checkpoint import read_weights
from pretrain.checkpointing.manager import CheckpointManager
from pretrain.config.optim import OptimConfig
from pretrain.console import log
from pretrain.engine.optimizers import build_optimizer
from pretrain.engine.schedules import warmup_cosine
from pretrain.engine.zero import ZeroEngine
from pretrain.loop.callbacks.divergence import Divergence
from pretrain.loop.callbacks.saving import Saving
from pretrain.loop.loop import Loop, Schedule
from pretrain.models.lora import add_updates, merge_updates
from pretrain.resilience.guard import Diverged, Guard
from shards.order.random_bits import fold_in, uniform

RATES = {"none": "frozen.lrs", "lora": "lora.lrs"}
"""Keys of the learning rates of trainings that don't use ``full.lrs``."""


@dataclass(frozen=True)
class TrainingPlan:
    """Settings that distinguish one training of an evaluation from the others.

    Attributes:
        name: name on the console and of the checkpoint folder.
        trained: part of the encoder that is trained, see TunedModel.
        recipe: epochs, batch size and augmentation.
        lr: learning rate.
        seed: seed of order, augmentation and dropout.
        rows: training windows.
    """

    name: str
    trained: str
    recipe: FullConfig
    lr: float
    seed: int
    rows: np.ndarray

    @property
    def advice(self) -> str:
        """What to do about a divergence."""
        return f"lower {RATES.get(self.trained, 'full.lrs')}"


@dataclass(frozen=True)
class Tuned:
    """A trained model at its best validation score, tested once.

    Attributes:
        checkpoint: checkpoint of its weights, under ``encoder.`` and ``head.``.
        lora_scale: factor of the updates of protocol ``lora`` in it.
        size: see Entry.
    """

    validation: Scores
    test: Evaluation
    epoch: int
    curve: list[dict[str, float]]
    checkpoint: Path
    lora_scale: float
    size: dict[str, int]

    def weights(self) -> dict[str, Tensor]:
        """Read its weights and buffers, with updates merged into the encoder's own weights."""
        found = {
            f"{part}.{name}": tensor
            for part in ("encoder", "head")
            for name, tensor in read_weights(self.checkpoint, part).items()
        }
        return merge_updates(found, self.lora_scale)


class Tuning:
    """One training; every rank creates an instance.

    Args:
        plan: settings of the training.
        model: encoder, head and input on the CPU, with the initial weights.
        context: data, task and config of the evaluation.
    """

    def __init__(self, plan: TrainingPlan, model: TaskModel, context: EvaluationContext) -> None:
        self.plan, self.context = plan, context
        self.loss = context.loss(plan.rows)
        self.inputs = model.images.to(distributed.device())
        train, work = context.splits["train"], context.folder / "work" / plan.name
        self.batches = TrainingBatches(train, plan.rows, self.loss, self.inputs, plan.recipe, plan.seed)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.engine = self._build_engine(model)
        self.best = CheckpointManager(work / "best", self.engine, keep=1)
        per_epoch = self.batches.steps_per_epoch
        self.evaluation = EpochEvaluation(
            plan.name,
            context.kind,
            context.recipe.select,
            plan.recipe,
            per_epoch,
            lambda: self._evaluate("val").scores,
            self.best,
        )
        steps, warmup = plan.recipe.epochs * per_epoch, plan.recipe.warmup_epochs * per_epoch
        self.loop = Loop(
            self.engine,
            SupervisedStep(model, plan.recipe.drop_path, plan.seed),
            Schedule(steps, plan.recipe.batch, lambda step: warmup_cosine(step, steps, warmup, plan.lr, 0.0)),
            Guard(context.config.guard),
            CheckpointManager(work / "checkpoints", self.engine, keep=2),
            context.watchdog,
            [
                TrainingStatus(plan.name),
                Divergence(plan.name, plan.advice, rolls_back=False),
                self.evaluation,
                Saving(plan.recipe.save_every),
            ],
        )
        torch.manual_seed(plan.seed * 100_003 + distributed.rank())  # seeds dropout; saved with checkpoints

    def fit(self) -> Tuned | None:
        """Train from the newest checkpoint and test; return None if a stop was requested, after saving.

        A training that runs out of patience ends as if all its epochs were over.

        Raises:
            CheckpointError: the work folder's checkpoints belong to another training, or none is complete.
            Diverged: too many steps were skipped, or no epoch has finite validation scores.
        """
        name, loop = self.plan.name, self.loop
        newest = loop.checkpoints.newest()
        if newest is not None:
            loop.resume(newest)
            log(f"{name}: resumed at step {loop.step} of {loop.schedule.steps}")
        loop.run(self.batches.from_step(loop.step))
        if self.evaluation.is_out_of_patience:
            epoch, best = self.evaluation.curve[-1]["epoch"], self.evaluation.best_epoch
            log(f"{name}: ended at epoch {epoch} of {self.plan.recipe.epochs}: none is better than epoch {best}")
        elif loop.stopping:
            log(f"{name}: stopped at step {loop.step} of {loop.schedule.steps} and saved")
            return None
        return self._test()

    def _build_engine(self, model: TaskModel) -> ZeroEngine:
        recipe, trained, lora = self.plan.recipe, self.plan.trained, self.context.recipe.lora
        if trained == "lora":
            add_updates(model.encoder, lora.targets, lora.rank, lora.alpha, self.plan.seed)
        tuned = TunedModel(model, self.loss, trained, recipe)
        optim = OptimConfig(
            lr=self.plan.lr, weight_decay=recipe.weight_decay, betas=(0.9, 0.999), layer_decay=recipe.layer_decay
        )
        optimizer, batches = build_optimizer(tuned, optim), self.batches
        self.trained = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
        return ZeroEngine(
            tuned, optimizer, self.context.config.engine, batches.micro, batches.accumulation, recipe.clip
        )

    def _evaluate(self, name: str) -> Evaluation:
        """Return a split's scores; every rank calls it and runs the same number of forward passes."""
        self.loop.watchdog.begin("evaluation", self.loop.step)
        split, world, batch = self.context.splits[name], distributed.world_size(), self.batches.micro
        collector = self.context.collector(name, self.loss)
        for number in range(-(-len(split) // (batch * world))):
            positions = np.arange(batch) + batch * (number * world + distributed.rank())
            rows = np.minimum(positions, len(split) - 1)
            tiles = torch.from_numpy(split.images(rows)).to(distributed.device())
            labels = torch.from_numpy(split.labels[rows]).to(distributed.device())
            _, scores = self.engine.evaluation(self.inputs(tiles), labels)
            valid = positions < len(split)
            if valid.any():
                collector.add_scores(rows[valid], scores[torch.from_numpy(valid).to(scores.device)])
        sums = torch.from_numpy(collector.sums).to(distributed.device())
        return collector.finish(distributed.all_reduce_sum(sums).cpu().numpy())

    def _test(self) -> Tuned:
        """Test the weights with the best validation scores."""
        path, evaluation = self.best.newest(), self.evaluation
        if path is None or evaluation.best is None or evaluation.diverged:
            raise Diverged(f"{self.plan.name}: diverged: no epoch has finite validation scores: {self.plan.advice}")
        self.best.load(path)
        test, lora = self._evaluate("test"), self.context.recipe.lora
        selected = evaluation.best, test, evaluation.best_epoch, evaluation.curve, path
        return Tuned(*selected, lora.alpha / lora.rank, self._size())

    def _size(self) -> dict[str, int]:
        """Count parameters, and bytes over all ranks: fp32 gradients and moments, and fp32 masters of bf16 weights.

        The peak is that of this rank since the last start.
        """
        engine = self.engine
        copies = 1 + len(engine.optimizer_state.moments) + (engine.config.precision == "bf16")
        size = {"parameters": engine.parameter_count, "trained": self.trained, "state_bytes": 4 * copies * self.trained}
        return size | ({"peak_bytes": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {})


class SupervisedStep:
    """Losses of labeled batches, with stochastic depth keyed by sample: the same on any number of processes.

    Args:
        model: model to train.
        drop_path: probability of dropping the last block, the largest of all blocks.
        seed: seed of the draws.
    """

    def __init__(self, model: TaskModel, drop_path: float, seed: int) -> None:
        self.blocks = model.encoder.residual_blocks() if drop_path else []
        self.drop_path, self.seed = drop_path, seed

    def losses(self, engine: ZeroEngine, batches: Iterator[LabeledBatch], step: int) -> Iterator[Tensor]:
        """Yield the losses of this rank's micro batches, weighted by their number of labels."""
        for _ in range(engine.accumulation):
            batch = next(batches)
            self._draw_paths(batch.samples)
            loss, _ = engine(batch.images, batch.labels)
            yield loss * batch.weight

    def after_step(self, engine: ZeroEngine, step: int) -> None:
        """Do nothing: no momentum network follows the weights."""

    def drop_step(self) -> None:
        """Do nothing: micro batches leave no state."""

    def _draw_paths(self, samples: np.ndarray) -> None:
        if not self.blocks:
            return
        draws = uniform(fold_in(self.seed, "path"), samples, len(self.blocks))
        for number, block in enumerate(self.blocks):
            dropped = self.drop_path * number / max(len(self.blocks) - 1, 1)
            keep = (draws[:, number] >= dropped) / (1 - dropped)
            block.keep = torch.from_numpy(keep.astype(np.float32)).view(-1, 1, 1).to(distributed.device())

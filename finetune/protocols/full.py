"""Training through the encoder: all of it, its adapter, or its first blocks, by the ZeRO engine, resumable.

::

    WORK/checkpoints/step-N/    where training goes on from, see pretrain/checkpointing/checkpoint.py
    WORK/best/step-N/           the weights of the best validation score
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.config import FullConfig
from finetune.data.batches import epoch_order
from finetune.data.datasets import view_of
from finetune.encoders.model_file import TaskModel
from finetune.evaluation.collector import Evaluation
from finetune.evaluation.context import EvaluationContext
from finetune.evaluation.selection import is_better
from finetune.losses.loss import Loss
from finetune.metrics.scores import Scores
from pretrain import distributed
from pretrain.checkpointing.checkpoint import load_checkpoint, newest_verified, prune, save_checkpoint
from pretrain.config.optim import OptimConfig
from pretrain.console import log
from pretrain.data.augment import crop_box, resample, resampling
from pretrain.engine.optimizers import build_optimizer
from pretrain.engine.schedules import warmup_cosine
from pretrain.engine.zero import ZeroEngine
from pretrain.models.vit import ViTEncoder
from pretrain.resilience.guard import Diverged, Guard, Verdict
from shards.errors import ConfigError
from shards.order.random_bits import fold_in, uniform


@dataclass(frozen=True)
class Tuned:
    """A trained model at its best validation score, tested once.

    Attributes:
        checkpoint: its weights, under ``encoder.`` and ``head.``.
    """

    validation: Scores
    test: Evaluation
    epoch: int
    curve: list[dict[str, float]]
    checkpoint: Path


class TunedModel(nn.Module):
    """Encoder and head with their loss; what isn't trained stays in evaluation mode.

    Args:
        model: on the CPU.
        trained: which part of the encoder learns: full, blocks, adapter or (bn: adapt) none.
        moving: whether batch norms of an encoder that doesn't learn take and move statistics all the same.
    """

    def __init__(self, model: TaskModel, loss: Loss, trained: str, first_blocks: int, moving: bool) -> None:
        super().__init__()
        assert model.head is not None
        self.encoder, self.head, self.loss = model.encoder, model.head, loss
        self.whole = trained == "full" or moving
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(_learns(name, trained, first_blocks))
        self.train()

    def train(self, mode: bool = True) -> "TunedModel":
        super().train(mode)
        if mode and not self.whole:
            for part in self.encoder.modules():
                own = list(part.parameters())
                part.training = any(one.requires_grad for one in own)
        return self

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized images (B, C, S, S) and labels to (summed loss, scores)."""
        features = self.encoder(images, self.loss.kind.features)
        scores = self.head(features).float()
        return self.loss.sum(scores, labels), scores


def _learns(name: str, trained: str, first_blocks: int) -> bool:
    if trained in ("full", "none"):
        return trained == "full"
    if "spectral_adapter" in name:
        return True
    if trained == "adapter":
        return False
    blocks = [f"blocks.{number}." for number in range(first_blocks)]
    stages = [f"layer{number + 1}." for number in range(first_blocks)]
    first = ("patch_embed", "cls_token", "pos_embed", *blocks, *stages)
    return any(f".{part}" in f".{name}" for part in first)


class Tuning:
    """One training; every rank makes one.

    Args:
        model: encoder, head and input on the CPU; its weights are where training begins.
        rows: training windows.
        protocol: ``full``, ``blocks``, ``adapter``, or ``frozen`` with batch norms that adapt.
        name: of the training, on the console and of the folder of its checkpoints.
    """

    def __init__(
        self,
        context: EvaluationContext,
        model: TaskModel,
        rows: np.ndarray,
        protocol: str,
        lr: float,
        seed: int,
        name: str,
    ) -> None:
        self.context, self.rows, self.lr, self.seed, self.name = context, rows, lr, seed, name
        self.recipe, _ = context.tuning(protocol)
        self.kind, self.splits, self.watchdog = context.kind, context.splits, context.watchdog
        self.work, self.loss = context.folder / "work" / name, context.loss(rows)
        recipe, config = self.recipe, context.config
        self.micro, accumulation = cut_batch(recipe, distributed.world_size())
        self.inputs = model.images.to(distributed.device())
        trained = "none" if protocol == "frozen" else protocol
        tuned = TunedModel(model, self.loss, trained, recipe.first_blocks, moving=trained == "none")
        self.vit = model.encoder if isinstance(model.encoder, ViTEncoder) else None
        optim = OptimConfig(lr=lr, weight_decay=recipe.weight_decay, betas=(0.9, 0.999), layer_decay=recipe.layer_decay)
        self.engine = ZeroEngine(
            tuned, build_optimizer(tuned, optim), config.engine, self.micro, accumulation, recipe.clip
        )
        self.guard = Guard(context.config.guard)
        self.step, self.best, self.best_epoch = 0, Scores(), 0
        self.curve: list[dict[str, float]] = []
        self.losses: list[float] = []  # of the steps since the last evaluation
        self.steps_per_epoch = -(-len(self.splits["train"]) // recipe.batch)
        self.steps = recipe.epochs * self.steps_per_epoch
        torch.manual_seed(seed * 100_003 + distributed.rank())  # of dropout; saved with checkpoints

    def fit(self) -> Tuned | None:
        """Train from the newest checkpoint on and test; None where the run was asked to stop, and has saved.

        Raises:
            CheckpointError: the work folder's checkpoints are of another training, or none is whole.
            Diverged: steps were skipped again and again.
        """
        self._resume()
        distributed.barrier()
        while True:
            if self._evaluation_is_due():
                self._validate()
            if self.step >= self.steps:
                self.guard.check_end(self.step, self.name, "lower full.lrs")
                return self._test()
            verdict = self._train_step()
            if verdict.stop:
                self._save("checkpoints")
                log(f"{self.name}: stopped at step {self.step} of {self.steps} and saved")
                return None
            if self.step % self.recipe.save_every == 0:
                self._save("checkpoints")
            self._tell()

    def _tell(self, at_once: bool = False) -> None:
        if self.watchdog.run is not None:
            part = f"{self.name}, step {self.step} of {self.steps}"
            self.watchdog.run.tell_part(part, self.step * self.recipe.batch, at_once)

    # ---- one step ----

    def _train_step(self) -> Verdict:
        self.watchdog.begin("step", self.step)
        warmup = self.recipe.warmup_epochs * self.steps_per_epoch
        self.engine.set_lr(warmup_cosine(self.step, self.steps, warmup, self.lr, 0.0))
        verdicts: list[Verdict] = []

        def accept(loss: Tensor, grad_norm: Tensor | float) -> bool:
            verdicts.append(self.guard.judge(loss, grad_norm, self.watchdog.stop_requested()))
            return verdicts[0].reason is None

        result = self.engine.step(self._losses(), accept)
        self.step += 1
        if result.applied:
            self.losses.append(verdicts[0].loss)
        else:
            log(f"WARNING: {self.name}: step {self.step} skipped: {verdicts[0].reason}")
        if self.guard.is_out_of_patience:
            raise Diverged(
                f"{self.name}: diverged at step {self.step}: {self.guard.in_a_row} steps in a row were skipped "
                f"({verdicts[0].reason}): lower full.lrs"
            )
        return verdicts[0]

    def _losses(self) -> Iterator[Tensor]:
        """This rank's micro batches, divided by what counts in the whole batch: ranks weigh as they hold labels."""
        world, batch = distributed.world_size(), self.recipe.batch
        rows, views, numbers = self._batch()
        labels = self.splits["train"].labels
        counted = self.loss.count(torch.from_numpy(labels[rows])) or 1
        share = batch // world
        begin = distributed.rank() * share
        parts = [slice(first, first + self.micro) for first in range(begin, begin + share, self.micro)]
        for part in parts:
            images, wanted = self._augmented(rows[part], views[part], numbers[part])
            self._draw_paths(numbers[part])
            loss, _ = self.engine(images, wanted)
            yield loss * (world * len(parts) / counted)

    def _batch(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Windows of this step, their views, and their numbers in the training."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        turn, batches = 0, list[tuple[np.ndarray, np.ndarray]]()
        while len(batches) <= place:  # a smaller share of the tiles takes as many steps as all of them
            batches += epoch_order(len(self.rows), self.recipe.batch, self.seed, epoch * 100_000 + turn)
            turn += 1
        places, views = batches[place]
        numbers = np.arange(self.step * self.recipe.batch, (self.step + 1) * self.recipe.batch)
        return self.rows[places], views, numbers

    def _augmented(self, rows: np.ndarray, views: np.ndarray, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        train, device = self.splits["train"], distributed.device()
        labels = train.labels[rows]
        if self.kind.is_dense:
            labels = np.stack([view_of(one, int(view)) for one, view in zip(labels, views, strict=True)])
        with self.watchdog.doing("reading tiles"):
            tiles = torch.from_numpy(train.views(rows, views)).to(device)
        images, wanted = self.inputs(tiles), torch.from_numpy(labels).to(device)
        if self.recipe.crop_scale is None:
            return images, wanted
        draws = uniform(fold_in(self.seed, "crop"), numbers, 4)
        return crop_pairs(images, wanted, draws, self.recipe.crop_scale)

    def _draw_paths(self, numbers: np.ndarray) -> None:
        """Which samples leave out which blocks, keyed by sample: the same on any number of processes."""
        if self.vit is None or not self.recipe.drop_path:
            return
        blocks = self.vit.core.blocks
        draws = uniform(fold_in(self.seed, "path"), numbers, len(blocks))
        for number, block in enumerate(blocks):
            dropped = self.recipe.drop_path * number / max(len(blocks) - 1, 1)
            keep = (draws[:, number] >= dropped) / (1 - dropped)
            block.keep = torch.from_numpy(keep.astype(np.float32)).view(-1, 1, 1).to(distributed.device())

    # ---- evaluating ----

    def _evaluation_is_due(self) -> bool:
        """At the end of an epoch, unless it was done before a resume."""
        epoch, within = divmod(self.step, self.steps_per_epoch)
        done = self.curve[-1]["epoch"] if self.curve else 0
        wanted = epoch % self.recipe.evaluate_every == 0 or self.step == self.steps
        return within == 0 and epoch > done and wanted

    def _validate(self) -> None:
        """Scores of the validation tiles; the best weights so far are saved."""
        epoch = self.step // self.steps_per_epoch
        found = self._evaluate("val").scores
        train_loss = float(np.mean(self.losses)) if self.losses else float("nan")  # all skipped
        self.losses = []
        values = {f"validation_{key}" if key == "loss" else key: value for key, value in found.values.items()}
        self.curve.append({"epoch": epoch, "train_loss": train_loss, **values})
        primary = self.kind.primary
        log(
            f"{self.name}  epoch {epoch}/{self.recipe.epochs}  loss {train_loss:.4f}  validation loss "
            f"{found.values['loss']:.4f}  {primary} {found.values[primary]:.3f}"
        )
        self._tell(at_once=True)
        if is_better(self.kind, self.context.recipe.select, found, self.best if self.best_epoch else None):
            self.best, self.best_epoch = found, epoch
            self._save("best")

    def _evaluate(self, name: str) -> Evaluation:
        """A split's scores; as many forwards on every rank."""
        self.watchdog.begin("evaluation", self.step)
        split, world, batch = self.splits[name], distributed.world_size(), self.micro
        collector = self.context.collector(name, self.loss)
        for turn in range(-(-len(split) // (batch * world))):
            numbers = np.arange(batch) + batch * (turn * world + distributed.rank())
            rows = np.minimum(numbers, len(split) - 1)
            tiles = torch.from_numpy(split.images(rows)).to(distributed.device())
            labels = torch.from_numpy(split.labels[rows]).to(distributed.device())
            _, scores = self.engine.evaluation(self.inputs(tiles), labels)
            mine = numbers < len(split)
            if mine.any():
                collector.add_scores(rows[mine], scores[torch.from_numpy(mine).to(scores.device)])
        sums = torch.from_numpy(collector.sums).to(distributed.device())
        return collector.finish(distributed.all_reduce_sum(sums).cpu().numpy())

    def _test(self) -> Tuned:
        path, _ = newest_verified(self.work / "best")
        if path is None:
            raise Diverged(f"{self.name}: diverged: no epoch has finite validation scores: lower full.lrs")
        load_checkpoint(self.engine, path)
        return Tuned(self.best, self._evaluate("test"), self.best_epoch, self.curve, path)

    # ---- saving ----

    def _save(self, folder: str) -> None:
        self.watchdog.begin("saving", self.step)
        if self.watchdog.run is not None:
            distributed.raise_on_all_ranks(self.watchdog.run.check_held)
        state: dict[str, Any] = {
            "step": self.step,
            "guard": self.guard.state(),
            "best": asdict(self.best),
            "best_epoch": self.best_epoch,
            "curve": self.curve,
            "losses": self.losses,
            "lr": self.lr,
        }
        save_checkpoint(self.engine, self.work / folder, state)
        if distributed.is_main():
            prune(self.work / folder, 1 if folder == "best" else 2, 0)
        self._tell(at_once=True)

    def _resume(self) -> None:
        path, damaged = newest_verified(self.work / "checkpoints")
        for problem in damaged.values():
            log(f"WARNING: passed over a damaged checkpoint: {problem}")
        if path is None:
            return
        state = load_checkpoint(self.engine, path)
        self.guard.load(state["guard"])
        self.step, self.best_epoch, self.curve = state["step"], state["best_epoch"], state["curve"]
        self.best, self.losses = Scores(**state["best"]), state["losses"]
        log(f"{self.name}: resumed at step {self.step} of {self.steps}")


def crop_pairs(images: Tensor, labels: Tensor, draws: np.ndarray, scale: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """A random part of each image, resized to its size bilinearly, and the same of a label map by nearest neighbour.

    Args:
        images: float32 (B, C, S, S), normalized.
        labels: (B, S, S) or (B, T, S, S), or labels of whole tiles, which stay as they are.
        draws: (B, 4) in [0, 1): area, aspect, top, left.
        scale: range of the part's share of the area.
    """
    size = images.shape[-1]
    boxes = np.array([crop_box(draw, size, size, size, scale) for draw in draws])
    still, sharp = np.zeros(len(boxes), bool), np.zeros(len(boxes))
    rows = resampling(boxes[:, 0], boxes[:, 2], size, size, still, sharp)
    columns = resampling(boxes[:, 1], boxes[:, 3], size, size, still, sharp)
    cropped = resample(images, rows, columns)
    if labels.dim() < 3:
        return cropped, labels
    down, across = (torch.from_numpy(one.argmax(-1)).to(labels.device) for one in (rows, columns))
    batch = torch.arange(len(labels), device=labels.device)[:, None, None]
    picked = labels.movedim((-2, -1), (1, 2))[batch, down[:, :, None], across[:, None, :]]
    return cropped, picked.movedim((1, 2), (-2, -1))


def cut_batch(recipe: FullConfig, world: int) -> tuple[int, int]:
    """Micro batch and accumulation; raises ConfigError where they don't come out whole."""
    if recipe.batch % world:
        raise ConfigError(f"key 'full.batch': {recipe.batch} is no multiple of {world} processes")
    share = recipe.batch // world
    micro = min(recipe.micro_batch or share, share)
    if share % micro or micro % recipe.bn_group:
        raise ConfigError(
            f"key 'full.batch': {recipe.batch} on {world} processes are {share} samples each, no multiple of "
            f"full.micro_batch {micro} in groups of full.bn_group {recipe.bn_group}"
        )
    return micro, share // micro

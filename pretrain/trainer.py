"""The pretraining loop: plan, read, augment, step, log, validate, save; resumes by itself from the run folder.

::

    RUN/
      config.yaml            the resolved config
      rank0.pid              `kill -TERM $(cat RUN/rank0.pid)` saves and stops all ranks
      metrics.jsonl          scalars, one line a logged step
      tensorboard/           the same scalars, and pictures
      checkpoints/step-N/    see pretrain/checkpoint.py
      reconstruction.png     a held-out tile: masked, predicted, true
      encoder.safetensors    the exported encoder, when the run is complete
"""

import os
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain import distributed
from pretrain.augment import centre_crops, mask_noise, random_crops
from pretrain.checkpoint import list_checkpoints, load_checkpoint, read_state, save_checkpoint
from pretrain.config import PretrainConfig
from pretrain.data import TileBatch, TileStream, micro_batches
from pretrain.engine import ZeroEngine
from pretrain.export import code_version, export_encoder
from pretrain.models import Normaliser, build_encoder
from pretrain.models.initialise import initialise
from pretrain.models.vit import ViTEncoder
from pretrain.objectives.mae import MaskedAutoencoder
from pretrain.optim import build_adamw
from pretrain.resume import check_same_run, find_resume_point
from pretrain.schedules import warmup_cosine
from pretrain.telemetry import Telemetry, duration, say
from shards.atomic import write_atomic
from shards.config import dump_config
from shards.errors import ConfigError, ForgeError
from shards.plan import SamplePlan, hold_out
from shards.quarantine import Quarantine
from shards.reader import ShardReader
from shards.view import view_hash, view_rows


class Diverged(ForgeError):
    """The loss is no number any more."""

    exit_code = 1


def build_objective(config: PretrainConfig, bands: int) -> MaskedAutoencoder:
    """Encoder and objective with weights drawn from the run's seed."""
    model, mae = config.model, config.objective
    encoder = build_encoder(model.name, model.image_size, model.patch_size, model.bn_group, model.attention)
    assert isinstance(encoder, ViTEncoder)
    encoder.core.fix_positions()
    objective = MaskedAutoencoder(
        encoder,
        bands,
        mae.mask_ratio,
        mae.norm_pix,
        mae.decoder.width,
        mae.decoder.depth,
        mae.decoder.heads,
        model.attention,
    )
    initialise(objective, "pretrain", config.run.seed)
    return objective


class Trainer:
    """One pretraining run on this process group.

    Args:
        config: of the run.
        stop_requested: asked after every step; the run saves and stops when any rank says yes.

    Raises:
        ConfigError, ShardError, CheckpointError: what can't be trained on, in one line.
    """

    def __init__(self, config: PretrainConfig, stop_requested: Callable[[], bool]) -> None:
        self.config, self.stop_requested = config, stop_requested
        self.folder = Path(config.run.dir)
        self.device = distributed.device()
        self.reader = distributed.together(self._open_shards)
        self.manifest = self.reader.manifest
        self.plan, self.held_out = distributed.together(self._plan)
        self.quarantine = distributed.together(self._quarantine)
        self.stream = TileStream(self.reader, self.plan, self.device, config.data.prefetch, self.quarantine)
        self.normalise = Normaliser(self.manifest.mean, self.manifest.std).to(self.device)
        self.objective = build_objective(config, self.manifest.tile_shape[0])
        self.engine = self._build_engine()
        self.step = self._resume()
        self.telemetry = Telemetry(self.folder, self.step)

    def fit(self) -> bool:
        """Train up to ``train.steps``. Returns whether the run is complete (False: it saved and was stopped)."""
        config, steps = self.config, self.config.train.steps
        if self.step >= steps:
            say(f"{self.folder} is complete at step {self.step}: raise train.steps or choose another run.dir")
            self._export()
            return True
        self._announce()
        if distributed.is_main():
            write_atomic(self.folder / "config.yaml", dump_config(config))
            write_atomic(self.folder / "rank0.pid", str(os.getpid()))
        batches = self._batches()
        clock = _Clock(self.stream, self.step)
        while self.step < steps:
            result = self._train_step(batches)
            stop = distributed.any_rank(self.stop_requested())
            last = self.step == steps
            if self.step % config.log.every == 0 or last or stop:
                self._log(result.loss, result.grad_norm, clock)
            if last or (config.log.validate_every and self.step % config.log.validate_every == 0):
                self._validate()
            if last or stop or self.step % config.checkpoint.every == 0:
                saved = self._save()
            if stop and not last:
                say(f"stopped at step {self.step} of {steps}, saved as {saved}; the same command continues")
                break
        self.telemetry.close()
        batches.close()
        if self.step < steps:
            return False
        self._export()
        return True

    # ---- one step ----

    def _batches(self) -> Generator[TileBatch, None, None]:
        train = self.config.train
        numbers = micro_batches(
            self.step,
            train.steps,
            train.global_batch,
            train.micro_batch,
            distributed.rank(),
            distributed.world_size(),
        )
        return self.stream.batches(numbers)

    def _train_step(self, batches: Iterator[TileBatch]) -> Any:
        optim = self.config.optim
        lr = warmup_cosine(self.step, self.config.train.steps, optim.warmup_steps, optim.lr, optim.min_lr)
        self.engine.set_lr(lr)
        result = self.engine.step(self._loss(next(batches)) for _ in range(self.engine.accumulation))
        self.step += 1
        return result

    def _loss(self, batch: TileBatch) -> Tensor:
        config = self.config
        images = random_crops(
            batch.tiles,
            batch.samples,
            config.run.seed,
            config.model.image_size,
            config.augment.crop_scale,
            config.augment.flip,
            self.normalise,
        )
        noise = mask_noise(batch.samples, config.run.seed, self.objective.num_patches, self.device)
        losses, _, _ = self.engine(images, noise)
        return losses.mean()

    # ---- telling ----

    def _log(self, loss: Tensor, grad_norm: Tensor | float, clock: "_Clock") -> None:
        config = self.config
        mean = float(distributed.all_reduce_sum(loss.clone()) / distributed.world_size())
        if not np.isfinite(mean):
            raise Diverged(f"loss is {mean} at step {self.step}: lower optim.lr; the last checkpoint is from before")
        optim = config.optim
        lr = warmup_cosine(self.step - 1, config.train.steps, optim.warmup_steps, optim.lr, optim.min_lr)
        rate, waiting = clock.lap(self.step)
        rate *= config.train.global_batch
        scalars = {
            "loss": mean,
            "lr": lr,
            "grad_norm": float(grad_norm),
            "tiles_per_second": rate,
            "data_wait_share": waiting,
            "bad_tiles": self._bad_tiles(),
            **self.reader.counters,
        }
        self.telemetry.record(self.step, scalars)
        left = (config.train.steps - self.step) * config.train.global_batch / rate
        say(
            f"step {self.step}/{config.train.steps}  loss {mean:.4f}  lr {lr:.2e}  grad norm {grad_norm:.2f}  "
            f"{rate:.1f} tiles/s  data wait {waiting:.0%}  ETA {duration(left)}"
        )

    def _bad_tiles(self) -> int:
        """Damaged tiles replaced so far, on all ranks; every rank stops together above the budget."""
        found = torch.tensor(float(self.quarantine.found), dtype=torch.float64, device=self.device)
        count = self.quarantine.loaded + int(distributed.all_reduce_sum(found))
        self.quarantine.check(count)
        return count

    def _announce(self) -> None:
        train, world = self.config.train, distributed.world_size()
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in self.engine.module.parameters())
        say(
            f"WORLD SIZE {world} on {self.device.type}, {torch.get_num_threads()} threads each; "
            f"{self.config.model.name} + {self.config.objective.name}, {parameters / 1e6:.1f} M parameters, "
            f"ZeRO stage {self.config.engine.zero_stage}, {self.config.engine.precision}"
        )
        say(
            f"global batch {train.global_batch} = {train.micro_batch} x {world} processes x "
            f"{self.engine.accumulation} accumulated; {len(self.plan.rows)} of {len(self.reader)} tiles to train on, "
            f"{len(self.held_out)} held out; from step {self.step} to {train.steps}"
        )

    # ---- validation ----

    def _validate(self) -> None:
        """Mean loss over the held-out tiles with fixed masks, and a picture of the first."""
        if not len(self.held_out):
            return
        micro, world = self.config.train.micro_batch, distributed.world_size()
        rounds = -(-len(self.held_out) // (micro * world))
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        picture = None
        for turn in range(rounds):  # every rank runs every round: ZeRO-3 forwards are collective
            numbers = np.arange(micro) + micro * (turn * world + distributed.rank())
            real = numbers < len(self.held_out)
            images, outputs = self._evaluate(np.where(real, numbers, 0))
            losses = outputs[0].double()[torch.from_numpy(real).to(self.device)]
            sums += torch.stack([losses.sum(), losses.new_tensor(float(len(losses)))])
            picture = picture or (images[0], outputs[1][0], outputs[2][0])
        total, count = distributed.all_reduce_sum(sums).tolist()
        self.telemetry.record(self.step, {"validation_loss": total / count})
        say(f"step {self.step}  validation loss {total / count:.4f} over {int(count)} held-out tiles")
        if distributed.is_main() and picture:
            self._draw(*picture)

    def _evaluate(self, numbers: np.ndarray) -> tuple[Tensor, Any]:
        tiles = torch.empty((len(numbers), *self.reader.tile_shape), dtype=torch.int16)
        self.reader.read(self.held_out[numbers], tiles.numpy())
        resize = self.config.augment.crop_scale is not None
        images = centre_crops(tiles.to(self.device), self.config.model.image_size, resize, self.normalise)
        noise = mask_noise(numbers, self.config.run.seed, self.objective.num_patches, self.device, "validation")
        return images, self.engine.evaluation(images, noise)

    def _draw(self, image: Tensor, prediction: Tensor, masked: Tensor) -> None:
        from pretrain.pictures import reconstruction_figure, save_figure  # matplotlib takes a second to load
        from shards.sensors import get_sensor

        patches = self.objective.reconstruct(image, prediction, masked)
        mu, sigma, scale = self.manifest.mu, self.manifest.sigma, self.manifest.scale
        truth, predicted = ((values.cpu().numpy() * sigma + mu) / scale for values in patches)
        figure = reconstruction_figure(
            truth,
            predicted,
            masked.cpu().numpy(),
            self.config.model.patch_size,
            np.asarray(self.manifest.wavelength_nm),
            get_sensor(self.manifest.sensor).rgb,
            "mean and spread of a predicted patch are the true patch's (norm_pix)" if self.objective.norm_pix else "",
        )
        save_figure(figure, self.folder / "reconstruction.png")
        self.telemetry.picture(self.step, "reconstruction", figure)

    # ---- building, saving, resuming ----

    def _open_shards(self) -> ShardReader:
        data = self.config.data
        quota = data.stage_quota_gb and data.stage_quota_gb * 10**9
        reader = ShardReader(data.shards, data.read_threads, Path(data.stage) if data.stage else None, quota)
        _check_image_fits(self.config, reader.tile_shape)
        return reader

    def _plan(self) -> tuple[SamplePlan, np.ndarray]:
        """The order of the training tiles, and the rows that are held out."""
        data, seed, table = self.config.data, self.config.run.seed, self.reader.table
        rows = view_rows(data.view, table)
        dataset = view_hash(self.manifest.content_hash, rows, len(table))
        train, held_out = hold_out(table, data.holdout, seed, rows)
        return SamplePlan(table, train, dataset, seed, data.order), held_out

    def _quarantine(self) -> Quarantine:
        budget = self.config.data.max_bad_tiles
        self.folder.mkdir(parents=True, exist_ok=True)
        return Quarantine(self.plan.rows, self.plan.dataset, budget, self.folder, distributed.rank())

    def _build_engine(self) -> ZeroEngine:
        config = self.config
        try:
            accumulation = config.accumulation(distributed.world_size())
        except ValueError as error:
            raise ConfigError(str(error)) from None
        optimizer = build_adamw(self.objective, config.optim.lr, config.optim.betas, config.optim.weight_decay)
        return ZeroEngine(
            self.objective, optimizer, config.engine, config.train.micro_batch, accumulation, config.optim.clip
        )

    def _save(self) -> Path:
        begin = time.monotonic()
        state = {
            "samples_seen": self.step * self.config.train.global_batch,
            "config": self.config.model_dump(),
            "world_size": distributed.world_size(),
            "version": code_version(),
            "data": {
                "content_hash": self.plan.dataset,
                "sensor": self.manifest.sensor,
                "wavelength_nm": self.manifest.wavelength_nm,
                "fwhm_nm": self.manifest.fwhm_nm,
                "mu": self.manifest.mean,
                "sigma": self.manifest.std,
            },
        }
        path = save_checkpoint(self.engine, self.folder / "checkpoints", state, self.config.checkpoint.keep)
        say(f"saved {path} in {time.monotonic() - begin:.1f} s")
        return path

    def _export(self) -> None:
        """The encoder of the last checkpoint as a file of its own."""
        dest = self.folder / "encoder.safetensors"
        if distributed.is_main():
            export_encoder(list_checkpoints(self.folder / "checkpoints")[-1], dest)
        say(f"complete: {dest} ({self.step * self.config.train.global_batch} samples seen)")

    def _resume(self) -> int:
        """Continue from the newest whole checkpoint of the run folder; 0 in a fresh one."""
        folder = self.folder / "checkpoints"
        path, problems = distributed.from_main(distributed.together(lambda: find_resume_point(folder)))
        for problem in problems:
            say(f"WARNING: passed over a damaged checkpoint: {problem}")
        if path is None:
            return 0
        state = read_state(path)
        check_same_run(state, self.config, self.plan.dataset, path)
        load_checkpoint(self.engine, path)
        say(f"resumed from {path}")
        return int(state["step"])


class _Clock:
    """Rates between two logged steps."""

    def __init__(self, stream: TileStream, step: int) -> None:
        self._stream, self._step = stream, step
        self._time, self._waited = time.monotonic(), stream.wait_seconds

    def lap(self, step: int) -> tuple[float, float]:
        """(steps per second, share of the time spent waiting for data) since the last lap."""
        now, waited = time.monotonic(), self._stream.wait_seconds
        seconds = max(now - self._time, 1e-9)
        rates = (step - self._step) / seconds, (waited - self._waited) / seconds
        self._time, self._waited, self._step = now, waited, step
        return rates


def _check_image_fits(config: PretrainConfig, tile_shape: tuple[int, int, int]) -> None:
    smallest = min(tile_shape[1:])
    if config.augment.crop_scale is None and config.model.image_size > smallest:
        raise ConfigError(
            f"key 'model.image_size': {config.model.image_size} px can't be cut from tiles of {smallest} px: "
            "lower it, or set augment.crop_scale"
        )

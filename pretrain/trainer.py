"""The pretraining loop: plan, read, augment, step, log, validate, save; resumes by itself from the run folder.

::

    RUN/
      config.yaml            the resolved config
      rank0.pid              `kill -TERM $(cat RUN/rank0.pid)` saves and stops all ranks
      metrics.jsonl          scalars, one line a logged step
      tensorboard/           the same scalars, and pictures
      checkpoints/step-N/    see pretrain/checkpoint.py
      reconstruction.png     MAE: a held-out tile: masked, predicted, true
      encoder.safetensors    the exported encoder, when the run is complete, and encoder.md, its card
"""

import os
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import torch

from pretrain import distributed
from pretrain.checkpoint import list_checkpoints, load_checkpoint, read_state, save_checkpoint
from pretrain.config import PretrainConfig
from pretrain.data import TileBatch, TileStream, micro_batches
from pretrain.engine import StepResult, ZeroEngine
from pretrain.export import code_version, export_encoder
from pretrain.flops import device_peak, sample_flops
from pretrain.models import Normaliser
from pretrain.objectives import build_objective
from pretrain.optim import build_optimizer
from pretrain.probe import EncoderProbe
from pretrain.resume import check_same_run, find_resume_point
from pretrain.schedules import learning_rate
from pretrain.telemetry import Clock, Telemetry, duration, say
from pretrain.validate import validate
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
        normalise = Normaliser(self.manifest.mean, self.manifest.std, config.augment.clip).to(self.device)
        self.objective = build_objective(config, normalise, self.manifest)
        timestamps, prefetch = self.objective.timestamps, config.data.prefetch
        self.stream = TileStream(self.reader, self.plan, self.device, prefetch, self.quarantine, timestamps)
        self.engine = self._build_engine()
        self.probe = distributed.together(self._probe)
        self.flops = sum(sample_flops(config, self.manifest.tile_shape[0]).values())
        self.peak = device_peak(config.engine.precision)
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
        clock = Clock(self.step)
        while self.step < steps:
            result = self._train_step(batches)
            self.step += 1
            stop = distributed.any_rank(self.stop_requested())
            last = self.step == steps
            if self.step % config.log.every == 0 or last or stop:
                self._log(result, clock)
            if last or (config.log.validate_every and self.step % config.log.validate_every == 0):
                self._validate()
            if self.probe is not None and (last or self.step % self.probe.probe.every == 0):
                self._probe_encoder(self.probe)
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

    def _train_step(self, batches: Iterator[TileBatch]) -> StepResult:
        self.engine.set_lr(self._lr(self.step))
        result = self.engine.step(self.objective.losses(self.engine, batches, self.step))
        self.objective.after_step(self.engine, self.step)
        return result

    def _lr(self, step: int) -> float:
        return learning_rate(step, self.config.train.steps, self.config.lr, self.config.optim)

    # ---- telling ----

    def _log(self, result: StepResult, clock: Clock) -> None:
        train = self.config.train
        mean = float(distributed.all_reduce_sum(result.loss.clone()) / distributed.world_size())
        if not np.isfinite(mean):
            raise Diverged(f"loss is {mean} at step {self.step}: lower optim.lr; the last checkpoint is from before")
        lr, grad_norm = self._lr(self.step - 1), float(result.grad_norm)
        steps_per_second, waiting = clock.lap(self.step, self.stream.wait_seconds)
        rate = steps_per_second * train.global_batch
        scalars = {
            "loss": mean,
            "lr": lr,
            "grad_norm": grad_norm,
            "tiles_per_second": rate,
            "data_wait_share": waiting,
            **self._utilisation(rate),
            "bad_tiles": self._bad_tiles(),
            **self.objective.scalars.take(),
            **self.reader.counters,
        }
        self.telemetry.record(self.step, scalars)
        mfu = f"  MFU {scalars['mfu']:.0%}" if "mfu" in scalars else ""
        left = (train.steps - self.step) * train.global_batch / rate
        say(
            f"step {self.step}/{train.steps}  loss {mean:.4f}  lr {lr:.2e}  grad norm {grad_norm:.2f}  "
            f"{rate:.1f} tiles/s  data wait {waiting:.0%}{mfu}  ETA {duration(left)}"
        )

    def _utilisation(self, rate: float) -> dict[str, float]:
        """Operations that training needs, per second and device, and their share of its peak where that is known."""
        per_device = rate * self.flops / distributed.world_size()
        known = {"mfu": per_device / self.peak} if self.peak else {}
        return {"tflops_per_device": per_device / 1e12, **known}

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

    def _validate(self) -> None:
        """Mean loss over the held-out tiles, and a picture of the first where the objective has one."""
        result = validate(self.objective, self.engine, self.reader, self.held_out, self.config.train.micro_batch)
        if result is None:
            return
        self.telemetry.record(self.step, {"validation_loss": result.loss})
        say(f"step {self.step}  validation loss {result.loss:.4f} over {len(self.held_out)} held-out tiles")
        if distributed.is_main() and result.figure is not None:
            from pretrain.pictures import save_figure

            figure = result.figure()
            save_figure(figure, self.folder / "reconstruction.png")
            self.telemetry.picture(self.step, "reconstruction", figure)

    def _probe_encoder(self, probe: EncoderProbe) -> None:
        scores = probe.scores(self.objective, self.engine)
        self.telemetry.record(self.step, scores)
        say(
            f"step {self.step}  " + "  ".join(f"{name.replace('_', ' ')} {value:.1%}" for name, value in scores.items())
        )

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
        module, optim = self.objective.module, config.optim
        return ZeroEngine(
            module, build_optimizer(module, optim), config.engine, config.train.micro_batch, accumulation, optim.clip
        )

    def _probe(self) -> EncoderProbe | None:
        return EncoderProbe(self.config, self.manifest.tile_shape[0]) if self.config.probe else None

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
        folder, keep = self.folder / "checkpoints", self.config.checkpoint.keep
        path = save_checkpoint(self.engine, folder, state, keep, self.objective.momentum)
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
        load_checkpoint(self.engine, path, self.objective.momentum)
        say(f"resumed from {path}")
        return int(state["step"])


def _check_image_fits(config: PretrainConfig, tile_shape: tuple[int, int, int]) -> None:
    smallest = min(tile_shape[1:])
    if config.augment.crop_scale is None and config.model.image_size > smallest:
        raise ConfigError(
            f"key 'model.image_size': {config.model.image_size} px can't be cut from tiles of {smallest} px: "
            "lower it, or set augment.crop_scale"
        )

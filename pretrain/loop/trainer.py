"""The pretraining loop: plan, read, augment, step, judge, log, validate, save; resumes by itself from the run folder.

::

    RUN/
      config.yaml            the resolved config
      rank0.pid              `kill -TERM $(cat RUN/rank0.pid)` saves and stops all ranks
      run.lock               there while a run is at work: one at a time
      status.json            running, stopped, complete or failed, and where; `python -m pretrain status RUN` judges it
      metrics.jsonl          scalars, one line a logged step
      tensorboard/           the same scalars, and pictures
      checkpoints/step-N/    see pretrain/checkpointing/checkpoint.py
      skipped.jsonl          steps that were not applied, why, and the tiles they saw
      samples-RANK.jsonl     every sample of every step, with log.samples
      stacks-RANK.txt        where each rank was when the watchdog ended a run
      reconstruction.png     MAE: a held-out tile: masked, predicted, true
      encoder.safetensors    the exported encoder, when the run is complete, and encoder.md, its card
"""

import math
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pretrain import distributed
from pretrain.checkpointing.checkpoint import CheckpointNotWritten, list_checkpoints
from pretrain.checkpointing.manager import CheckpointManager
from pretrain.checkpointing.resume import find_resume_point
from pretrain.config import PretrainConfig
from pretrain.console import duration, log
from pretrain.data.inputs import open_inputs
from pretrain.data.stream import TileBatch, TileStream, micro_batches
from pretrain.engine.optimizers import build_optimizer
from pretrain.engine.schedules import learning_rate
from pretrain.engine.zero import ZeroEngine
from pretrain.loop.gc_control import collected_by_step
from pretrain.loop.probe import EncoderProbe
from pretrain.loop.sample_log import SampleLog
from pretrain.loop.validation import Stopped, validate
from pretrain.metrics.meter import Meter
from pretrain.metrics.telemetry import Telemetry
from pretrain.models.normalize import Normalizer
from pretrain.objectives import build_objective
from pretrain.resilience.bad_tiles import BadTiles
from pretrain.resilience.guard import Diverged, Guard, Verdict
from pretrain.resilience.run_folder import open_run
from pretrain.resilience.skips import SkipLog
from pretrain.resilience.status import Status
from pretrain.resilience.watchdog import Watchdog
from pretrain.weights.export import export_encoder
from pretrain.weights.initial_weights import read_initial_weights
from shards.config import dump_config
from shards.errors import ConfigError, ForgeError
from shards.files.atomic import write_atomic
from shards.files.journal import BestEffort


class Trainer:
    """One pretraining run on this process group.

    Args:
        config: of the run.
        watchdog: told where the run is, and asked whether it shall stop: it saves and stops when any rank says yes.

    Attributes:
        step: optimizer steps behind the run, skipped ones too.
        samples_seen: the run's place in the order of samples.

    Raises:
        ConfigError, ShardError, CheckpointError: what can't be trained on, in one line.
    """

    def __init__(self, config: PretrainConfig, watchdog: Watchdog) -> None:
        self.config, self.watchdog = config, watchdog
        self.folder = Path(config.run.dir)
        self.device = distributed.device()
        self.run = open_run(self.folder, watchdog)
        self.inputs = distributed.raise_on_all_ranks(lambda: open_inputs(config))
        manifest = self.inputs.manifest
        normalize = Normalizer(manifest.mean, manifest.std, config.augment.clip).to(self.device)
        point = find_resume_point(config, self.inputs)
        initial = None if point else read_initial_weights(config, manifest)
        self.objective = build_objective(config, normalize, manifest, initial)
        self.stream = TileStream(
            self.inputs.reader,
            self.inputs.plan,
            self.device,
            config.data.prefetch,
            self.inputs.quarantine,
            self.objective.timestamps,
        )
        self.engine = self._build_engine()
        self.probe = distributed.raise_on_all_ranks(self._probe)
        quarantines = [self.inputs.quarantine, *([self.probe.quarantine] if self.probe else [])]
        self.bad_tiles = BadTiles(quarantines, self.folder)
        self.guard = Guard(config.guard)
        self.checkpoints = CheckpointManager(config, self.engine, self.objective, self.inputs, self.guard)
        self.step, self.samples_seen = self.checkpoints.resume(point)
        self._check_room()
        self.telemetry = Telemetry(self.folder, self.step)
        self.skips = SkipLog(self.folder, self.inputs)
        self.sample_log = SampleLog(self.folder, self.step) if config.log.samples else None
        self.meter = Meter(config, self.objective, self.stream, watchdog, manifest.tile_shape[0], self.step)
        self.engine.mark = self.meter.parts.mark

    def fit(self) -> bool:
        """Train up to ``train.steps``. Returns whether the run is complete (False: it saved and was stopped).

        Raises:
            Diverged: steps were skipped again and again.
            CheckpointNotWritten: the disk is full; the last checkpoint is whole.
        """
        steps = self.config.train.steps
        try:
            if self.step >= steps:
                log(f"{self.folder} is complete at step {self.step}: raise train.steps or choose another run.dir")
                self._export()
                return True
            self._announce()
            complete = self._train()
            if complete:
                self._export()
            else:
                log(f"stopped at step {self.step} of {steps} and saved; the same command continues")
                self._tell("stopped")
            return complete
        except ForgeError as error:
            self.run.end("failed", str(error))
            raise
        finally:
            self.run.release()

    def _train(self) -> bool:
        config, steps = self.config, self.config.train.steps
        batches = self._batches()
        stop = False
        distributed.barrier()  # all ranks leave the set-up together: until here, a signal ends them at once
        self.meter.clock.restart(self.step)
        with collected_by_step() as collect:
            while self.step < steps and not stop:
                with self.meter.parts.step():
                    verdict = self._train_step(batches)
                collect(self.step)
                last = self.step == steps
                if self.step % config.log.every == 0 or last or verdict.stop:
                    self._log(verdict)
                if last:
                    self.guard.check_end(self.step, str(self.folder), "look at skipped.jsonl, or lower optim.lr")
                with self.meter.clock.pause():
                    stop = verdict.stop or not self._evaluate(last)
                    due = self.step % config.checkpoint.every == 0
                    if last or stop or (due and not self.guard.in_a_row):  # else the weights may be at fault
                        self._save()
        self.telemetry.close()
        batches.close()
        return self.step >= steps

    # ---- one step ----

    def _batches(self) -> Generator[TileBatch, None, None]:
        train, rank, world = self.config.train, distributed.rank(), distributed.world_size()
        left = train.steps - self.step
        return self.stream.batches(
            micro_batches(self.samples_seen, left, train.global_batch, train.micro_batch, rank, world)
        )

    def _train_step(self, batches: Iterator[TileBatch]) -> Verdict:
        """One step: applied or skipped, its samples count as seen."""
        self.watchdog.begin("step", self.step)
        self.engine.set_lr(self._lr(self.step))
        verdicts: list[Verdict] = []
        seen: list[np.ndarray] = []

        def accept(loss: Tensor, grad_norm: Tensor | float) -> bool:
            verdicts.append(self.guard.judge(loss, grad_norm, self.watchdog.stop_requested()))
            return verdicts[0].reason is None

        result = self.engine.step(self.objective.losses(self.engine, self._noted(batches, seen), self.step), accept)
        if result.applied:
            self.objective.after_step(self.engine, self.step)
        else:
            self.objective.drop_step()
        self.step += 1
        self.samples_seen += self.config.train.global_batch
        if self.sample_log is not None:
            samples = np.concatenate(seen)
            self.sample_log.record(self.step, samples, self.inputs.plan.tiles(samples))
        if not result.applied:
            self.skips.record(self.step, verdicts[0], result.losses, seen)
            self.telemetry.record(self.step, {"skipped_steps": self.guard.skipped})
            if self.guard.is_out_of_patience:
                self.checkpoints.rollback(self.step)
        return verdicts[0]

    def _noted(self, batches: Iterator[TileBatch], seen: list[np.ndarray]) -> Iterator[TileBatch]:
        """The batches, with their sample numbers noted, and the watchdog told when the run waits for one."""
        while True:
            self.meter.parts.mark("data")
            with self.watchdog.doing("reading tiles"):
                batch = next(batches)
            self.meter.parts.mark("other")
            seen.append(batch.samples)
            self.watchdog.activity = "forward and backward"
            yield batch

    def _lr(self, step: int) -> float:
        return learning_rate(step, self.config.train.steps, self.config.lr, self.config.optim)

    # ---- telling ----

    def _log(self, verdict: Verdict) -> None:
        train, reading = self.config.train, self.meter.read(self.step)
        lr = self._lr(self.step - 1)
        scalars = {
            "lr": lr,
            **reading.scalars,
            "bad_tiles": self.bad_tiles.count(),
            "skipped_steps": self.guard.skipped,
            **self.objective.scalars.take(),
            **self.inputs.reader.counters,
        }
        if verdict.reason is None:
            scalars |= {"loss": verdict.loss, "grad_norm": verdict.grad_norm}
        self.telemetry.record(self.step, scalars)
        left = (train.steps - self.step) * train.global_batch / scalars["tiles_per_second"]
        log(
            f"step {self.step}/{train.steps}  loss {verdict.loss:.4f}  lr {lr:.2e}  grad norm {verdict.grad_norm:.2f}  "
            f"{reading}  ETA {duration(left)}"
        )
        if distributed.world_size() > 1:
            log(f"  {reading.shares}")
        self._tell("running")

    def _announce(self) -> None:
        self._tell("running")
        if distributed.is_main():
            path = self.folder / "config.yaml"
            with BestEffort(path):
                write_atomic(path, dump_config(self.config))
        train, world = self.config.train, distributed.world_size()
        parameters = self.engine.parameter_count
        log(
            f"WORLD SIZE {world} on {self.device.type}, {torch.get_num_threads()} threads each; "
            f"{self.config.model.name} + {self.config.objective.name}, {parameters / 1e6:.1f} M parameters, "
            f"ZeRO stage {self.config.engine.zero_stage}, {self.config.engine.precision}"
        )
        log(
            f"global batch {train.global_batch} = {train.micro_batch} x {world} processes x "
            f"{self.engine.accumulation} accumulated; {len(self.inputs.plan.rows)} of {len(self.inputs.reader)} tiles "
            f"to train on, {len(self.inputs.held_out)} held out; from step {self.step} to {train.steps}"
        )

    def _tell(self, status: Status) -> None:
        if distributed.is_main():
            self.run.tell(status, self.step, self.config.train.steps, self.samples_seen)

    # ---- evaluating ----

    def _evaluate(self, last: bool) -> bool:
        """Validation and probe where they are due. Returns whether the run goes on (False: asked to stop meanwhile)."""
        every, probe = self.config.log.validate_every, self.probe
        self.watchdog.begin("evaluation", self.step)
        try:
            if last or (every and self.step % every == 0):
                self._validate()
            if probe is not None and (last or self.step % probe.probe.every == 0):
                self._probe_encoder(probe)
            self.bad_tiles.count()
        except Stopped:
            log(f"step {self.step}  evaluation given up: asked to stop")
            return False
        return True

    def _validate(self) -> None:
        """Mean loss over the held-out tiles, and a picture of the first where the objective has one."""
        held_out, micro, asked = self.inputs.held_out, self.config.train.micro_batch, self.watchdog.stop_requested
        result = validate(self.objective, self.engine, self.inputs, micro, asked)
        if result is None:
            return
        self.telemetry.record(self.step, {"validation_loss": result.loss})
        log(f"step {self.step}  validation loss {result.loss:.4f} over {len(held_out)} held-out tiles")
        if not math.isfinite(result.loss):
            raise Diverged(
                f"{self.folder}: diverged by step {self.step}: the validation loss is {result.loss}: lower optim.lr"
            )
        if distributed.is_main() and result.figure is not None:
            with self.telemetry.drawing:
                from pretrain.objectives.picture import save_figure

                figure = result.figure()
                save_figure(figure, self.folder / "reconstruction.png")
                self.telemetry.picture(self.step, "reconstruction", figure)

    def _probe_encoder(self, probe: EncoderProbe) -> None:
        scores = probe.scores(self.objective, self.engine, self.watchdog.stop_requested)
        self.telemetry.record(self.step, scores)
        log(
            f"step {self.step}  " + "  ".join(f"{name.replace('_', ' ')} {value:.1%}" for name, value in scores.items())
        )

    # ---- building and saving ----

    def _build_engine(self) -> ZeroEngine:
        config, module = self.config, self.objective.module
        accumulation = distributed.raise_on_all_ranks(self._accumulation)
        optimizer = build_optimizer(module, config.optim)
        return ZeroEngine(module, optimizer, config.engine, config.train.micro_batch, accumulation, config.optim.clip)

    def _accumulation(self) -> int:
        try:
            return self.config.accumulation(distributed.world_size())
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def _probe(self) -> EncoderProbe | None:
        return EncoderProbe(self.config, self.inputs.manifest.tile_shape[0]) if self.config.probe else None

    def _check_room(self) -> None:
        checkpoint, steps, size = self.config.checkpoint, self.config.train.steps, self.checkpoints.nbytes
        distributed.raise_on_all_ranks(
            lambda: self.run.check_room(checkpoint, size, steps) if distributed.is_main() else None
        )

    def _save(self) -> None:
        self.watchdog.begin("saving", self.step)
        distributed.raise_on_all_ranks(self.run.check_held)
        seconds = self.checkpoints.save(self.step, self.samples_seen)
        if seconds is not None:
            self.telemetry.record(self.step, {"checkpoint_seconds": seconds})
        self._tell("running")

    def _export(self) -> None:
        """The encoder of the last checkpoint as a file of its own."""
        dest = self.folder / "encoder.safetensors"
        distributed.raise_on_all_ranks(lambda: self._write_encoder(dest) if distributed.is_main() else None)
        self._tell("complete")
        log(f"complete: {dest} ({self.samples_seen} samples seen)")

    def _write_encoder(self, dest: Path) -> None:
        try:
            export_encoder(list_checkpoints(self.folder / "checkpoints")[-1], dest)
        except OSError as error:
            raise CheckpointNotWritten(
                f"{dest}: can't be written: {error.strerror}; the last checkpoint is whole: make room and start the "
                "command again"
            ) from None

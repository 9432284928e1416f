"""Pretraining: opens a run's inputs, builds its parts, and trains them in the loop; resumes from the run folder.

::

    RUN/
      config.yaml            the resolved config
      rank0.pid              `kill -TERM $(cat RUN/rank0.pid)` saves and stops all ranks
      run.lock               exists while a run is at work: one at a time
      status.json            running, stopped, complete or failed, and where; `python -m pretrain status RUN` reads it
      restarts.jsonl         restarts within a Slurm job, with node and cause
      metrics.jsonl          scalars, one line for each record
      tensorboard/           the same scalars, and figures
      checkpoints/step-N/    see pretrain/checkpointing/checkpoint.py
      skipped.jsonl          steps that were not applied, why, and their tiles
      samples-RANK.jsonl     every sample of every step, with log.samples
      profile/               traces and memory snapshots, with log.profile
      stacks-RANK.txt        the stacks of each rank when the watchdog ended a run
      reconstruction.png     MAE: a held-out tile: masked, predicted, true
      encoder.safetensors    the exported encoder of a complete run, and encoder.md, its card
"""

from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import torch

from pretrain import distributed
from pretrain.checkpointing.checkpoint import CheckpointNotWritten, list_checkpoints
from pretrain.checkpointing.local_copies import LocalCopies
from pretrain.checkpointing.manager import CheckpointManager
from pretrain.checkpointing.resume import find_resume_point
from pretrain.config import PretrainConfig
from pretrain.console import log
from pretrain.data.band_tables import BandTables
from pretrain.data.inputs import open_inputs
from pretrain.data.stream import TileBatch, TileStream, micro_batches
from pretrain.engine.optimizers import build_optimizer
from pretrain.engine.schedules import learning_rate
from pretrain.engine.zero import ZeroEngine
from pretrain.loop.callback import Callback
from pretrain.loop.callbacks.bad_tile_limit import BadTileLimit
from pretrain.loop.callbacks.divergence import Divergence
from pretrain.loop.callbacks.gc_control import GcControl
from pretrain.loop.callbacks.logging import Logging
from pretrain.loop.callbacks.probing import Probing
from pretrain.loop.callbacks.reference_loss import ReferenceLoss
from pretrain.loop.callbacks.restarts import Restarts
from pretrain.loop.callbacks.run_identity import RunIdentity
from pretrain.loop.callbacks.sample_log import SampleLog
from pretrain.loop.callbacks.saving import Saving
from pretrain.loop.callbacks.skip_log import SkipLog
from pretrain.loop.callbacks.source_scalars import SourceScalars
from pretrain.loop.callbacks.status_file import StatusFile
from pretrain.loop.callbacks.validation import Validation
from pretrain.loop.loop import Loop, Schedule
from pretrain.loop.probe import EncoderProbe
from pretrain.metrics.processor import MetricsProcessor
from pretrain.models.normalize import Normalizer
from pretrain.objectives import build_objective
from pretrain.registries import CALLBACKS
from pretrain.resilience.guard import Guard
from pretrain.resilience.run_folder import open_run
from pretrain.resilience.watchdog import Watchdog
from pretrain.weights.export import export_encoder
from pretrain.weights.initial_weights import read_initial_weights
from shards.config import dump_config
from shards.errors import ConfigError, ForgeError
from shards.files.atomic import write_atomic
from shards.files.journal import BestEffort
from shards.files.processes import rank_name
from shards.files.system_errors import error_text, remedy


class Trainer:
    """One pretraining run on this process group.

    Args:
        config: of the run.
        watchdog: receives heartbeats; the run saves and stops when any rank's watchdog was asked to.

    Raises:
        ConfigError, ShardError, CheckpointError: the run can't be started, in one line.
    """

    def __init__(self, config: PretrainConfig, watchdog: Watchdog) -> None:
        self.config, self.watchdog, self.folder = config, watchdog, Path(config.run.dir)
        self.run = open_run(self.folder, watchdog, config.run.notify)
        self.inputs = distributed.raise_on_all_hosts(lambda: open_inputs(config))
        manifests, device = self.inputs.manifests, distributed.device()
        tables = BandTables.of(manifests)
        normalize = Normalizer(tables.mu, tables.sigma, config.augment.clip).to(device)
        self.copies = self._local_copies()
        point = find_resume_point(config, self.inputs, self.copies)
        if point is not None:
            self.inputs = self.inputs.starting_at(point.order_begin)
        initial = None if point else read_initial_weights(config, manifests)
        self.objective = build_objective(config, normalize, manifests, initial)
        self.stream = TileStream(
            self.inputs.reader,
            self.inputs.plan,
            device,
            config.data.prefetch,
            self.inputs.quarantine,
            self.objective.timestamps,
            self.objective.draws,
            config.data.decode,
        )
        self.engine = self._build_engine()
        self.metrics = MetricsProcessor(config, self.objective, self.stream, watchdog, self.inputs.reader.tile_shape[0])
        self.engine.mark = self.metrics.phases.mark
        self.status = StatusFile(self.run)
        self.loop = self._build_loop()
        if point is not None:
            state = self.loop.resume(point.path)
            log(f"resumed from {point.path}, saved by {state['world_size']} processes")
        self._check_room()

    @property
    def step(self) -> int:
        """Optimizer steps taken, skipped ones included."""
        return self.loop.step

    def fit(self) -> bool:
        """Train up to ``train.steps``. Returns whether the run is complete (False: it saved and was stopped).

        Raises:
            Diverged: steps were skipped again and again.
            CheckpointNotWritten: the disk is full; the last checkpoint is complete.
        """
        try:
            if self.loop.is_last:
                log(f"{self.folder} is complete at step {self.step}: raise train.steps or choose another run.dir")
            else:
                self._announce()
                with closing(self._batches()) as batches, self.metrics.communication.installed():
                    self.loop.run(self.metrics.timed(batches))
            if self.loop.is_last:
                self._export()
                if self.copies is not None:
                    self.copies.remove()
            else:
                log(
                    f"stopped at step {self.step} of {self.config.train.steps} and saved; run the same command again "
                    "to continue"
                )
                self.status.write(self.loop, "stopped")
                self.loop.checkpoints.settle()
            return self.loop.is_last
        except ForgeError as error:
            self.run.end("failed", str(error))
            raise
        finally:
            self.run.release()

    # ---- building ----

    def _local_copies(self) -> LocalCopies | None:
        local = self.config.checkpoint.local
        if local is None:
            return None
        return LocalCopies(Path(local), self.folder / "checkpoints", self.config.engine.zero_stage)

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

    def _build_loop(self) -> Loop:
        config, train = self.config, self.config.train
        schedule = Schedule(
            train.steps, train.global_batch, lambda step: learning_rate(step, train.steps, config.lr, config.optim)
        )
        checkpoints = CheckpointManager(
            self.folder / "checkpoints",
            self.engine,
            self.objective.momentum,
            config.checkpoint.keep,
            config.checkpoint.keep_every,
            self.copies,
        )
        callbacks = distributed.raise_on_all_ranks(self._build_callbacks)
        return Loop(self.engine, self.objective, schedule, Guard(config.guard), checkpoints, self.watchdog, callbacks)

    def _build_callbacks(self) -> list[Callback]:
        """Build the callbacks, in the order that they are called in."""
        config, objective, inputs, folder = self.config, self.objective, self.inputs, self.folder
        probes = self._build_probes()
        logging = Logging(config, self.metrics, objective.scalars.flush, lambda: inputs.reader.counters)
        return [
            RunIdentity(config, objective, inputs),
            ReferenceLoss(config, objective, inputs),
            *([SampleLog(folder, inputs)] if config.log.samples else []),
            SkipLog(folder, inputs),
            *([SourceScalars(inputs, objective)] if config.data.sources else []),
            logging,
            self.status,
            Restarts(self.run, logging),
            Divergence(str(folder), "lower optim.lr, or look at skipped.jsonl", rolls_back=True),
            Validation(config, objective, inputs),
            *([Probing(probes, objective, config.probe.every)] if config.probe else []),
            *([CALLBACKS["profiler"](config.log.profile, folder)] if config.log.profile else []),
            *(CALLBACKS[config.name](config, folder) for config in config.callbacks),
            BadTileLimit([inputs.quarantine, *(probe.quarantine for probe in probes.values())], folder),
            Saving(config.checkpoint.every, config.checkpoint.background),
            GcControl(),
        ]

    def _build_probes(self) -> dict[str, EncoderProbe]:
        """Return the probes by the names of their sources; by "" in a run of ``data.shards``."""
        config, channels = self.config, self.inputs.reader.tile_shape[0]
        if config.probe is None:
            return {}
        if not config.data.sources:
            return {"": EncoderProbe(config, channels)}
        return {
            source.label: EncoderProbe(config, manifest.tile_shape[0], number, channels)
            for number, (source, manifest) in enumerate(zip(config.data.sources, self.inputs.manifests, strict=True))
            if source.probe is not None
        }

    def _check_room(self) -> None:
        checkpoint, steps, size = self.config.checkpoint, self.config.train.steps, self.loop.checkpoints.nbytes
        distributed.raise_on_all_ranks(
            lambda: self.run.check_room(checkpoint, size, steps) if distributed.is_main() else None
        )

    # ---- running ----

    def _batches(self) -> Generator[TileBatch, None, None]:
        train, rank, world = self.config.train, distributed.rank(), distributed.world_size()
        left = train.steps - self.step
        return self.stream.batches(
            micro_batches(self.loop.samples_seen, left, train.global_batch, train.micro_batch, rank, world)
        )

    def _announce(self) -> None:
        if distributed.is_main():
            path = self.folder / "config.yaml"
            with BestEffort(path):
                write_atomic(path, dump_config(self.config))
        train, world = self.config.train, distributed.world_size()
        parameters = self.engine.parameter_count
        log(
            f"WORLD SIZE {world} on {distributed.device().type}, {torch.get_num_threads()} threads each; "
            f"{self.config.model.name} + {self.config.objective.name}, {parameters / 1e6:.1f} M parameters, "
            f"ZeRO stage {self.config.engine.zero_stage}, {self.config.engine.precision}"
        )
        log(
            f"global batch {train.global_batch} = {train.micro_batch} x {world} processes x "
            f"{self.engine.accumulation} accumulated; {len(self.inputs.plan.rows)} of {len(self.inputs.reader)} tiles "
            f"to train on, {len(self.inputs.held_out)} held out; from step {self.step} to {train.steps}"
        )
        if self.config.data.sources:
            total = sum(source.weight for source in self.inputs.sources)
            shares = (f"{source.name} {source.weight}/{total}" for source in self.inputs.sources)
            log(f"blocks of {self.config.model.bn_group} samples from {', '.join(shares)}")

    def _export(self) -> None:
        """Export the encoder of the last checkpoint."""
        dest = self.folder / "encoder.safetensors"
        distributed.raise_on_all_ranks(lambda: self._write_encoder(dest) if distributed.is_main() else None)
        self.status.write(self.loop, "complete")
        log(f"complete: {dest} ({self.loop.samples_seen} samples seen)")

    def _write_encoder(self, dest: Path) -> None:
        try:
            export_encoder(list_checkpoints(self.folder / "checkpoints")[-1], dest)
        except OSError as error:
            raise CheckpointNotWritten(
                f"{dest}: can't be written: {rank_name(0)}: {error_text(error)}; the last checkpoint is complete: "
                f"{remedy(error, dest)} and run the command again"
            ) from None

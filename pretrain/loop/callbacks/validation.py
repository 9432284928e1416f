"""The loss on held-out tiles, on views and masks that never change."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.console import log
from pretrain.data.inputs import Inputs
from pretrain.engine.zero import ZeroEngine
from pretrain.loop.callback import Callback, Outcome
from pretrain.loop.evaluating import check_stop, evaluating
from pretrain.loop.loop import Loop
from pretrain.metrics.band_errors import mean_by_range
from pretrain.objectives.objective import Evaluation, Objective
from pretrain.resilience.guard import Diverged
from shards.files.atomic import write_atomic
from shards.files.journal import BestEffort
from shards.format.manifest import sensor_of
from shards.read.quarantine import NoneLeft

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Validation(Callback):
    """Logs the validation loss and a figure of a held-out tile every ``log.validate_every`` steps and at the end.

    Raises (on every rank):
        Diverged: the loss is not finite.
        TooManyBadSamples: more held-out tiles are damaged than ``data.max_bad_tiles``.
    """

    def __init__(self, config: PretrainConfig, objective: Objective, inputs: Inputs) -> None:
        self._config, self._objective, self._inputs = config, objective, inputs
        self._picture = Path(config.run.dir) / "reconstruction.png"
        self._drawing = BestEffort(self._picture, Exception)

    def after_step(self, loop: Loop, outcome: Outcome) -> None:
        every = self._config.log.validate_every
        due = loop.is_last or (every and loop.step % every == 0)
        if due and not loop.stopping:
            with evaluating(loop):
                self._validate(loop)

    def _validate(self, loop: Loop) -> None:
        micro_batch, stop_requested = self._config.train.micro_batch, loop.watchdog.stop_requested
        result = validate(self._objective, loop.engine, self._inputs, micro_batch, stop_requested)
        if result is None:
            return
        several = len(self._inputs.sources) > 1
        of_sources = {f"source/{name}/validation_loss": loss for name, loss in result.losses.items() if several}
        loop.log({"validation_loss": result.loss, **of_sources, **self._range_errors(result.band_errors)})
        tiles = len(self._inputs.held_out)
        log(f"step {loop.step}  validation loss {result.loss:.4f} over {tiles} held-out tiles")
        if not math.isfinite(result.loss):
            raise Diverged(
                f"{self._config.run.dir}: diverged by step {loop.step}: the validation loss is {result.loss}: lower "
                "optim.lr"
            )
        if distributed.is_main() and result.figure is not None:
            with self._drawing:
                from pretrain.objectives.picture import draw

                png = draw(result.figure())
                write_atomic(self._picture, png)
                loop.log({}, {"reconstruction": png, **self._error_figure(result.band_errors)})

    def _range_errors(self, errors: dict[str, np.ndarray]) -> dict[str, float]:
        """Return the errors of each source's bands as a scalar for each range of the spectrum."""
        several = len(self._inputs.sources) > 1
        scalars: dict[str, float] = {}
        for source in self._inputs.sources:
            if source.name in errors:
                prefix = f"source/{source.name}/" if several else ""
                ranges = mean_by_range(source.manifest.wavelength_nm, errors[source.name])
                scalars |= {f"{prefix}validation_error/{name}": error for name, error in ranges.items()}
        return scalars

    def _error_figure(self, errors: dict[str, np.ndarray]) -> dict[str, bytes]:
        from pretrain.objectives.picture import band_error_figure, draw

        found = [(source, errors[source.name]) for source in self._inputs.sources if source.name in errors]
        lines = {source.name: (sensor_of(source.manifest), of_bands) for source, of_bands in found}
        return {"band_errors": draw(band_error_figure(lines))} if lines else {}


@dataclass(frozen=True)
class Validated:
    """Mean losses over all ranks' tiles.

    Attributes:
        losses: of each source that has held-out tiles, by name.
        band_errors: mean squared error of each band (C,) of these sources, if the objective predicts bands; NaN for a
            band that was no target.
        loss: mean of these, weighted by the sources' shares of the samples.
        figure: how to draw the first of this rank's tiles, if the objective has a figure.
    """

    losses: dict[str, float]
    band_errors: dict[str, np.ndarray]
    loss: float
    figure: "Callable[[], Figure] | None"


def validate(
    objective: Objective,
    engine: ZeroEngine,
    inputs: Inputs,
    micro_batch: int,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Validated | None:
    """Return the mean loss over the held-out tiles, None if there are none to read; every rank calls it.

    A damaged tile is replaced by another held-out tile of its source.

    Raises:
        TooManyBadSamples: on every rank, if one is above the budget.
        Stopped: a rank was asked to stop.
    """
    losses: dict[str, float] = {}
    band_errors: dict[str, np.ndarray] = {}
    figure = None
    for number, source in enumerate(inputs.sources):
        if not len(source.held_out):
            continue
        bands = inputs.reader.tile_shape[0]
        sums = torch.zeros(2 + 2 * bands, dtype=torch.float64, device=distributed.device())
        predicts_bands = False
        try:
            for evaluation, real in _evaluations(objective, engine, inputs, number, micro_batch, stop_requested):
                own = evaluation.losses.double()[real]
                sums[:2] += torch.stack([own.sum(), own.new_tensor(float(len(own)))])
                if evaluation.band_errors is not None:
                    predicts_bands, errors = True, evaluation.band_errors.double()[real]
                    sums[2:] += torch.cat([errors.nansum(0), (~errors.isnan()).double().sum(0)])
                figure = figure or evaluation.figure
        except NoneLeft as error:
            log(f"WARNING: no validation: {error}")
            continue
        with distributed.reading():
            total, count, *of_bands = distributed.all_reduce_sum(sums).tolist()
        losses[source.name] = total / count
        if predicts_bands:
            squares, counts = np.reshape(of_bands, (2, bands))[:, : source.manifest.tile_shape[0]]
            band_errors[source.name] = np.divide(squares, counts, out=np.full_like(squares, np.nan), where=counts > 0)
    weights = {source.name: source.weight for source in inputs.sources if source.name in losses}
    if not losses:
        return None
    mean = sum(weights[name] * loss for name, loss in losses.items()) / sum(weights.values())
    return Validated(losses, band_errors, mean, figure)


def _evaluations(
    objective: Objective,
    engine: ZeroEngine,
    inputs: Inputs,
    source: int,
    micro_batch: int,
    stop_requested: Callable[[], bool],
) -> Iterator[tuple[Evaluation, Tensor]]:
    """Evaluate this rank's held-out tiles of one source; yield results, and which of them count, bool (B,)."""
    held_out = inputs.sources[source].held_out
    world, device = distributed.world_size(), distributed.device()
    shape = (inputs.reader.tile_shape[0], *inputs.sources[source].manifest.tile_shape[1:])
    sources = torch.full((micro_batch,), source, dtype=torch.int64, device=device)
    for number in range(-(-len(held_out) // (micro_batch * world))):  # ZeRO-3 forwards are collective: as many on all
        check_stop(stop_requested())
        numbers = np.arange(micro_batch) + micro_batch * (number * world + distributed.rank())
        real = numbers < len(held_out)
        numbers = np.where(real, numbers, 0)
        tiles = torch.empty((micro_batch, *shape), dtype=torch.int16)
        read = partial(inputs.reader.read, held_out[numbers], tiles.numpy(), inputs.quarantine)
        distributed.raise_on_all_ranks(read)  # a rank that failed alone would leave the others in the forward pass
        evaluation = objective.evaluate(engine, tiles.to(device), numbers, sources)
        yield evaluation, torch.from_numpy(real).to(device)

"""The loss on held-out tiles, on views and masks that never change."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from pretrain import distributed
from pretrain.console import log
from pretrain.data.inputs import Inputs
from pretrain.engine.zero import ZeroEngine
from pretrain.objectives.objective import Objective
from shards.read.quarantine import NoneLeft

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Validation:
    """Mean loss over all ranks' tiles, and how to draw the first of this rank's, where there is a picture."""

    loss: float
    figure: "Callable[[], Figure] | None"


class Stopped(Exception):
    """An evaluation was given up: the run was asked to stop."""


def check_stop(asked: bool) -> None:
    """Raise Stopped on every rank where one was asked to stop; every rank calls it."""
    if distributed.any_rank(asked):
        raise Stopped


def validate(
    objective: Objective,
    engine: ZeroEngine,
    inputs: Inputs,
    micro_batch: int,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Validation | None:
    """Mean loss over the held-out tiles, None where there are none to read; every rank calls it.

    A damaged one is replaced by another that is held out.

    Raises:
        TooManyBadSamples: on every rank, where one is above the budget.
        Stopped: a rank was asked to stop.
    """
    reader, held_out = inputs.reader, inputs.held_out
    if not len(held_out):
        return None
    world, device = distributed.world_size(), distributed.device()
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    figure = None
    for turn in range(-(-len(held_out) // (micro_batch * world))):  # ZeRO-3 forwards are collective: as many on all
        check_stop(asked_to_stop())
        numbers = np.arange(micro_batch) + micro_batch * (turn * world + distributed.rank())
        real = numbers < len(held_out)
        numbers = np.where(real, numbers, 0)
        tiles = torch.empty((micro_batch, *reader.tile_shape), dtype=torch.int16)
        read = partial(reader.read, held_out[numbers], tiles.numpy(), inputs.quarantine)
        try:
            distributed.raise_on_all_ranks(read)  # a rank that failed alone would leave the others in the forward pass
        except NoneLeft as error:
            log(f"WARNING: no validation: {error}")
            return None
        evaluation = objective.evaluate(engine, tiles.to(device), numbers)
        losses = evaluation.losses.double()[torch.from_numpy(real).to(device)]
        sums += torch.stack([losses.sum(), losses.new_tensor(float(len(losses)))])
        figure = figure or evaluation.figure
    total, count = distributed.all_reduce_sum(sums).tolist()
    return Validation(total / count, figure)

"""The loss of a few fixed tiles: read at every save and after every load, to prove that a load was right."""

import numpy as np
import torch

from pretrain import distributed
from pretrain.data.inputs import Inputs
from pretrain.engine.zero import ZeroEngine
from pretrain.objectives.objective import Objective


def loss_of(objective: Objective, engine: ZeroEngine, inputs: Inputs, count: int) -> tuple[float, list[int]]:
    """Mean loss of a few tiles on fixed views, in evaluation mode; the same on all ranks, each takes all tiles.

    Read at every save and after every load: where the two differ for the same rows, the load was wrong.

    Returns:
        The loss, and the rows of the tiles.
    """
    tiles, rows = distributed.raise_on_all_ranks(lambda: inputs.always(count))
    on_device = torch.from_numpy(tiles).to(distributed.device())
    return float(objective.evaluate(engine, on_device, np.arange(count)).losses.mean()), rows

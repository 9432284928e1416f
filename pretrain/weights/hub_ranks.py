"""Find or download an encoder once per node, on all ranks of a process group."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from pretrain import distributed
from pretrain.weights.hub import fetch


def fetch_on_all_ranks(location: str, find: Callable[[str], Path] = fetch) -> Path:
    """Return the local path of a location; every rank calls this.

    The main rank downloads first, then one rank of each node, where the nodes share no cache, then the others find
    the download. Of a path on this machine all ranks take what the main rank finds, since a run that is still
    training may write a newer checkpoint meanwhile.

    Args:
        find: what turns the location into a path.

    Raises:
        WeightsError: see `fetch`; raised on all ranks.
    """
    path = Path()
    for is_my_turn in (distributed.is_main(), distributed.local_rank() == 0, True):
        path = distributed.raise_on_all_ranks(partial(find, location) if is_my_turn else Path)
    return path if "://" in location else distributed.broadcast_object(path)

"""Pack tiles into WebDataset tar shards, and read them back in an exactly resumable order."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.read.reader import open_dataset as open_dataset
    from shards.read.zarr_store import open_zarr as open_zarr

_HOME = {"open_dataset": "shards.read.reader", "open_zarr": "shards.read.zarr_store"}


def __getattr__(name: str) -> Any:
    """Import ``shards.open_zarr`` and ``shards.open_dataset`` on first use, so that ``--help`` of a command is fast."""
    if name not in _HOME:
        raise AttributeError(f"module 'shards' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)

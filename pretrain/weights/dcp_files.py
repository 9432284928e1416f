"""Read and write folders of torch.distributed.checkpoint (DCP) on one process. No code of a folder runs.

torch unpickles ``.metadata`` without restrictions; here it may name the classes of DCP's metadata only. Of the entries,
only tensors are read.
"""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.weights.description import WeightsError
from pretrain.weights.torch_files import one_line
from shards.files.names import plain_name

METADATA = ".metadata"
_METADATA_MODULE = "torch.distributed.checkpoint.metadata"
_SAFE = {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("collections", "OrderedDict"),
    *(("pathlib", name) for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")),
}


def is_dcp(folder: Path) -> bool:
    """Return whether a folder was written by torch.distributed.checkpoint."""
    return (folder / METADATA).is_file()


def read_dcp(folder: Path, wanted: Callable[[str], bool]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the whole tensors whose names are ``wanted``, and the names of all other entries.

    Names are those of DCP: the keys of nested dicts joined by dots.

    Raises:
        WeightsError: the folder is damaged, or its metadata names something other than tensors and their places.
    """
    import torch.distributed.checkpoint as dcp  # takes a second to import
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
            return metadata

    try:
        with open(folder / METADATA, "rb") as file:
            metadata = _MetadataUnpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        for place in metadata.storage_data.values():
            plain_name(place.relative_path)
        entries = metadata.state_dict_metadata
        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in entries.items()
            if isinstance(entry, TensorStorageMetadata) and wanted(name)
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.load(dict(tensors), storage_reader=Reader(folder), no_dist=True)
    except (Exception, CheckpointException) as raised:  # what a damaged pickle or tensor raises is of many kinds
        error = next(iter(raised.failures.values()))[0] if isinstance(raised, CheckpointException) else raised
        raise WeightsError(
            f"{folder}: not a complete folder of torch.distributed.checkpoint ({one_line(error)}); save or copy it "
            "again"
        ) from None
    return tensors, [name for name in entries if name not in tensors]


def write_dcp(folder: Path, state: dict[str, Any]) -> None:
    """Write a nested dict of tensors and plain values into a folder, synced."""
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.save(state, checkpoint_id=folder, no_dist=True)


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in _SAFE or (module == _METADATA_MODULE and name in _metadata_classes()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its metadata names {module}.{name}, which could run code")


def _metadata_classes() -> set[str]:
    """Return the names of the classes that torch's module of metadata defines itself."""
    from torch.distributed.checkpoint import metadata

    return {name for name, value in vars(metadata).items() if getattr(value, "__module__", "") == _METADATA_MODULE}

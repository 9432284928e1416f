"""Collectives on the default process group; without one they are no-ops for a single process."""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from shards.errors import ForgeError
from shards.files.processes import host_name, rank_name

Result = TypeVar("Result")
_TURNS = itertools.count()
_LAUNCHED_AS = "SPECTRALFORGE_LOCAL_RANK"  # the launcher's LOCAL_RANK, where `adopt_device` has replaced it


_waiting: Callable[[], AbstractContextManager[None]] = nullcontext


@contextmanager
def reads_marked(by: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Enter ``by`` around every `reading` in the enclosed block."""
    global _waiting
    before, _waiting = _waiting, by
    try:
        yield
    finally:
        _waiting = before


def reading() -> AbstractContextManager[None]:
    """Mark reads of device values.

    Under NCCL these are where the host waits for other ranks: collectives only queue work on the device.
    """
    return _waiting()


def rank() -> int:
    """Return this process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this process is rank 0, which writes files and to the console."""
    return rank() == 0


def local_rank() -> int:
    """Return this process's number among those of its node, as the launcher gave it."""
    return int(os.environ.get(_LAUNCHED_AS, os.environ.get("LOCAL_RANK", "0")))


def device() -> torch.device:
    """Return this process's accelerator, or the CPU.

    A launcher may show all of a node's devices to each process, or its own one alone (`srun --gpus-per-task 1`).
    """
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
    return torch.device("cpu")


def adopt_device() -> None:
    """Make this process's GPU the current one, and let LOCAL_RANK be its index, which DeepSpeed takes it for."""
    torch.cuda.set_device(device())
    os.environ.setdefault(_LAUNCHED_AS, str(local_rank()))
    for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"):  # DeepSpeed insists that they are equal
        if name == "LOCAL_RANK" or name in os.environ:
            os.environ[name] = str(device().index)


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum over ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def all_gather(values: Tensor) -> Tensor:
    """Concatenate the tensors (n, ...) of all ranks in rank order, (world size * n, ...)."""
    if world_size() == 1:
        return values
    everyone = values.new_empty(world_size() * len(values), *values.shape[1:])
    dist.all_gather_into_tensor(everyone, values.contiguous())
    return everyone


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on any rank; every rank gets the same answer."""
    with reading():
        return bool(all_reduce_sum(torch.tensor(float(flag), device=device())).item())


def gather_objects(value: Any) -> list[Any]:
    """Return every rank's value, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with reading():  # torch reads sizes and contents from the device
        dist.all_gather_object(values, value)
    return values


def host_names() -> list[str]:
    """Return the host of each rank, in rank order; every rank calls it, and only its first call communicates."""
    return _gathered_hosts(dist.group.WORLD if dist.is_initialized() else None)


@lru_cache(maxsize=1)
def _gathered_hosts(group: Any) -> list[str]:
    return gather_objects(host_name())


def broadcast_object(value: Any) -> Any:
    """Return rank 0's value on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    with reading():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def raise_on_all_ranks(work: Callable[[], Result]) -> Result:
    """Call a local function on every rank; if it fails on one rank, raise that rank's error on every rank.

    Otherwise the other ranks would wait for the failed rank in their next collective.
    """
    result, error = _attempt(work)
    first = next((each for each in gather_objects(error) if each is not None), None)
    if first is not None:
        first.everywhere = True
        raise first
    return result


def _attempt(work: Callable[[], Result]) -> tuple[Any, ForgeError | None]:
    """Return the result of a function, or the error that it raises."""
    try:
        return work(), None
    except ForgeError as error:
        return None, error


class HostError(ForgeError):
    """A problem that some hosts have and others don't, such as a file system that is not mounted."""

    exit_code = 1


def raise_on_all_hosts(work: Callable[[], Result]) -> Result:
    """Call a local function that does the same on every rank; if it fails, raise the error on every rank.

    Raises:
        HostError: it fails on some ranks only: the config is right, and the first of their hosts is named.
    """
    result, error = _attempt(work)
    errors = gather_objects(None if error is None else (error, rank_name(rank())))
    failed = [each for each in errors if each is not None]
    if failed:
        first, name = failed[0]
        if len(failed) < len(errors):
            ranks = f"{len(failed)} of {len(errors)} ranks"
            first = HostError(f"{name}: {first}; {ranks} have this problem: check what differs on their hosts")
        first.everywhere = True
        raise first
    return result


def store_barrier(meanwhile: Callable[[], None]) -> None:
    """Wait for all ranks without a time limit; a collective would fail after minutes.

    Args:
        meanwhile: called several times a second; an exception that it raises ends the wait.
    """
    if world_size() == 1:
        return
    store, number = dist.distributed_c10d._get_default_store(), next(_TURNS)
    store.set(f"store_barrier/{number}/{rank()}", "here")
    while not store.check([f"store_barrier/{number}/{rank}" for rank in range(world_size())]):
        meanwhile()
        time.sleep(0.2)


def background_store() -> dist.Store:
    """Return the process group's store over a connection of its own, for threads beside the main one.

    A process without a group has a store of its own.
    """
    return _connection(dist.distributed_c10d._get_default_store() if world_size() > 1 else None)


@lru_cache(maxsize=1)
def _connection(store: dist.Store | None) -> dist.Store:
    return dist.HashStore() if store is None else store.clone()  # type: ignore[attr-defined]


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        with reading():
            dist.barrier()


def set_default_timeout(timeout: timedelta) -> None:
    """Set the timeout of groups that are created without one, as DeepSpeed's are; torch's default is 600 s under NCCL.

    NCCL's own monitor, which ends a process after 480 s if a CUDA call blocks its thread, waits as long.
    """
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        assert hasattr(dist.distributed_c10d, name)
        setattr(dist.distributed_c10d, name, timeout)
    os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(round(timeout.total_seconds())))

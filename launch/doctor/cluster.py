"""The ranks of the doctor: they run local work simultaneously and gather errors instead of hanging."""

import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pretrain import distributed
from pretrain.config import PretrainConfig
from shards.errors import ForgeError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Answer(Generic[Value]):
    """The result of one rank's work: a value, or its error in one line."""

    value: Value | None
    error: str | None = None


class Cluster:
    """All ranks of this process group.

    Args:
        config: config of the planned run.

    Attributes:
        rank, size: rank of this process, and number of processes.
        hosts: host name of every rank.
        first_ranks: first rank of every host, for work done once per host.
    """

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.rank, self.size = distributed.rank(), distributed.world_size()
        self.hosts: list[str] = distributed.gather_objects(socket.gethostname())
        self.first_ranks = [rank for rank, host in enumerate(self.hosts) if self.hosts.index(host) == rank]
        self._working = False

    def everywhere(self, work: Callable[[], Value]) -> list[Answer[Value]]:
        """Run local work on every rank; every rank gets all answers, in rank order.

        ``work`` must not contain collectives: if it failed on one rank, the others would wait in them.
        """
        self._working = True
        try:
            answer: Answer[Value] = Answer(work())
        except Exception as error:  # any: the doctor reports it
            answer = Answer(None, one_line(error))
        self._working = False
        return distributed.gather_objects(answer)

    def name(self, rank: int) -> str:
        """Return a rank's name for messages."""
        return f"rank {rank} ({self.hosts[rank]})"

    def failure(self, answers: Sequence[Answer]) -> str | None:
        """Return the first failed rank, its error and the number of other failures; None if all succeeded."""
        failed = [rank for rank, answer in enumerate(answers) if answer.error is not None]
        if not failed:
            return None
        more = f" (and {len(failed) - 1} more of {self.size} ranks)" if len(failed) > 1 else ""
        return f"{self.name(failed[0])}: {answers[failed[0]].error}{more}"

    def report_late(self, check: str) -> None:
        """Print to stderr that this rank is late, if the others wait for it."""
        if self._working:
            print(f"doctor: {self.name(self.rank)} is late: still in '{check}'", file=sys.stderr, flush=True)


def values(answers: Sequence[Answer[Value]]) -> list[Value]:
    """Return all ranks' values; none may have failed."""
    return [answer.value for answer in answers if answer.value is not None]


def one_line(error: BaseException) -> str:
    """Return an error as one line, without its traceback."""
    if isinstance(error, ForgeError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__

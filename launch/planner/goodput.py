"""A year of a run on nodes that fail: which share of the time trains, for a save interval and a way to restart.

Failures of the job's nodes are a Poisson process. A failure loses what was trained since the last save that is on disk.
The job then starts again, in its allocation if a spare node is left, otherwise after a wait in the queue. What happens
between two failures follows from arithmetic alone, so that a year takes as many events as it has failures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

YEAR = 365 * 86400.0
INTERVALS = np.geomspace(15, 12 * 3600, 40)
"""Save intervals that `best_interval` compares, in seconds."""

REPETITIONS = 12
"""Years that a mean is of."""


@dataclass(frozen=True)
class Saving:
    """What a save costs, in seconds.

    Attributes:
        blocking: time in which training stands still.
        durable: time from a save's begin until a restart can use it.
    """

    blocking: float
    durable: float

    @classmethod
    def synchronous(cls, write: float) -> "Saving":
        """Return the costs of a save that training waits for, of ``write`` seconds."""
        return cls(write, write)

    @classmethod
    def asynchronous(cls, copy: float, write: float) -> "Saving":
        """Return the costs of a save that is copied in ``copy`` seconds, and then written while training goes on."""
        return cls(copy, copy + write)

    def after(self, interval: float) -> "Saving":
        """Return the costs at an interval of saves: at most one is in flight, and the next one waits for it."""
        return replace(self, blocking=max(self.blocking, self.durable - interval))


@dataclass(frozen=True)
class Reliability:
    """How often a job stops, and how long it then takes to train again. All times are in seconds.

    Attributes:
        mtbf: mean time between failures of one node.
        nodes: nodes that train.
        spares: further nodes of the allocation, which take the place of failed ones.
        restart: time from a failure to the first step after it, without the wait in the queue.
        queue: mean wait of a job that has to be queued again; waits are exponential.
        repair: time until a failed node is a spare again.
    """

    mtbf: float
    nodes: int
    spares: int = 0
    restart: float = 120.0
    queue: float = 0.0
    repair: float = math.inf

    @property
    def between_failures(self) -> float:
        """Mean time between two failures of the job."""
        return self.mtbf / self.nodes


@dataclass(frozen=True)
class Goodput:
    """Shares of the time; they add up to 1.

    Attributes:
        trained: steps that no restart repeats.
        lost: steps that were trained and lost, and saves that were.
        saving: training waits for a save.
        restart: from a failure to the first step.
        queue: the job waits for nodes.
        requeues: number of waits in the queue, per year.
        failures: number of failures, per year.
    """

    trained: float
    lost: float
    saving: float
    restart: float
    queue: float
    requeues: float = 0.0
    failures: float = 0.0


def simulate(interval: float, saving: Saving, reliability: Reliability, seed: int = 0, span: float = YEAR) -> Goodput:
    """Run one job for ``span`` seconds.

    Args:
        interval: seconds of training between the begins of saves.
    """
    rng, saving = np.random.default_rng((20, seed)), saving.after(interval)
    trained = lost = blocked = restarting = queued = now = 0.0
    failures = requeues = 0
    repaired: list[float] = []
    spares = reliability.spares
    while now < span:
        uptime = rng.exponential(reliability.between_failures)
        starting = min(uptime, reliability.restart) if failures else 0.0
        kept, waited, gone = _train(uptime - starting, interval, saving)
        restarting, trained, blocked, lost = restarting + starting, trained + kept, blocked + waited, lost + gone
        now, failures = now + uptime, failures + 1
        spares += sum(1 for ready in repaired if ready <= now)
        repaired = [ready for ready in repaired if ready > now]
        if spares:
            spares -= 1
            repaired.append(now + reliability.repair)
            continue
        wait = rng.exponential(reliability.queue) if reliability.queue else 0.0
        queued, now, requeues = queued + wait, now + wait, requeues + 1
        spares, repaired = reliability.spares, []  # the queue gives as many nodes as were asked for
    shares = (trained / now, lost / now, blocked / now, restarting / now, queued / now)
    return Goodput(*shares, requeues * YEAR / now, failures * YEAR / now)


def _train(seconds: float, interval: float, saving: Saving) -> tuple[float, float, float]:
    """Return the seconds trained and kept, those waited for the saves that keep them, and the rest, which is lost."""
    cycle, first = interval + saving.blocking, interval + saving.durable
    durable = 0 if seconds < first else 1 + int((seconds - first) / cycle)
    return durable * interval, durable * saving.blocking, seconds - durable * cycle


def mean_goodput(interval: float, saving: Saving, reliability: Reliability) -> Goodput:
    """Return the mean of `REPETITIONS` years, whose failures are the same for every interval and kind of save."""
    years = [simulate(interval, saving, reliability, seed) for seed in range(REPETITIONS)]
    return Goodput(*np.mean([list(vars(year).values()) for year in years], axis=0).tolist())


def best_interval(
    saving: Saving, reliability: Reliability, slack: float = 0.0, intervals: Sequence[float] = tuple(INTERVALS)
) -> tuple[float, Goodput]:
    """Return the longest interval whose share of training is within ``slack`` of the largest one, and its goodput."""
    years = [(interval, mean_goodput(interval, saving, reliability)) for interval in intervals]
    largest = max(goodput.trained for _, goodput in years)
    return next(year for year in reversed(years) if year[1].trained >= largest - slack)


def young(blocking: float, between_failures: float) -> float:
    """Return Young's first-order optimum of the save interval, sqrt(2 C M) (Young 1974)."""
    return math.sqrt(2 * blocking * between_failures)


def daly(blocking: float, between_failures: float) -> float:
    """Return Daly's higher-order optimum of the save interval (Daly 2006, equation 37)."""
    if blocking >= 2 * between_failures:
        return between_failures
    ratio = math.sqrt(blocking / (2 * between_failures))
    return young(blocking, between_failures) * (1 + ratio / 3 + ratio**2 / 9) - blocking


def expected_share(interval: float, blocking: float, between_failures: float, restart: float = 0.0) -> float:
    """Return the expected share of the time that trains, of synchronous saves and exponential failures (Daly 2006)."""
    growth = math.exp(restart / between_failures) * math.expm1((interval + blocking) / between_failures)
    return interval / (between_failures * growth)

"""All layouts of a run on some GPUs, ranked by tiles/s; those that don't fit give the reason."""

from collections.abc import Mapping
from dataclasses import dataclass

from launch.planner.activations import Activations
from launch.planner.memory import Layout, Moment, peak_memory
from launch.planner.network import Cluster
from launch.planner.step_time import Rates, StepTime, scaled, step_time
from pretrain.config import PretrainConfig
from shards.errors import ConfigError

ROOM = 0.94  # usable fraction of a GPU's memory: torch's allocator loses some to fragmentation (a guess)


@dataclass(frozen=True)
class Plan:
    """One layout.

    Attributes:
        config: config of the run with this layout.
        moment: moment of peak memory.
        time: time of a step.
        reason: why it doesn't fit, empty if it does.
    """

    config: PretrainConfig
    moment: Moment
    time: StepTime
    reason: str

    @property
    def stage(self) -> int:
        return self.config.engine.zero_stage

    @property
    def checkpointing(self) -> bool:
        return self.config.engine.activation_checkpointing == "blocks"

    @property
    def micro_batch(self) -> int:
        return self.config.train.micro_batch


@dataclass(frozen=True)
class Problem:
    """The run to plan and its machines.

    Attributes:
        traces: activations without and with checkpointing.
        bands: number of bands C of the tiles.
    """

    config: PretrainConfig
    cluster: Cluster
    rates: Rates
    traces: Mapping[bool, Activations]
    bands: int

    def plan(self, stage: int, checkpointing: bool, micro_batch: int, world: int | None = None) -> Plan:
        """Return the plan of one layout on ``world`` GPUs, by default the run's number.

        If ``world`` is given, the global batch is one micro batch per GPU.
        """
        cluster = self.cluster if world is None else scaled(self.cluster, world)
        config = with_layout(self.config, stage, checkpointing, micro_batch)
        if world is not None:
            train = config.train.model_copy(update={"global_batch": micro_batch * world})
            config = config.model_copy(update={"train": train})
        layout = Layout(stage, config.engine.precision, cluster.world, "cuda")
        trace = self.traces[checkpointing]
        moment = peak_memory(config, trace, layout, micro_batch, self.bands)
        time = step_time(config, self.bands, trace, layout, cluster, self.rates)
        return Plan(config, moment, time, _misfit(moment, cluster))


def with_layout(config: PretrainConfig, stage: int, checkpointing: bool, micro_batch: int) -> PretrainConfig:
    """Return a run's config with another layout; its losses stay the same."""
    policy = "blocks" if checkpointing else "none"
    engine = config.engine.model_copy(update={"zero_stage": stage, "activation_checkpointing": policy})
    train = config.train.model_copy(update={"micro_batch": micro_batch})
    return config.model_copy(update={"engine": engine, "train": train})


def micro_batches(config: PretrainConfig, world: int) -> list[int]:
    """Return the possible micro batches: divisors of the work that are multiples of the batch-norm group.

    Raises:
        ConfigError: there are none.
    """
    global_batch, group = config.train.global_batch, config.model.bn_group
    if global_batch % (world * group):
        raise ConfigError(
            f"train.global_batch {global_batch} must be a multiple of {world} GPUs x model.bn_group {group}; "
            f"the nearest above is {-(-global_batch // (world * group)) * world * group}"
        )
    each = global_batch // world
    return [size for size in range(group, each + 1, group) if each % size == 0]


def every_plan(problem: Problem) -> list[Plan]:
    """Return plans for ZeRO 1 to 3, with and without checkpointing, at every micro batch, the best first."""
    config = problem.config
    stages = (2, 3) if config.engine.precision == "bf16" else (1, 2, 3)
    plans = [
        problem.plan(stage, checkpointing, micro_batch)
        for stage in stages
        for checkpointing in (False, True)
        for micro_batch in micro_batches(config, problem.cluster.world)
    ]
    return sorted(plans, key=lambda plan: (bool(plan.reason), -plan.time.tiles_per_s, plan.moment.total))


def _misfit(moment: Moment, cluster: Cluster) -> str:
    room = ROOM * cluster.machine.memory
    if moment.total <= room:
        return ""
    over, (part, size) = moment.total - room, max(moment.parts.items(), key=lambda part: part[1])
    return f"{over / 1e9:.1f} GB too much; the largest part is {part}, {size / 1e9:.1f} GB ({moment.when})"

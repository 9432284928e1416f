"""The plan as text: tables, answers to six questions, and overrides for the config."""

from collections.abc import Callable, Sequence

from launch.planner.host_time import reduce_scatter_seconds
from launch.planner.loader import Tiles, reading
from launch.planner.memory import Layout, snapshot_bytes
from launch.planner.search import Plan, Problem

WORLDS = (8, 16, 32, 64, 128, 256, 512, 1024)
ENOUGH = 0.9  # efficiency below which scaling is considered to end
FEW_PROCESSES = 128  # up to here, ZeRO-3's reduce-scatter takes the host less time than a step

Write = Callable[[str], None]


def print_ranking(write: Write, plans: Sequence[Plan], shown: int) -> None:
    """Print the fastest layouts that fit, then the closest ones that don't, with reasons."""
    fitting = [plan for plan in plans if not plan.reason]
    write(f"\n{len(fitting)} of {len(plans)} layouts fit; the fastest:")
    write("  ZeRO  checkpointing  micro batch   GB/GPU   step s   tiles/s  exposed comm   host")
    for plan in fitting[:shown]:
        write(_row(plan))
    missing = sorted((plan for plan in plans if plan.reason), key=lambda plan: plan.moment.total)
    if missing:
        write("These don't fit, the closest first:")
    for plan in missing[:3]:
        write(f"{_row(plan)}  {plan.reason}")


def _row(plan: Plan) -> str:
    time, checkpointing = plan.time, "on" if plan.checkpointing else "off"
    return (
        f"  {plan.stage:>4}  {checkpointing:>13}  {plan.micro_batch:>11}  "
        f"{plan.moment.total / 1e9:>7.1f}  {time.seconds:>7.3f}  {time.tiles_per_s:>8.0f}  "
        f"{time.exposed * 1e3:>9.1f} ms  {time.host / time.seconds:>4.0%}"
    )


def print_plan(write: Write, plan: Plan, problem: Problem) -> None:
    """Print memory and time of one plan by part, and the cost of the complete run."""
    write(f"\nMemory per GPU, at its worst ({plan.moment.when}):")
    for part, size in sorted(plan.moment.parts.items(), key=lambda part: -part[1]):
        if size >= 5e6:
            write(f"  {part:<16} {size / 1e9:8.2f} GB")
    write(f"  {'all':<16} {plan.moment.total / 1e9:8.2f} GB of {problem.cluster.machine.memory / 1e9:.1f}")
    _print_snapshot(write, plan, problem)
    time, world = plan.time, problem.cluster.world
    write("Time of a step:")
    for part, seconds in time.parts.items():
        if seconds > 0:
            write(f"  {part:<16} {seconds * 1e3:8.1f} ms")
    write(f"  {'communication':<16} {time.communication * 1e3:8.1f} ms, of which exposed {time.exposed * 1e3:.1f}")
    limit = "which the step waits for" if time.host > time.device else "while the device computes"
    write(f"  {'host':<16} {time.host * 1e3:8.1f} ms, {limit}")
    peak = problem.cluster.machine.peak(plan.config.engine.precision)
    write(f"  {'all':<16} {time.seconds * 1e3:8.1f} ms: {time.tiles_per_s:.0f} tiles/s, MFU {time.mfu(peak):.0%}")
    steps = plan.config.train.steps
    hours = steps * time.seconds / 3600
    write(
        f"The run's {steps:,} steps: {hours:,.1f} hours, {hours * world:,.0f} GPU-hours; rates: {problem.rates.source}"
    )


def _print_snapshot(write: Write, plan: Plan, problem: Problem) -> None:
    """Print the memory of the copy from which a checkpoint is written."""
    config, cluster = plan.config, problem.cluster
    layout = Layout(plan.stage, config.engine.precision, cluster.world, "cuda")
    size = snapshot_bytes(problem.traces[plan.checkpointing].weights, config.optim, layout)
    write(
        f"Host memory for checkpoints: {size / 1e9:.2f} GB per GPU, {size * cluster.gpus / 1e9:.1f} GB per node, pinned"
    )


def answers(plans: Sequence[Plan], problem: Problem, tiles: Tiles, storage: float) -> list[str]:
    """Return the answers to six questions about a config, a line or two each.

    Args:
        plans: all layouts, ranked.
        storage: bytes/s of the file system, for all nodes together.
    """
    fitting = [plan for plan in plans if not plan.reason]
    if not fitting:
        return [_fits(plans, problem)]
    best = fitting[0]
    return [
        _fits(plans, problem),
        _worth(fitting),
        _host(best, problem),
        _fed(best, problem, tiles),
        _storage(best, problem, tiles, storage),
        *_scaling(fitting, problem),
    ]


def _fits(plans: Sequence[Plan], problem: Problem) -> str:
    cluster, name = problem.cluster, problem.config.model.name
    limits = []
    for checkpointing in (False, True):
        sizes = [plan.micro_batch for plan in plans if plan.checkpointing == checkpointing and not plan.reason]
        how = "with checkpointing" if checkpointing else "without"
        limits.append(f"{how} up to micro batch {max(sizes)}" if sizes else f"{how} at none")
    fits = any(not plan.reason for plan in plans)
    return (
        f"Does {name} fit on {cluster.world} x {cluster.machine.name}? {'Yes' if fits else 'No'}: {', '.join(limits)} "
        f"(of those that divide the global batch of {problem.config.train.global_batch})."
    )


def _worth(fitting: Sequence[Plan]) -> str:
    question = "Is ZeRO-3 worth it here?"
    third = next((plan for plan in fitting if plan.stage == 3), None)
    lower = next((plan for plan in fitting if plan.stage < 3), None)
    if third is None:
        return f"{question} No: its buckets and gathered weights leave no layout that fits."
    if lower is None:
        return f"{question} Yes: nothing else fits."
    gain = third.time.tiles_per_s / lower.time.tiles_per_s - 1
    saved = (lower.moment.total - third.moment.total) / 1e9
    if gain > 0.01:
        return f"{question} Yes: {gain:.1%} faster than ZeRO-{lower.stage}, whose memory forces a slower layout."
    speed = f"{-gain:.1%} faster" if gain < -0.01 else "as fast to 1 %"
    return (
        f"{question} No: ZeRO-{lower.stage} fits at micro batch {lower.micro_batch} and is {speed}; "
        f"ZeRO-3's best layout takes {abs(saved):.1f} GB {'less' if saved > 0 else 'more'} per GPU."
    )


def _host(best: Plan, problem: Problem) -> str:
    """Tell whether Python keeps up, and what ZeRO-3's reduce-scatter would cost it on this number of processes."""
    time, trace = best.time, problem.traces[best.checkpointing]
    layout = Layout(3, best.config.engine.precision, problem.cluster.world, "cuda")
    loop = reduce_scatter_seconds(len(trace.weights.elements), layout)
    bound = time.host > time.device
    advice = ": a larger micro batch costs it the same" if bound else ""
    line = (
        f"Does the host keep up? {'No' if bound else 'Yes'}: {time.host * 1e3:.0f} ms of Python and launches for "
        f"{time.device * 1e3:.0f} ms of the device{advice}."
    )
    if layout.world <= FEW_PROCESSES:
        return line
    return (
        f"{line} At stage 3, cutting gradients for {layout.world} processes alone would take {loop * 1e3:.0f} ms of a "
        "micro batch (a loop in DeepSpeed, which ZeRO++ doesn't shorten): use stage 1 or 2."
    )


def _fed(best: Plan, problem: Problem, tiles: Tiles) -> str:
    cluster, machine = problem.cluster, problem.cluster.machine
    each = best.time.tiles_per_s / cluster.world
    need = reading(tiles, each, cluster.gpus, machine.cores, 1.0)
    enough = "enough" if need.fed >= cluster.gpus else "NOT enough: the run is bound by reading"
    return (
        f"How many GPUs can a node's cores feed? {machine.cores} cores decode {machine.cores * tiles.per_core:,.0f} "
        f"{tiles.preset} tiles/s, a GPU trains on {each:.0f}: {need.fed:.1f} GPUs, for {cluster.gpus} that is {enough}"
        f". A GPU reads {need.gpu / 1e9:.2f} GB/s, a node {need.node / 1e9:.2f} GB/s; {need.cores:.1f} cores decode it "
        f"({tiles.source})."
    )


def _storage(best: Plan, problem: Problem, tiles: Tiles, storage: float) -> str:
    cluster = problem.cluster
    need = reading(tiles, best.time.tiles_per_s / cluster.world, cluster.gpus, cluster.machine.cores, storage)
    return (
        f"From how many nodes does the file system limit? At {storage / 1e9:g} GB/s for all, from {need.nodes:,} nodes "
        f"of {cluster.gpus} GPUs on; data.stage (node-local copies) lifts it after the first epoch."
    )


def _scaling(fitting: Sequence[Plan], problem: Problem) -> list[str]:
    """Compare ZeRO-3 with ZeRO-1 or 2 at one micro batch per GPU and step, the hardest case."""
    third = next((plan for plan in fitting if plan.stage == 3), None)
    if third is None:
        return ["Where does ZeRO-3 stop scaling? It fits at no micro batch here."]
    efficiency = {}
    for stage in (3, 2):
        alone = None
        for world in WORLDS:
            time = problem.plan(stage, third.checkpointing, third.micro_batch, world).time
            each = time.tiles_per_s / world
            alone = alone or (time.tiles / world) / sum(time.parts.values())
            efficiency[stage, world] = each / alone
    end = next((world for world in WORLDS if efficiency[3, world] < ENOUGH), None)
    where = f"below {ENOUGH:.0%} from {end} GPUs on" if end else f"not up to {WORLDS[-1]} GPUs"
    lines = [
        f"Where does ZeRO-3 stop scaling? By the model (micro batch {third.micro_batch}, not accumulated) {where}:",
        "  GPUs      " + "".join(f"{world:>7}" for world in WORLDS),
    ]
    for stage in (3, 2):
        lines.append(f"  ZeRO-{stage}    " + "".join(f"{efficiency[stage, world]:>7.0%}" for world in WORLDS))
    return lines


def config_lines(plan: Plan) -> list[str]:
    """Return the overrides that apply the plan's layout to a run."""
    return [
        f"engine.zero_stage={plan.stage}",
        f"engine.activation_checkpointing={plan.config.engine.activation_checkpointing}",
        f"train.micro_batch={plan.micro_batch}",
    ]

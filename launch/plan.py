"""Plan an MAE run before requesting GPUs: memory and time by part, layouts that fit, the fastest one, reading speed.

Everything is predicted by formulas and by tracing the model's shapes; docs/planning.md describes method and accuracy.
"""

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from launch.command import command_parser, parse_command
from launch.planner.machines import NAMES
from pretrain.config import PretrainConfig
from pretrain.config.objective import MaeConfig
from shards.cli import Parser, exit_code, not_negative, positive_float
from shards.console import get_logger
from shards.errors import ConfigError

if TYPE_CHECKING:
    from launch.planner.loader import Tiles
    from launch.planner.search import Plan, Problem

CUSTOM = ("--gpu-memory", "--gpu-tflops", "--gpu-hbm", "--gpu-nvlink", "--gpu-nic")

logger = get_logger("launch.plan")

NO_SHARDS = "not-known-yet"
"""Value of data.shards if its environment variable is not set: a plan doesn't need the shards."""

ASSUMED = {"data.shards": NO_SHARDS} | {
    f"data.sources.{number}.shards": f"{NO_SHARDS}/{number}" for number in range(100)
}


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = command_parser(__doc__ or "", "python -m launch.plan")
    parser.add_argument(
        "--gpus", default="1x8", metavar="NODESxGPUS", help="nodes and GPUs of each (default: %(default)s)"
    )
    parser.add_argument("--gpu", default="h100", help=f"one of {', '.join(NAMES)} (default: %(default)s)")
    units = (
        "GB",
        "TFLOP/s at the run's precision",
        "GB/s of its memory",
        "GB/s of collectives in a node",
        "GB/s of network",
    )
    for flag, unit in zip(CUSTOM, units, strict=True):
        parser.add_argument(flag, type=float, metavar="X", help=f"of --gpu custom: {unit}")
    parser.add_argument(
        "--net", type=positive_float, metavar="GB/s", help="network of a node (default: the GPUs' NICs at 85 %%)"
    )
    parser.add_argument("--cores", type=int, help="CPU cores of a node")
    parser.add_argument(
        "--storage", type=positive_float, default=20.0, metavar="GB/s", help="file system (default: %(default)g)"
    )
    parser.add_argument(
        "--codec", choices=("smallest", "compact", "fast", "raw"), default="compact", help="if no shards are available"
    )
    parser.add_argument(
        "--stream", type=Path, metavar="JSON", help="of tools.bench_stream, run on the machine that decodes"
    )
    parser.add_argument("--profile", type=Path, metavar="JSON", help="use the rates measured by --calibrate")
    parser.add_argument(
        "--calibrate", type=Path, metavar="JSON", help="measure this machine's device, write the profile and exit"
    )
    parser.add_argument("--write", type=Path, metavar="YAML", help="write the config with the fastest layout that fits")
    parser.add_argument("--rows", type=int, default=8, help="layouts to show (default: %(default)s)")
    _add_year(parser)
    return parser


def _add_year(parser: Parser) -> None:
    year = parser.add_argument_group("a year of the fastest layout on nodes that fail")
    year.add_argument("--simulate", action="store_true", help="compare ways to save and to restart")
    year.add_argument(
        "--mtbf",
        type=positive_float,
        default=6300.0,
        metavar="HOURS",
        help="between failures of one node (default: %(default)g, as of Llama 3's 2,048 nodes)",
    )
    year.add_argument("--spares", type=not_negative, default=1, help="further nodes of the job (default: %(default)s)")
    year.add_argument(
        "--restart",
        type=positive_float,
        default=120.0,
        metavar="SECONDS",
        help="from a failure to the first step, on nodes that the job holds (default: %(default)g)",
    )
    year.add_argument(
        "--queue", type=positive_float, default=4.0, metavar="HOURS", help="a requeued job waits (default: %(default)g)"
    )
    year.add_argument(
        "--repair",
        type=positive_float,
        default=24.0,
        metavar="HOURS",
        help="until a failed node is a spare again (default: %(default)g)",
    )
    year.add_argument("--plot", type=Path, metavar="PNG", help="draw goodput over the interval of saves")


def main(argv: list[str] | None = None) -> int:
    """Print the plan and return the exit code."""
    config, arguments = parse_command(build_parser(), argv, PretrainConfig, ASSUMED)
    return exit_code(lambda: _run(config, arguments))


def _run(config: PretrainConfig, arguments: Namespace) -> int:
    unknown = next((source.shards for source in config.data.each if source.shards in ASSUMED.values()), None)
    if arguments.write is not None and unknown:
        key = next(key for key, value in ASSUMED.items() if value == unknown)
        raise ConfigError(f"--write needs a config whose {key} is known: set its variable, or {key}=DIR")
    if not isinstance(config.objective, MaeConfig):
        raise ConfigError(f"objective.name {config.objective.name}: the planner supports only mae")
    if arguments.plot is not None:
        if not arguments.simulate:
            raise ConfigError("--plot: it draws what --simulate computes; add --simulate")
        if not arguments.plot.parent.is_dir():
            raise ConfigError(f"--plot {arguments.plot}: no folder {arguments.plot.parent}; create it first")
    nodes, gpus = _gpus(arguments.gpus)
    if arguments.calibrate is not None:
        return _calibrate(config, arguments.calibrate)
    return _plan(config, arguments, nodes, gpus)


def _gpus(text: str) -> tuple[int, int]:
    nodes, _, gpus = text.lower().partition("x")
    if not (nodes.isdecimal() and gpus.isdecimal() and int(nodes) and int(gpus)):
        raise ConfigError(f"--gpus {text}: expected NODESxGPUS, such as 4x8")
    return int(nodes), int(gpus)


def _calibrate(config: PretrainConfig, path: Path) -> int:
    from launch.planner.calibrate import calibrate
    from launch.planner.profile import write_profile

    profile = calibrate(config)
    write_profile(path, profile)
    for part, rate in profile.flops.items():
        print(f"{part:<10} {rate / 1e12:8.3f} TFLOP/s")
    print(
        f"{'optimizer':<10} {profile.optimizer / 1e9:8.2f} GB/s; {profile.fixed * 1e3:.1f} ms of a micro batch besides"
    )
    print(f"{profile.device}, {profile.precision}: written to {path}; plan with --profile {path}")
    return 0


def _plan(config: PretrainConfig, arguments: Namespace, nodes: int, gpus: int) -> int:
    from launch.planner.loader import known_mixture
    from launch.planner.machines import find_machine
    from launch.planner.network import Cluster

    custom = {flag: getattr(arguments, flag[2:].replace("-", "_")) for flag in CUSTOM}
    machine = find_machine(arguments.gpu, custom, arguments.cores)
    net = None if arguments.net is None else arguments.net * 1e9
    cluster = Cluster(machine, nodes, gpus, net)
    tiles, bands = known_mixture(config.data, arguments.codec, arguments.stream)

    from pretrain.models.registry import outline_encoder

    try:
        outline_encoder(**config.model.model_dump(), bands=bands)
    except ValueError as error:
        raise ConfigError(f"key 'model.name': {error}") from None
    from launch.planner.activations import trace_activations
    from launch.planner.profile import read_profile
    from launch.planner.report import answers, config_lines, print_plan, print_ranking
    from launch.planner.search import Problem, every_plan, micro_batches
    from launch.planner.step_time import default_rates

    precision = config.engine.precision
    rates = (
        default_rates(cluster, precision) if arguments.profile is None else read_profile(arguments.profile, precision)
    )
    micro_batches(config, cluster.world)
    traces = {on: trace_activations(config, bands, on, "cuda") for on in (False, True)}
    problem = Problem(config, cluster, rates, traces, bands)
    plans = every_plan(problem)
    weights = traces[False].weights.total
    print(
        f"{config.model.name}, {weights / 1e6:.0f} million weights, {config.model.image_size} px, mask ratio "
        f"{config.objective.mask_ratio:g}, {precision}, global batch {config.train.global_batch}, on {nodes} x {gpus} "  # type: ignore[attr-defined]
        f"{machine.name}, {cluster.bandwidth / 1e9:.0f} GB/s between them"
    )
    print_ranking(print, plans, arguments.rows)
    if not plans[0].reason:
        print_plan(print, plans[0], problem)
    print()
    for line in answers(plans, problem, tiles, arguments.storage * 1e9):
        print(line)
    if plans[0].reason:
        logger.error(f"no layout of {config.model.name} fits: use more or larger GPUs with --gpus or --gpu")
        return 1
    print("\nUse: " + " ".join(config_lines(plans[0])))
    if arguments.write is not None:
        _write(plans[0].config, arguments.write)
    if arguments.simulate:
        _simulate(plans[0], problem, tiles, arguments)
    return 0


def _simulate(plan: "Plan", problem: "Problem", tiles: "Tiles", arguments: Namespace) -> None:
    from launch.planner.goodput import Reliability
    from launch.planner.goodput_report import best_years, policies, write_plot, year_lines

    hours = {name: 3600 * getattr(arguments, name) for name in ("mtbf", "queue", "repair")}
    storage, nodes = arguments.storage * 1e9, problem.cluster.nodes
    reliability = Reliability(nodes=nodes, spares=arguments.spares, restart=arguments.restart, **hours)
    years = best_years(policies(plan, problem, storage, reliability))
    print()
    for line in year_lines(years, plan, problem, tiles, storage):
        print(line)
    if arguments.plot is not None:
        write_plot(arguments.plot, years)
        print(f"Written to {arguments.plot}")


def _write(config: PretrainConfig, path: Path) -> None:
    from shards.config import dump_config
    from shards.files.atomic import write_atomic

    if not path.parent.is_dir():
        raise ConfigError(f"--write {path}: no folder {path.parent}; create it first")
    write_atomic(path, dump_config(config))
    print(f"Written to {path}")


if __name__ == "__main__":
    sys.exit(main())

"""The planner's device times by part against a step that is counted on a fake GPU, kernel by kernel."""

import json
import subprocess
import sys

import pytest
from support.processes import REPOSITORY

from launch.planner.activations import trace_activations
from launch.planner.machines import MACHINES
from launch.planner.memory import Layout
from launch.planner.network import Cluster
from launch.planner.step_time import default_rates, step_time
from pretrain.config import PretrainConfig
from tools.fake_cuda import shim
from tools.fake_cuda.cases import Case

CASES = {
    "stage 1": ("engine.zero_stage=1", "engine.precision=autocast"),
    "stage 2 in bf16": ("engine.zero_stage=2", "engine.precision=bf16"),
    "stage 3": ("engine.zero_stage=3", "engine.precision=autocast"),
}
EAGER = ("train.micro_batch=16", "train.global_batch=128", "engine.compile=false")
PARTS = {name: name for name in ("stem", "encoder", "decoder", "loss", "augment")} | {"copies": "communication"}
H100, WORLD = MACHINES["h100"], 8

pytestmark = pytest.mark.skipif(shim.missing() is not None, reason=shim.missing() or "")


def counted(overrides: tuple[str, ...]) -> dict[str, float]:
    command = [sys.executable, "-m", "tools.fake_cuda", "--config", "mae/spec_vit_s", *overrides]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    step = json.loads(next(line for line in result.stdout.splitlines() if line.startswith("{")))
    return {part: work["seconds"] for part, work in step["parts"].items()}


def predicted(config: PretrainConfig) -> dict[str, float]:
    cluster, precision = Cluster(H100, 1, WORLD), config.engine.precision
    layout = Layout(config.engine.zero_stage, precision, WORLD, "cuda")
    trace = trace_activations(config, 202, False, "cuda")
    return step_time(config, 202, trace, layout, cluster, default_rates(cluster, precision)).parts


@pytest.mark.nightly
@pytest.mark.parametrize("name", CASES)
def test_times_by_part_are_those_of_a_counted_step(name):
    case = Case(name, "mae/spec_vit_s", (*EAGER, *CASES[name]), WORLD)
    times, steps = predicted(case.load()), counted(case.overrides)
    for part, counted_part in PARTS.items():
        bound = {"copies": 0.6, "loss": 0.3}.get(part, 0.25)
        assert times[part] == pytest.approx(steps[counted_part], rel=bound), part
    assert sum(times.values()) == pytest.approx(sum(steps.values()), rel=0.15)

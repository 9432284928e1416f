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
from tools.fake_cuda.budgets import cases, read_table

CASES = {
    case.name: case for case in cases(read_table()) if case.name in ("mae_stage1", "mae_stage2_bf16", "mae_stage3")
}
PARTS = {"stem": "stem", "encoder": "encoder", "decoder": "decoder", "augment": "augment", "copies": "communication"}
H100 = MACHINES["h100"]

pytestmark = pytest.mark.skipif(shim.missing() is not None, reason=shim.missing() or "")


@pytest.fixture(scope="module")
def counted() -> dict[str, dict]:
    command = [sys.executable, "-m", "tools.fake_cuda", *CASES]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    steps = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    return {step["case"]: step["parts"] for step in steps}


def predicted(config: PretrainConfig, world: int) -> dict[str, float]:
    cluster = Cluster(H100, 1, world)
    layout = Layout(config.engine.zero_stage, config.engine.precision, world, "cuda")
    trace = trace_activations(config, 202, False, "cuda")
    return step_time(config, 202, trace, layout, cluster, default_rates(cluster, config.engine.precision)).parts


@pytest.mark.parametrize("name", CASES)
def test_times_by_part_are_those_of_a_counted_step(counted, name):
    case, parts = CASES[name], counted[name]
    times = predicted(case.load(), case.world)
    for part, counted_part in PARTS.items():
        bound = 0.6 if part == "copies" else 0.25
        assert times[part] == pytest.approx(parts[counted_part]["seconds"], rel=bound), part
    total = sum(seconds for part, seconds in times.items() if part != "optimizer")
    assert total == pytest.approx(sum(work["seconds"] for part, work in parts.items() if part != "optimizer"), rel=0.15)

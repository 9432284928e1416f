"""The planner agrees with what the recommended MAE configs say of their hardware."""

import re
from importlib.util import find_spec

import pytest
from support.processes import REPOSITORY
from support.rank_cases import shortened

from launch.planner.activations import trace_activations
from launch.planner.machines import MACHINES
from launch.planner.network import Cluster
from launch.planner.search import Problem
from launch.planner.step_time import default_rates
from pretrain.config import PretrainConfig
from shards.config import load_config

SAID = re.compile(
    r"# Hardware: (\d+) x (\d+) H100 80 GB\. Predicted by launch\.plan, not measured: (\d+) GB per GPU, "
    r"(\d+) ms a step, (\d+) % MFU"
)
FOLDER = REPOSITORY / "configs" / "pretrain" / "mae"
NAMES = sorted(path.stem for path in FOLDER.glob("spec_vit_*[!d].yaml"))  # not what was published
NIGHTLY = {"spec_vit_s", "spec_vit_b", "spec_vit_l", "spec_vit_h", "spec_vit_g"}
"""Traces of deep models take seconds; that of the smallest shows the same."""


@pytest.mark.skipif(find_spec("triton") is None, reason="the planner traces the stem's kernels where Triton is")
@pytest.mark.parametrize("name", shortened(NAMES, NIGHTLY))
def test_a_config_fits_its_hardware_and_is_as_fast_as_it_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = FOLDER / f"{name}.yaml"
    monkeypatch.setenv("SPECTRALEARTH_SHARDS", "/data/shards")
    nodes, gpus, gigabytes, milliseconds, mfu = map(int, SAID.search(path.read_text()).groups())  # type: ignore[union-attr]
    config = load_config(path, [], PretrainConfig)
    cluster, precision = Cluster(MACHINES["h100"], nodes, gpus), config.engine.precision
    assert config.accumulation(cluster.world) == 1
    trace = trace_activations(config, 202, False, "cuda")
    problem = Problem(config, cluster, default_rates(cluster, precision), {False: trace}, 202)
    plan = problem.plan(config.engine.zero_stage, False, config.train.micro_batch)
    assert not plan.reason
    assert plan.time.host < plan.time.device
    assert plan.moment.total / 1e9 == pytest.approx(gigabytes, rel=0.1)
    assert plan.time.seconds * 1e3 == pytest.approx(milliseconds, rel=0.1)
    assert plan.time.mfu(cluster.machine.peak(precision)) * 100 == pytest.approx(mfu, rel=0.1)
    others = [problem.plan(stage, False, config.train.micro_batch).time.seconds for stage in (2, 3)]
    assert plan.time.seconds < 1.01 * min(others)


def test_every_size_is_recommended() -> None:
    assert [name.removeprefix("spec_vit_") for name in NAMES] == ["b", "g", "h", "l", "s", "tiny"]

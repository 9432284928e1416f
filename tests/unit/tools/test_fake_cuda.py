"""Training steps counted as a GPU would run them: what the counter sees, and the budgets of the shipped recipes."""

import json
import subprocess
import sys
from collections import defaultdict
from importlib.util import find_spec

import pytest
from support.processes import REPOSITORY
from support.rank_cases import selected, shortened

from launch.planner.memory import Layout
from launch.planner.network import gathered_width, step_rounds
from pretrain.objectives import outline_module
from tools.fake_cuda import shim
from tools.fake_cuda.__main__ import main
from tools.fake_cuda.budgets import cases, differences, read_table
from tools.fake_cuda.counter import Collectives
from tools.fake_cuda.inputs import TILE_SHAPE
from tools.fake_cuda.report import budget

needs_compiler = pytest.mark.skipif(shim.missing() is not None, reason=shim.missing() or "")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="budgets count Triton's kernels: no triton here")
TABLE = read_table()
CASES = cases(TABLE)
NIGHTLY = set(TABLE) - {"mae_stage2_bf16"}
"""The recommended layout stays. Compiling takes the longest."""


def run(*command: str) -> list[dict]:
    result = subprocess.run([sys.executable, *command], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def operations() -> dict:
    return run("-m", "tests.support.counted_operations")[0]


@pytest.fixture(scope="module")
def counted(request: pytest.FixtureRequest) -> dict[str, dict]:
    """Count the cases of this session, in the table's order."""
    tests = (test_a_step_keeps_its_budget, test_the_planner_expects_the_collectives_of_a_step)
    names = {name for test in tests for name in selected(request, test)}
    return {step["case"]: step for step in run("-m", "tools.fake_cuda", *(name for name in TABLE if name in names))}


@needs_compiler
def test_kernels_bytes_and_flops_are_counted_by_part(operations):
    parts, (rows, inputs, outputs) = operations["matmuls"]["parts"], (256, 64, 32)
    encoder = parts["encoder"]
    assert encoder["kernels"] == 2  # forward, and the gradient of the weight; none of the input
    assert encoder["flops"] == 2 * 2 * rows * inputs * outputs
    assert encoder["bytes"] == 2 * 2 * (rows * inputs + inputs * outputs + rows * outputs)
    assert parts["augment"] == {"kernels": 1, "bytes": 2 * 2 * rows * inputs, "flops": 0, "seconds": 2e-6}


@needs_compiler
def test_waits_of_the_host_have_a_kind_and_a_place(operations):
    syncs = operations["waits"]["syncs"]
    assert {sync["kind"]: sync["count"] for sync in syncs} == {
        "item": 1,
        "copy to host": 1,
        "copy to device": 1,
        "copy to device of pageable memory": 1,
        "cuda.synchronize": 1,
    }
    assert {(sync["file"], sync["function"]) for sync in syncs} == {("tests/support/counted_operations.py", "waits")}


@needs_compiler
def test_pinned_copies_and_streams_do_not_wait(operations):
    assert operations["no_waits"]["syncs"] == []
    assert operations["no_waits"]["calls"] == {"Stream.wait_stream": 1}


@needs_compiler
@needs_triton
@pytest.mark.parametrize("name", shortened(list(TABLE), NIGHTLY))
def test_a_step_keeps_its_budget(counted, name):
    moved = list(differences(name, TABLE[name], budget(counted[name])))
    assert not moved, "\n".join(moved)


@needs_compiler
@pytest.mark.parametrize("name", shortened([case.name for case in CASES if case.config.startswith("mae")], NIGHTLY))
def test_the_planner_expects_the_collectives_of_a_step(counted, name):
    case = next(case for case in CASES if case.name == name)
    config = case.load()
    layout = Layout(config.engine.zero_stage, config.engine.precision, case.world, "cuda")
    weights = sum(parameter.numel() for parameter in outline_module(config, TILE_SHAPE[0]).parameters())
    width, buckets = gathered_width(layout.stage, layout.precision), config.engine.buckets(weights)
    found = defaultdict(Collectives)
    for key, collectives in counted[name]["collectives"].items():
        kind = found[key.split()[0]]
        kind.count, kind.bytes = kind.count + collectives["count"], kind.bytes + collectives["bytes"]
    for expected in step_rounds(layout.stage, weights, width, min(layout.wires), 1, *buckets):
        assert found[expected.kind].bytes == pytest.approx(expected.size, rel=0.05), expected.kind
        assert expected.count / 2 <= found[expected.kind].count <= 2 * expected.count, expected.kind


def test_what_moves_is_named_from_and_to():
    kept = {"kernels": {"stem": 100}, "megabytes": {"stem": 50}, "collectives": {}, "syncs": {"item in a.py:f": 1}}
    counted = {
        "kernels": {"stem": 101},
        "megabytes": {"stem": 52},
        "collectives": {"all_reduce float32": 1},
        "syncs": {},
    }
    assert [line.partition(";")[0] for line in differences("tiny", kept, counted)] == [
        "tiny: megabytes of stem moved from 50 to 52",
        "tiny: collectives of all_reduce float32 moved from 0 to 1",
        "tiny: syncs of item in a.py:f moved from 1 to 0",
    ]


def test_every_case_is_a_config_that_we_ship():
    assert all(case.load().train.global_batch == case.world * case.load().train.micro_batch for case in CASES)


def test_it_needs_a_process_without_torch(capsys):
    assert main(["moco"]) == 2
    assert "must be loaded before torch is imported" in capsys.readouterr().err

"""The DeepSpeed adapter names what an unknown version lacks, in one line, before anything is trained."""

import configparser
import os
import subprocess
import sys
from pathlib import Path

import deepspeed
import pytest
from packaging.requirements import Requirement

from pretrain.engine import deepspeed_adapter
from pretrain.engine.deepspeed_adapter import PartitionedOptimizer, PartitionedWeights, StageZero
from shards.errors import ForgeError

REPOSITORY = Path(__file__).resolve().parents[4]

PROGRAM = """
import pickle, sys
from datetime import timedelta
import deepspeed, torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from pretrain.config.engine import EngineConfig
from pretrain.engine.optimizers import build_adamw
from pretrain.engine.zero import ZeroEngine, init_distributed
from shards.errors import ForgeError

def engine(stage):
    model = torch.nn.Linear(4, 4)
    return ZeroEngine(model, build_adamw(model, 1e-3, (0.9, 0.95), 0.05), EngineConfig(zero_stage=stage), 1, 1, 0.0)

init_distributed(timedelta(seconds=4321))
deepspeed.__version__ = "0.99.1"
accelerator, waits = deepspeed.accelerator.get_accelerator(), []
for stage in range(4):
    trained = engine(stage)
    type(accelerator).synchronize = lambda *_: waits.append(sys._getframe(1).f_code.co_filename)
    for _ in range(4):  # the timer begins after two steps
        trained.step([trained(torch.ones(1, 4)).sum()])
    print("waits", stage, sum(file.endswith("timer.py") for file in waits))
print("inductor is loaded:", "torch._inductor.compile_fx" in sys.modules)
torch.distributed.all_reduce(torch.ones(1))
for entry in pickle.loads(torch._C._distributed_c10d._dump_fr_trace(True, False, False))["entries"]:
    print("timeout", entry["process_group"][0], entry["timeout_ms"])
del DeepSpeedZeroOptimizer_Stage3._unflatten_partitioned_parameters
try:
    engine(3)
except ForgeError as error:
    print(f"exit code {error.exit_code}: {error}")
"""


def test_the_tested_versions_are_those_that_are_required():
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    lines = [line.partition("#")[0].strip() for line in setup["options"]["install_requires"].splitlines()]
    required = {Requirement(line).name: Requirement(line).specifier for line in lines if line}
    assert str(required["deepspeed"]) == str(Requirement(f"deepspeed{deepspeed_adapter.TESTED}").specifier)


@pytest.mark.parametrize("stage", [PartitionedOptimizer, PartitionedWeights])
def test_a_function_that_deepspeed_lacks_is_named(stage, monkeypatch):
    monkeypatch.setattr(deepspeed, "__version__", "0.99.1")
    for name in stage.MODULE:
        with monkeypatch.context() as patch:
            patch.delattr(f"deepspeed.{name}")
            with pytest.raises(ForgeError, match=rf"^DeepSpeed 0\.99\.1 has no deepspeed\.{name},.* pip install"):
                deepspeed_adapter._require(deepspeed, stage.MODULE, "deepspeed")
    deepspeed_adapter._require(deepspeed, stage.MODULE, "deepspeed")


def test_an_attribute_that_an_engine_lacks_is_named():
    class Engine:
        module = optimizer = global_steps = was_step_applied = None

    with pytest.raises(ForgeError, match=r"has no Engine\.clip_fp32_gradients") as raised:
        StageZero(Engine())
    assert raised.value.exit_code == 2


def test_a_start_with_an_unknown_version_warns_and_names_what_its_optimizer_lacks():
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611"}
    command = [sys.executable, "-c", PROGRAM]
    environment = os.environ | alone | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    warnings = [line for line in lines if "WARNING: DeepSpeed 0.99.1 is not one of the tested versions" in line]
    assert len(warnings) == 5  # one for each start
    assert [line.split()[1:] for line in lines if line.startswith("waits")] == [[str(n), "0"] for n in range(4)]
    assert "inductor is loaded: False" in lines  # it takes seconds, and nothing was compiled
    timeouts = {tuple(line.split()[1:]) for line in lines if line.startswith("timeout")}
    assert len({group for group, _ in timeouts}) > 1  # torch's group and DeepSpeed's
    assert {milliseconds for _, milliseconds in timeouts} == {"4321000"}
    assert lines[-1].startswith(
        "exit code 2: DeepSpeed 0.99.1 has no DeepSpeedZeroOptimizer_Stage3._unflatten_partitioned_parameters, which"
    )

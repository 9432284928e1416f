"""The last collectives of a rank are in the run folder, in the form that torch's own tool reads."""

import os
import pickle
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pretrain.resilience import flight_recorder

REPOSITORY = Path(__file__).resolve().parents[4]

PROGRAM = """
import sys
from pathlib import Path
from pretrain.resilience import flight_recorder

folder = Path(sys.argv[1])
flight_recorder.set_environment(folder)
flight_recorder.dump(folder, 0)  # before a group exists
assert not list(folder.iterdir())
import torch
torch.distributed.init_process_group("gloo")
torch.distributed.all_reduce(torch.ones(3))
flight_recorder.dump(folder, 0)
"""


def test_the_collectives_of_a_rank_are_written(tmp_path):
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29613"}
    environment = os.environ | alone | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", PROGRAM, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert "deprecated" not in done.stderr
    (file,) = tmp_path.iterdir()
    assert file.name == "collectives-rank-0"
    (entry,) = pickle.loads(file.read_bytes())["entries"]
    assert (entry["profiling_name"], entry["input_sizes"]) == ("gloo:all_reduce", [[3]])


@pytest.mark.parametrize(
    ("torch", "older"),
    [("2.10.0", ["TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "TORCH_NCCL_TRACE_BUFFER_SIZE"]), ("2.13.0", [])],
)
def test_variables_have_the_names_that_this_torch_knows(tmp_path, monkeypatch, torch, older):
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(metadata, "version", lambda name: torch)
    flight_recorder.set_environment(tmp_path)
    assert sorted(name for name in os.environ if not name.startswith("TORCH_FR")) == sorted(
        [*older, "TORCH_NCCL_DUMP_ON_TIMEOUT"]
    )
    assert os.environ["TORCH_FR_BUFFER_SIZE"] == "2000"
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == f"{tmp_path}/collectives-rank-"


def test_variables_of_the_user_take_precedence(tmp_path, monkeypatch):
    given = {"TORCH_NCCL_TRACE_BUFFER_SIZE": "5", "TORCH_FR_DUMP_TEMP_FILE": "x", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"}
    monkeypatch.setattr(os, "environ", dict(given))
    flight_recorder.set_environment(tmp_path)
    assert os.environ == given

"""Where torch.compile is used, and what it lacks."""

import shutil
import sysconfig

import pytest
import torch

from pretrain.engine import compiled_units
from pretrain.engine.compiled_units import compiler_problem, is_compiled
from shards.errors import ConfigError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with Triton, compilers and Python's headers."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(compiled_units, "find_spec", lambda name: name)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("setting", "device", "expected"),
    [("auto", CPU, False), ("auto", GPU, True), (True, CPU, True), (True, GPU, True), (False, GPU, False)],
)
def test_auto_compiles_on_gpus(machine, setting, device, expected):
    assert is_compiled(setting, device) is expected


def test_auto_goes_without_what_is_missing(machine, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert is_compiled("auto", GPU) is False
    assert (
        "WARNING: engine.compile auto: nothing is compiled: torch.compile needs a compiler" in capsys.readouterr().out
    )
    for device, names in ((GPU, "gcc, clang, cc"), (CPU, r"g\+\+, clang\+\+")):
        with pytest.raises(
            ConfigError, match=rf"^key 'engine.compile': .* \({names}\): install one, .*, or write false$"
        ):
            is_compiled(True, device)


def test_each_part_of_a_gpu_compiler_is_named(machine, monkeypatch):
    (machine / "Python.h").unlink()
    assert "python3-dev" in compiler_problem("cuda")
    monkeypatch.setattr(compiled_units, "find_spec", lambda name: None)
    assert "needs Triton" in compiler_problem("cuda")
    assert compiler_problem("cpu") is None


def test_a_compiler_may_be_named_by_a_variable(machine, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "/opt/bin/g++-14")
    assert compiler_problem("cpu") is None

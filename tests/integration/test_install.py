"""Installation on other machines: the constraints fit every extra, and the Makefile finds a Python that works."""

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.processes import REPOSITORY

PINS = REPOSITORY / "constraints.txt"
GPU_PINS = REPOSITORY / "constraints-gpu.txt"
SOURCE_ONLY = {"deepspeed"}  # is published as source alone
OF_TORCH = re.compile(r"nvidia-|cuda-|triton$")  # pinned by torch itself, and only on some machines


LARGE = "terratorch"
"""An extra that brings some fifty packages of its own, which are not pinned here; it resolves beside our pins."""


def requirements(large: bool = False) -> list[str]:
    """What setup.cfg asks for with all of its extras; the large one only on demand."""
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    extras = config["options.extras_require"]
    lists = [config["options"]["install_requires"], *(extras[name] for name in extras if large or name != LARGE)]
    lines = (line.split("#")[0].strip() for text in lists for line in text.splitlines())
    return sorted({line for line in lines if line})


def pinned(path: Path = PINS) -> set[str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    included = (pinned(path.parent / line.removeprefix("-c ")) for line in lines if line.startswith("-c "))
    own = {canonicalize_name(Requirement(line).name) for line in lines if not line.startswith("-c ")}
    return own.union(*included)


def resolve(python: str, machine: str, wanted: list[str], pins: Path = PINS) -> set[str]:
    """Names of the packages that an installer chooses for another Python and machine; skips without an index."""
    wheels = [option for name in sorted(pinned() - SOURCE_ONLY) for option in ("--only-binary", name)]
    target = ["--python-version", python, "--python-platform", f"{machine}-manylinux_2_28"]
    this = ["--python", sys.executable, "--no-python-downloads"]  # builds what is source alone
    command = ["uv", "pip", "compile", "-", *this, "--quiet", "--no-header", "--no-annotate", "-c", str(pins)]
    done = subprocess.run(
        [sys.executable, "-m", *command, *target, *wheels],
        input="\n".join(wanted),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if "error sending request" in done.stderr or "Failed to fetch" in done.stderr:
        pytest.skip(f"needs a package index: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return {canonicalize_name(Requirement(line).name) for line in done.stdout.splitlines()}


@pytest.mark.parametrize(
    ("python", "machine"),
    [
        ("3.11", "x86_64"),
        ("3.14", "aarch64"),
        *(
            pytest.param(python, machine, marks=pytest.mark.nightly)
            for python in ("3.11", "3.12", "3.13", "3.14")
            for machine in ("x86_64", "aarch64")
            if (python, machine) not in (("3.11", "x86_64"), ("3.14", "aarch64"))
        ),
    ],
)
def test_all_extras_resolve_to_pinned_wheels(python: str, machine: str) -> None:
    chosen = resolve(python, machine, requirements())
    assert ("xformers" in chosen) == (machine == "x86_64")
    assert {name for name in chosen - pinned() if not OF_TORCH.match(name)} == set()


@pytest.mark.parametrize("python", [pytest.param("3.11", marks=pytest.mark.nightly), "3.14"])
def test_all_extras_resolve_beside_the_torch_that_xformers_is_built_for(python: str) -> None:
    assert pinned(GPU_PINS) == pinned()
    chosen = resolve(python, "x86_64", requirements(), GPU_PINS)
    assert {"xformers", "nvidia-cuda-runtime-cu12"} <= chosen
    assert {name for name in chosen - pinned() if not OF_TORCH.match(name)} == set()


def test_the_large_extra_resolves_beside_the_pins() -> None:
    assert LARGE in resolve("3.12", "x86_64", requirements(large=True))


def _command(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def _make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """``make`` in a checkout without an environment, where only the commands in ``folder`` are Pythons."""
    for name in (
        "Makefile",
        "setup.cfg",
        "pyproject.toml",
        *(path.name for path in REPOSITORY.glob("constraints*.txt")),
    ):
        (folder / name).write_bytes((REPOSITORY / name).read_bytes())
    for name in ("sh", "make", "echo", "rm", "touch"):
        found = next(Path(part, name) for part in os.defpath.split(":") if part and Path(part, name).exists())
        (folder / name).symlink_to(found)
    return subprocess.run(
        ["make", *arguments], cwd=folder, env={"PATH": str(folder)}, capture_output=True, text=True, timeout=60
    )


def test_make_takes_the_newest_python_that_runs(tmp_path: Path) -> None:
    _command(tmp_path, "python3.14", "echo 'pyenv: python3.14: command not found' >&2; exit 127")
    _command(tmp_path, "python3.12", f'exec {sys.executable} "$@"')
    _command(tmp_path, "python3.11", f'exec {sys.executable} "$@"')
    done = _make(tmp_path, "-n", "test")
    assert done.returncode == 0, done.stderr
    assert "python3.12 -m venv .venv" in done.stdout


@pytest.mark.parametrize(("machine", "pins"), [("x86_64", "constraints-gpu.txt"), ("aarch64", "constraints.txt")])
def test_make_takes_the_torch_of_xformers_beside_a_gpu(tmp_path: Path, machine: str, pins: str) -> None:
    _command(tmp_path, "python3", f'exec {sys.executable} "$@"')
    _command(tmp_path, "nvidia-smi", "exit 0")
    _command(tmp_path, "uname", f"echo {machine}")
    done = _make(tmp_path, "-n", "demo")
    assert f'-c {pins} -e ".[dev,docs,gpu]"' in done.stdout, done.stderr
    cudnn = next(line for line in GPU_PINS.read_text().splitlines() if "--no-deps" in line).split()[-1]
    assert f"--no-deps {cudnn}" in done.stdout


def test_make_takes_python3_where_nothing_else_is(tmp_path: Path) -> None:
    _command(tmp_path, "python3", f'exec {sys.executable} "$@"')
    done = _make(tmp_path, "-n", "demo")
    assert "python3 -m venv .venv" in done.stdout and '-c constraints.txt -e ".[dev,docs]"' in done.stdout


@pytest.mark.parametrize(
    ("name", "text", "arguments", "message"),
    [
        ("python3", "exit 1", [], "no Python 3.11 to 3.14 with its venv module found"),
        ("python3.9", "exit 1", ["PYTHON=python3.9"], "python3.9 is not Python 3.11 to 3.14"),
    ],
)
def test_make_says_which_python_is_missing(
    tmp_path: Path, name: str, text: str, arguments: list[str], message: str
) -> None:
    _command(tmp_path, name, text)
    done = _make(tmp_path, "test", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / ".venv").exists()

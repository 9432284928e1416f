"""The wheel that setup.cfg builds: it holds all that its commands need, and works where there is no checkout."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.processes import REPOSITORY
from support.small_encoder import small_description, small_encoder

from pretrain.weights.files import save_encoder

PACKAGES = ("shards", "pretrain", "finetune", "launch")
LOADED = """
import sys
from importlib import import_module
for target in sys.argv[2:]:
    module, name = target.split(":")
    found = import_module(module)
    assert found.__file__.startswith(sys.argv[1]), found.__file__
    assert callable(getattr(found, name)), target
from finetune.report.charts import TEMPLATES
from finetune.tasks import get_task
from shards.sensors.sensor import get_sensor
assert TEMPLATES.get_template("page.html") and get_task("enmap_cdl") and get_sensor("desis")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools leaves folders behind."""
    copy, built = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "spectralforge.py"):
        shutil.copy(REPOSITORY / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", ".", "-w", built]
    subprocess.run(list(map(str, command)), cwd=copy, check=True, timeout=300)
    (found,) = built.iterdir()
    return found


def entry_points() -> dict[str, str]:
    """Targets of all console scripts and plugins, by name."""
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    lines = "\n".join(config["options.entry_points"].values()).splitlines()
    return {name.strip(): target.strip() for name, _, target in (line.partition("=") for line in lines if line)}


def advised_modules() -> set[str]:
    """Modules of this project that messages advise to run, ``python -m MODULE``."""
    sources = [path.read_text() for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")]
    found = {module for text in sources for module in re.findall(r"python -m ([a-z_]+(?:\.[a-z_]+)*)", text)}
    return {module for module in found if not module.startswith("torch.")}


def test_it_holds_every_file_of_the_packages(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path for package in PACKAGES for path in (REPOSITORY / package).rglob("*") if path.is_file())
    wanted = {path.relative_to(REPOSITORY).as_posix() for path in files if "__pycache__" not in path.parts}
    assert held == wanted | {"spectralforge.py"}
    assert {Path(name).suffix for name in held} >= {".csv", ".yaml", ".html", ".css", ".sbatch"}


def test_no_message_advises_a_command_that_it_lacks(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    for module in advised_modules():
        path = module.replace(".", "/")
        assert {f"{path}.py", f"{path}/__main__.py"} & held, module
    sources = "".join(path.read_text() for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
    assert set(re.findall(r"spectralforge-[a-z]+(?=[ )])", sources)) <= entry_points().keys()
    assert "in the checkout" not in sources


def test_its_commands_are_found_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    command = [sys.executable, "-c", LOADED, str(site), *entry_points().values()]
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.nightly
def test_it_works_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """Installed with all of its dependencies, every command answers, and an encoder is converted."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    bin = tmp_path / "env" / "bin"
    run(sys.executable, "-m", "venv", tmp_path / "env")
    run(bin / "python", "-m", "pip", "install", "--quiet", "-c", REPOSITORY / "constraints.txt", wheel)
    for name in entry_points():
        if name.startswith("spectralforge-"):
            assert "usage" in run(bin / name, "--help").lower(), name
    for module in advised_modules():
        assert "usage" in run(bin / "python", "-m", module, "--help").lower(), module
    save_encoder(tmp_path / "encoder.safetensors", small_encoder().state_dict(), small_description())
    run(bin / "spectralforge-convert", "encoder.safetensors", "flat.pth", "--to", "flat")
    code = "import spectralforge; print(spectralforge.load_encoder('flat.pth').description.architecture)"
    assert run(bin / "python", "-c", code) == "spec_vit_tiny\n"

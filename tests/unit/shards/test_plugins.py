"""Plugins: files and modules, each imported once, and one line for what can't be."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from shards.config import ConfigModel, load_config
from shards.config.fields import Plugins
from shards.errors import ConfigError
from shards.plugins import load_plugins, plugin_files


class Config(ConfigModel):
    """A config with plugins."""

    plugins: Plugins = ()
    """Plugins."""


@pytest.fixture(autouse=True)
def fresh_modules(monkeypatch):
    """Forget what a test imports."""
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr("shards.plugins._loaded", {})


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_is_run_once(tmp_path):
    path = write(tmp_path / "lab_once.py", "import sys\nsys.lab_runs = getattr(sys, 'lab_runs', 0) + 1\n")
    load_plugins([str(path)], "x")
    load_plugins([str(path)], "x")
    assert sys.lab_runs == 1
    del sys.lab_runs
    assert plugin_files() == {"lab_once.py": path}


def test_a_file_lies_beside_the_config_or_base_that_names_it_or_in_the_working_directory(tmp_path, monkeypatch):
    ours, below, here = (write(tmp_path / f"{name}/lab_{name}.py", "") for name in ("run", "base", "here"))
    monkeypatch.chdir(here.parent)
    monkeypatch.setenv("LAB_FOLDER", str(below.parent))
    write(tmp_path / "base/base.yaml", "plugins: [lab_base.py]\n")
    config = write(tmp_path / "run/run.yaml", "base: ../base/base.yaml\n")
    assert load_config(config, [], Config).plugins == (str(below),)
    write(config, "plugins: [lab_run.py, lab_here.py, '${LAB_FOLDER}/lab_base.py', json]\n")
    assert load_config(config, [], Config).plugins == (str(ours), str(here), str(below), "json")
    assert load_config(config, ["plugins=[lab_here.py]"], Config).plugins == (str(here),)


@pytest.mark.parametrize(
    ("plugins", "text", "says"),
    [
        ("[lab_bad.py]", "import math\n\nmath.nothing\n", "lab_bad.py, line 3: AttributeError: module 'math' has no"),
        ("[lab_bad.py]", "def f(:\n", "lab_bad.py, line 1: SyntaxError: invalid syntax"),
        ("[lab_bad.py]", "import no_such_thing\n", "lab_bad.py, line 1: No module named 'no_such_thing'"),
        ("[absent.py]", "", "absent.py: no such file: give its path relative to the config file or to the working"),
        ("[no_lab.models]", "", "plugin 'no_lab.models': no such module: install it, add its folder to PYTHONPATH"),
        ("lab_bad.py", "", "key 'plugins': expected a list, each a name, got 'lab_bad.py': write [lab_bad.py]"),
        ("[3]", "", "key 'plugins.0': expected a name, got 3"),
    ],
)
def test_what_cannot_be_imported_is_one_line(tmp_path, plugins, text, says):
    write(tmp_path / "lab_bad.py", text)
    config = write(tmp_path / "run.yaml", f"plugins: {plugins}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(config, [], Config)
    assert str(caught.value).startswith(f"{config}: ")
    assert says in str(caught.value)
    assert caught.value.exit_code == 2


def test_two_files_of_one_name_are_refused(tmp_path):
    first, second = write(tmp_path / "a/lab_twice.py", ""), write(tmp_path / "b/lab_twice.py", "")
    with pytest.raises(ConfigError, match=re.escape(f"a file with this name, {first}: rename one of them")):
        load_plugins([str(first), str(second)], "x")


def test_an_installed_plugin_is_loaded_when_a_name_is_not_ours(tmp_path):
    write(
        tmp_path / "lab_installed.py",
        "from pretrain.registries import OBJECTIVES\n"
        "OBJECTIVES.add('lab_objective', 'decimal:Decimal')\nprint('loaded')\n",
    )
    info = tmp_path / "lab_package-1.0.dist-info"
    write(info / "METADATA", "Metadata-Version: 2.1\nName: lab-package\nVersion: 1.0\n")
    write(info / "entry_points.txt", "[spectralforge.plugins]\nlab = lab_installed\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pretrain.registries import OBJECTIVES\n"
        "OBJECTIVES.config('mae'); print('ours')\n"
        "print('lab_objective' in OBJECTIVES)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.split() == ["ours", "loaded", "True"], run.stderr
    write(tmp_path / "lab_installed.py", "1 / 0\n")
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        "lab-package (pip uninstall lab-package removes it): plugin lab_installed: ZeroDivisionError" in failed.stderr
    )

"""Commands: argv to config, and one line with exit code 2 for misuse, before anything heavy is loaded."""

import os
import subprocess
import sys

import pytest

from launch.command import read_command
from pretrain.config import PretrainConfig
from shards.config import REPOSITORY, load_config

MINIMAL = "run: {dir: out}\ndata: {shards: in}\ntrain: {steps: 5}\n"


def _write(path, text):
    path.write_text(text)
    return path


def test_print_config_shows_what_reads_back_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    path, overrides = str(_write(tmp_path / "run.yaml", MINIMAL)), ["optim.lr=1e-5", "augment.crop_scale=null"]
    with pytest.raises(SystemExit) as caught:
        read_command(["--config", path, "--print-config", *overrides], PretrainConfig, "")
    assert caught.value.code == 0
    again = load_config(_write(tmp_path / "again.yaml", capsys.readouterr().out), [], PretrainConfig)
    assert again == load_config(path, overrides, PretrainConfig)


@pytest.mark.parametrize(
    "argv",
    [
        ["train.steps=9", "--config", "FILE", "optim.lr=0.5"],
        ["--config", "FILE", "train.steps=9", "optim.lr=0.5"],
        ["--local_rank=0", "--config=FILE", "train.steps=9", "optim.lr=0.5"],
    ],
)
def test_overrides_may_stand_before_and_after_the_options_of_launchers(tmp_path, argv):
    path = str(_write(tmp_path / "run.yaml", MINIMAL))
    config = read_command([word.replace("FILE", path) for word in argv], PretrainConfig, "")
    assert (config.train.steps, config.optim.lr) == (9, 0.5)


def _run(*arguments, **environment):
    """A command as the shell starts it: exit code, stdout, stderr without the import log, imported modules."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "PYTHONPATH")}
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=REPOSITORY,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = result.stderr.splitlines()
    imports = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "argparse" in imports
    return result.returncode, result.stdout, [line for line in lines if not line.startswith("import time:")], imports


@pytest.fixture
def demo():
    return str(REPOSITORY / "configs/pretrain/mae/demo.yaml")


def test_an_unknown_key_is_one_line_and_exit_code_2_before_torch_is_loaded(demo):
    code, out, err, imports = _run("launch/pretrain.py", "--config", demo, "unknown.key=1")
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith(f"error: {demo}: unknown key 'unknown'")
    assert imports.isdisjoint({"torch", "deepspeed", "rasterio", "numpy"})


@pytest.mark.parametrize("arguments", [["unknown.key=1"], ["--no-such-option"]])
def test_the_other_ranks_say_nothing_and_end_with_the_same_code(demo, arguments):
    assert _run("launch/pretrain.py", "--config", demo, *arguments, RANK="1")[:3] == (2, "", [])


@pytest.mark.parametrize("command", [["launch/pretrain.py"], ["-m", "launch.pretrain"], ["-m", "shards"]])
def test_help_is_shown_without_loading_anything_heavy(command):
    code, out, err, imports = _run(*command, "--help")
    assert (code, err) == (0, [])
    assert "usage:" in out
    assert imports.isdisjoint({"torch", "deepspeed", "rasterio", "numpy", "webdataset"})


@pytest.mark.parametrize("arguments", [[], ["pack"], ["pack", "a", "b", "--workers", "x"], ["no-such-command"]])
def test_misuse_of_the_shard_command_is_one_line_and_exit_code_2(arguments):
    code, out, err, _ = _run("-m", "shards", *arguments)
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith("error: ")
    assert "--help` lists the options" in err[0]

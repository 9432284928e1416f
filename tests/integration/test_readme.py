"""Every command and Python block of the README runs, on a small sample: three launchers, then an evaluation."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
SHORTER = {
    "tools.sample_data": ["--locations", "5", "--size", "32"],
    "launch/pretrain.py": [
        *("train.steps=2", "optim.warmup_steps=0", "train.global_batch=16"),
        *("train.micro_batch=8", "log.every=1"),
    ],
    "launch/finetune.py": ["frozen.epochs=2", "protocol=[knn,frozen]", "data.splits=null"],
}

pytestmark = pytest.mark.distributed


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


def shortened(command: str) -> str:
    extra = next((options for name, options in SHORTER.items() if name in command), [])
    return f"{command} {shlex.join(extra)}"


def typed(*lines: str, folder: Path) -> subprocess.CompletedProcess:
    """What a shell prints that knows nothing but what every shell knows."""
    environment = {"PATH": os.defpath, "HOME": str(folder), "LANG": "C.UTF-8"}
    return subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )


def losses_of(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    for name in ("launch", "configs", "tools"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def test_all_commands_run_in_order(workplace: Path) -> None:
    activation, *others = commands()
    assert activation == "source .venv/bin/activate"
    assert len(others) == 8
    for command in others:
        done = typed("set -e", activation, shortened(command), folder=workplace)
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        if command.startswith("deepspeed"):
            assert "WORLD SIZE 2" in done.stdout
    deepspeed, torchrun, plain = (losses_of(workplace / "runs" / run) for run in ("a", "b", "c"))
    assert len(deepspeed) == 2
    assert torchrun == deepspeed
    assert plain == pytest.approx(deepspeed, rel=1e-5)  # one process instead of two
    results = json.loads((workplace / "runs" / "a-scores" / "results.json").read_text())["results"]
    ways = [(encoder, protocol) for encoder in ("pretrained", "random") for protocol in ("knn", "frozen")]
    assert [(row["encoder"], row["protocol"]) for row in results] == ways
    assert (workplace / "runs" / "a-scores" / "report.html").exists()


def test_python_blocks_run(workplace: Path) -> None:
    if not (workplace / "runs" / "a" / "encoder.safetensors").exists():
        pytest.skip("needs the files of the commands above")
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        code = block + "\nassert features.shape == (1, 192), features.shape\n"
        done = typed("source .venv/bin/activate", f"python -c {shlex.quote(code)}", folder=workplace)
        assert done.returncode == 0, done.stderr


def test_the_demo_says_what_the_readme_says() -> None:
    done = subprocess.run(["make", "-n", "demo", "test"], cwd=REPOSITORY, capture_output=True, text=True)
    assert "tools.demo" in done.stdout
    assert 'pytest -m "not nightly"' in done.stdout

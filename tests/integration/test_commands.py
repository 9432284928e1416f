"""The commands as users meet them: misuse, missing input, signals and resume, real tiles end to end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from support.processes import REPOSITORY, free_port

from pretrain.resilience.signals import STOPPED

PRETRAIN = REPOSITORY / "launch" / "pretrain.py"
FINETUNE = REPOSITORY / "launch" / "finetune.py"
DEMO = REPOSITORY / "configs" / "pretrain" / "mae" / "demo.yaml"
BIN = Path(sys.executable).parent
SMALL = ["optim.warmup_steps=1", "train.global_batch=16", "train.micro_batch=8", "log.every=1", "log.validate_every=0"]

pytestmark = pytest.mark.distributed


def run(*command: object, cwd: Path | str = "/", timeout: float = 300) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )


def two_ranks(launcher: str, number: str) -> list[object]:
    """Return a launcher of two ranks at a port that no other test has."""
    return [BIN / launcher, number, 2, "--master_port", free_port()]


def error_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in (done.stdout + done.stderr).splitlines() if "error: " in line and "[ERROR]" not in line]


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def test_misuse_under_torchrun_is_one_line_before_its_own_block() -> None:
    done = run(*two_ranks("torchrun", "--nproc_per_node"), PRETRAIN, "--config", DEMO, "optim.lrr=1")
    first = next(line for line in done.stderr.splitlines() if line)
    assert first == f"error: {DEMO}: unknown key 'optim.lrr'; did you mean 'optim.lr'?"
    assert done.stderr.count("error: ") == 1
    assert done.returncode != 0


def test_misuse_under_deepspeed_is_one_line_and_code_2() -> None:
    done = run(*two_ranks("deepspeed", "--num_gpus"), PRETRAIN, "--config", DEMO, "train.steps=many")
    assert error_lines(done) == [
        f"error: {DEMO}: key 'train.steps': expected a whole number of at least 1, got 'many'",
    ]
    assert done.returncode == 2


@pytest.mark.nightly  # the doctor's test has failing ranks too
def test_missing_shards_are_one_line_and_code_2_on_two_ranks(tmp_path: Path) -> None:
    options = [f"run.dir={tmp_path / 'run'}", f"data.shards={tmp_path / 'none'}"]
    done = run(*two_ranks("deepspeed", "--num_gpus"), PRETRAIN, "--config", DEMO, *options)
    (line,) = error_lines(done)
    assert f"{tmp_path / 'none'}: no such folder of shards" in line
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode == 2


@pytest.mark.nightly  # on one process: tests/unit/launch/test_slurm.py
def test_batches_that_do_not_come_out_whole_are_refused(tmp_path: Path, shards: Path) -> None:
    options = [f"run.dir={tmp_path / 'run'}", f"data.shards={shards}", "train.global_batch=48"]
    done = run(*two_ranks("torchrun", "--nproc_per_node"), PRETRAIN, "--config", DEMO, *options)
    assert "train.global_batch 48 must be a multiple of train.micro_batch 16 x 2 processes" in error_lines(done)[0]


def test_a_missing_encoder_is_one_line_and_code_2(tmp_path: Path) -> None:
    done = run(
        sys.executable,
        FINETUNE,
        "--config",
        REPOSITORY / "configs" / "finetune" / "demo.yaml",
        f"checkpoint={tmp_path / 'none.safetensors'}",
        f"run.dir={tmp_path}",
    )
    assert f"{tmp_path / 'none.safetensors'}: no such encoder file" in error_lines(done)[0]
    assert done.returncode == 2


@pytest.mark.nightly  # faults of every kind: tests/distributed/test_fault_injection.py
def test_a_signal_saves_and_the_same_command_continues(tmp_path: Path, shards: Path) -> None:
    """That losses are those of an uninterrupted run, bit for bit, is tested with many faults in tests/distributed."""

    def command(folder: Path) -> list[str]:
        options = [f"run.dir={folder}", f"data.shards={shards}", "train.steps=12", "checkpoint.every=3"]
        return [str(part) for part in (sys.executable, PRETRAIN, "--config", DEMO, *options, *SMALL)]

    stopped = tmp_path / "stopped"
    process = subprocess.Popen(command(stopped), cwd="/", stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (stopped / "metrics.jsonl").exists() or len(losses(stopped)) < 4:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(int((stopped / "rank0.pid").read_text()), signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == STOPPED, output
    assert "stopped at step" in output
    assert len(losses(stopped)) < 12

    lost = shutil.copytree(stopped, tmp_path / "lost")
    newest = max((stopped / "checkpoints").glob("step-*"))
    weights = next(newest.glob("weights-*"))
    weights.write_bytes(weights.read_bytes()[:-1])
    done = run(*command(stopped))
    assert f"WARNING: passed over a damaged checkpoint: {weights}" in done.stdout
    assert "resumed from" in done.stdout
    assert len(losses(stopped)) == 12
    assert "is complete at step 12" in run(*command(stopped)).stdout

    for seal in (lost / "checkpoints").glob("*/checkpoint.json"):
        seal.unlink()
    done = run(*command(lost))
    assert "no complete checkpoint left" in error_lines(done)[0]
    assert done.returncode == 2


@pytest.mark.nightly  # on one process: tests/distributed/test_damaged_tiles.py
def test_a_damaged_tile_ends_the_run_and_names_rank_and_tile(tmp_path: Path, shards: Path) -> None:
    copy = shutil.copytree(shards, tmp_path / "damaged")
    tar = copy / "shard-000000.tar"
    index = json.loads((copy / "shard-000000.index.json").read_text())["tiles"]
    data = bytearray(tar.read_bytes())
    for offset in index["offset"]:
        data[offset + 100] ^= 1
    tar.write_bytes(data)
    options = [f"run.dir={tmp_path / 'run'}", f"data.shards={copy}", "train.steps=2", "data.max_bad_tiles=0", *SMALL]
    done = run(*two_ranks("torchrun", "--nproc_per_node"), PRETRAIN, "--config", DEMO, *options)
    assert any(line.startswith("error: rank ") and "fails its checksum" in line for line in error_lines(done))
    assert "Traceback (most recent call last)" not in done.stderr.split("ChildFailedError")[0].split("error: rank")[0]
    assert done.returncode != 0


@pytest.mark.nightly
def test_real_tiles_are_sharded_pretrained_on_and_segmented(tmp_path: Path, enmap_potsdam: Path) -> None:
    assert run(sys.executable, "-m", "shards", "pack", enmap_potsdam, tmp_path / "shards").returncode == 0
    options = [f"run.dir={tmp_path / 'run'}", f"data.shards={tmp_path / 'shards'}", "train.steps=3", *SMALL]
    done = run(*two_ranks("torchrun", "--nproc_per_node"), PRETRAIN, "--config", DEMO, *options)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "reconstruction.png").stat().st_size > 10_000
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["run"]["threads"] == 1

    os.environ["ENMAP_POTSDAM"] = str(enmap_potsdam)
    tuned = run(
        *two_ranks("torchrun", "--nproc_per_node"),
        FINETUNE,
        *("--config", REPOSITORY / "configs" / "finetune" / "custom.yaml"),
        *(f"run.dir={tmp_path / 'scores'}", f"checkpoint={tmp_path / 'run' / 'encoder.safetensors'}"),
        *("frozen.epochs=10", "frozen.views=2", "full.epochs=2", "full.warmup_epochs=1", "seeds=[0]"),
        *("compare_random=false", "run.threads=1"),
    )
    assert tuned.returncode == 0, tuned.stderr
    results = json.loads((tmp_path / "scores" / "results.json").read_text())
    names = [one["name"] for one in results["task"]["classes"]]
    assert names == ["roof", "pavement", "low vegetation", "tree", "soil", "water"]
    assert [row["protocol"] for row in results["results"]] == ["knn", "frozen", "full"]
    for row in results["results"]:
        accuracy = row["test"]["OA"]
        assert 0 < accuracy < 1
        assert row["test"]["micro_iou"] == pytest.approx(accuracy / (2 - accuracy))
    page = run(sys.executable, "-m", "finetune", "report", tmp_path / "scores")
    assert "5 test places" in page.stdout
    assert "<title>Evaluation</title>" in (tmp_path / "scores" / "report.html").read_text()


@pytest.mark.nightly  # `make demo` in CI goes through the same tiles
def test_tiles_in_spectralearths_layout_are_pretrained_on(tmp_path: Path, spectral_earth_sample: Path) -> None:
    packed = run(sys.executable, "-m", "shards", "pack", spectral_earth_sample, tmp_path / "shards")
    assert "packed 10 tiles of 7 locations" in packed.stdout
    options = [f"run.dir={tmp_path / 'run'}", f"data.shards={tmp_path / 'shards'}", "train.steps=2", *SMALL]
    resized = ["augment.crop_scale=[0.1,0.3]", "engine.precision=autocast"]
    done = run(sys.executable, PRETRAIN, "--config", DEMO, *options, *resized)
    assert done.returncode == 0, done.stderr
    assert "WORLD SIZE 1" in done.stdout
    assert len(losses(tmp_path / "run")) == 2

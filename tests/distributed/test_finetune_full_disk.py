"""An evaluation whose disk is really full in the middle of a fine-tuning, and the same command afterwards."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.machine import SmallDisk
from support.machine_runs import HOST
from support.processes import REPOSITORY, free_port
from support.staging import until

from finetune.evaluation.results import read_results
from finetune.tasks import get_task
from pretrain.models.initialize import initialize
from pretrain.models.registry import build_encoder
from pretrain.weights.description import EncoderDescription
from pretrain.weights.files import save_encoder
from shards.sensors.sensor import get_sensor
from tools.sample_tasks import make_task_sample

pytestmark = [pytest.mark.distributed, pytest.mark.nightly]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An evaluation of a small encoder by full fine-tuning with a checkpoint every epoch, without its run.dir."""
    make_task_sample(tmp_path / "data", get_task("enmap_cdl"), tiles=10, size=16)
    enmap = get_sensor("enmap")
    told = [list(enmap.wavelength_nm), list(enmap.fwhm_nm), [2000.0] * 202, [1400.0] * 202]
    encoder = build_encoder("spec_vit_tiny", 32, 4)
    initialize(encoder, "pretrain.encoder", 3)
    description = EncoderDescription("spec_vit_tiny", 32, 4, "enmap", *told, "mae", 0, "x", "t")
    save_encoder(tmp_path / "encoder.safetensors", encoder.state_dict(), description)
    environment = {
        "SPECTRAL_EARTH": tmp_path / "data",
        "SPECTRAL_EARTH_SPLITS": tmp_path / "data" / "splits",
        "DS_ACCELERATOR": "cpu",
        "MASTER_PORT": free_port(),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    options = {
        "checkpoint": tmp_path / "encoder.safetensors",
        "run.threads": 1,
        "compare_random": "false",
        "seeds": "[0]",
        "protocol": "full",
        "engine.precision": "fp32",
        "full.head": "linear",
        "full.batch": 8,
        "full.epochs": 6,
        "full.save_every": 1,
    }
    program = [
        sys.executable,
        REPOSITORY / "launch" / "finetune.py",
        "--config",
        REPOSITORY / "configs/finetune/cdl.yaml",
    ]
    return [*map(str, program), *(f"{key}={value}" for key, value in options.items())]


def test_a_disk_that_is_full_during_a_fine_tuning(command, tmp_path):
    whole = subprocess.run([*command, f"run.dir={tmp_path / 'whole'}"], capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    with SmallDisk(tmp_path / "disk", megabytes=600) as disk:
        run = disk.folder / "run"

        def fill() -> None:
            until(lambda: list(run.glob("work/*/checkpoints/latest")), seconds=300)
            disk.fill()

        filling = threading.Thread(target=fill)
        filling.start()
        failed = subprocess.run([*command, f"run.dir={run}"], capture_output=True, text=True)
        filling.join()
        lines = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
        assert failed.returncode == 1 and len(lines) == 1, failed.stderr
        for word in (f"on {HOST}", "No space left on device", "free some space and run the command again"):
            assert word in lines[0]
        disk.mend()
        again = subprocess.run([*command, f"run.dir={run}"], capture_output=True, text=True)
        assert again.returncode == 0 and "resumed at step" in again.stdout, again.stdout + again.stderr
        (one,), (two,) = read_results(tmp_path / "whole").results, read_results(run).results
        assert (two.curve, two.test) == (one.curve, one.test)

"""The encoder in other people's frameworks: the lines of docs/weights.md in Lightning, and terratorch's own tasks."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from support.documents import python_code
from support.processes import REPOSITORY
from support.small_encoder import BANDS, SIZE, small_description, small_encoder
from torch.utils.data import DataLoader, TensorDataset

import spectralforge
from pretrain.weights.files import save_encoder

PYTHON = "SPECTRALFORGE_TERRATORCH_PYTHON"
"""Environment variable: the Python of an environment with terratorch, in place of a new one of 5 GB."""


def test_the_lines_for_lightning_train_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_encoder(tmp_path / "encoder.safetensors", small_encoder().state_dict(), small_description())
    images = torch.randint(0, 6000, (8, BANDS, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(images.short(), torch.arange(8) % 5), batch_size=4)
    quiet = "max_epochs=1, accelerator='cpu', logger=False, enable_checkpointing=False, enable_progress_bar=False"
    exec(python_code("weights.md", "Lightning").replace("max_epochs=10", quiet), {"loader": loader})
    before, after = (spectralforge.load_encoder(f"{name}.safetensors") for name in ("encoder", "tuned"))
    assert after.description == before.description
    assert not torch.equal(after.encode(images), before.encode(images))


@pytest.mark.nightly
def test_terratorch_trains_the_encoder(tmp_path: Path) -> None:
    """In an environment of its own: terratorch needs torchvision, and some fifty packages beside."""
    python = os.environ.get(PYTHON) or (sys.executable if find_spec("terratorch") else None)
    if python is None:
        python = str(tmp_path / "env" / "bin" / "python")
        subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "torchvision", "terratorch"], check=True)
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}
    command = [python, REPOSITORY / "tests" / "support" / "terratorch_program.py", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("trained\n")

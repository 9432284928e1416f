"""Random generators in checkpoints: one file of all ranks, and a file for each rank as earlier versions wrote."""

import random
from pathlib import Path

import pytest
from safetensors.torch import save_file

from pretrain.checkpointing.checkpoint import _load_random_state
from pretrain.checkpointing.random_state import random_state

FILE = "random-00000-of-00001.safetensors"


@pytest.mark.parametrize(("prefix", "restored"), [("00000-of-00001.", True), ("00000-of-00002.", False), ("", True)])
def test_one_process_takes_generators_of_one_process_alone(tmp_path: Path, prefix: str, restored: bool) -> None:
    save_file({f"{prefix}{name}": value for name, value in random_state().items()}, tmp_path / FILE)
    expected = random.random()
    later = random.getstate()
    _load_random_state(tmp_path)
    assert (random.random() == expected) is restored
    random.setstate(later)

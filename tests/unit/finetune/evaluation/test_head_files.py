"""Files of heads: what is written is read back by head and seed, and anything else is no head."""

from pathlib import Path

import torch

from finetune.evaluation.head_files import load_head, save_heads

HEADS = {
    ("linear", 0): {"weight": torch.ones(2, 3), "bias": torch.zeros(2)},
    ("linear", 10): {"weight": torch.full((2, 3), 2.0), "bias": torch.zeros(2)},
    ("mlp", 0): {"0.running_mean": torch.arange(3.0)},
}


def test_each_head_is_read_back_by_name_and_seed(tmp_path: Path) -> None:
    path = tmp_path / "parts" / "a.heads.safetensors"
    save_heads(path, HEADS)
    for (head, seed), weights in HEADS.items():
        found = load_head(path, head, seed)
        assert found is not None and found.keys() == weights.keys()
        assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_a_head_that_is_not_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "parts" / "a.heads.safetensors"
    assert load_head(path, "linear", 0) is None
    save_heads(path, HEADS)
    assert load_head(path, "linear", 1) is None
    assert load_head(path, "conv", 0) is None


def test_a_damaged_file_holds_no_heads(tmp_path: Path) -> None:
    path = tmp_path / "parts" / "a.heads.safetensors"
    save_heads(path, HEADS)
    path.write_bytes(path.read_bytes()[:40])
    assert load_head(path, "linear", 0) is None

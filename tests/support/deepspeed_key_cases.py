"""Keys that are passed on to DeepSpeed, on real processes: `python deepspeed_key_cases.py FOLDER` on each rank."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from support.leaf_cases import autoencoder, digest, micro_batch, start, train
from support.rank_cases import Cases
from torch.testing import assert_close

from pretrain.checkpointing.checkpoint import load_checkpoint, save_checkpoint
from pretrain.models.initialize import initialize

cases = Cases()

HPZ: dict[str, Any] = {"zero_hpz_partition_size": 2}
OFFLOAD: dict[str, Any] = {"offload_optimizer": {"pin_memory": False}}
VARIANTS: dict[str, dict[str, Any]] = {
    "hpz_fp32": {"zero_stage": 3, "precision": "fp32", "deepspeed": HPZ},
    "hpz_bf16": {"zero_stage": 3, "precision": "bf16", "deepspeed": HPZ},
    "offload_stage1_autocast": {"zero_stage": 1, "precision": "autocast", "deepspeed": OFFLOAD},
    "offload_stage2_fp32": {"zero_stage": 2, "precision": "fp32", "deepspeed": OFFLOAD},
    "offload_stage2_bf16": {"zero_stage": 2, "precision": "bf16", "deepspeed": OFFLOAD},
}


def _weights_move_as_without_the_key(variant: dict[str, Any]) -> None:
    plain = start(autoencoder(), **(variant | {"deepspeed": {}}))
    keyed = start(autoencoder(), **variant)
    initial = digest(keyed)
    assert_close(train(keyed, 0, 3), train(plain, 0, 3), rtol=1e-6, atol=0.0)
    assert digest(keyed) != initial


def _refused_steps_move_nothing(variant: dict[str, Any]) -> None:
    engine = start(autoencoder(), **variant)
    train(engine, 0, 1)
    before = digest(engine)
    result = engine.step([engine(*micro_batch(1, 0))[0].float().mean()], lambda loss, norm: None)
    assert not result.applied and digest(engine) == before


def _checkpoints_continue_with_and_without_the_key(variant: dict[str, Any], folder: Path) -> None:
    engine = start(autoencoder(), **variant)
    train(engine, 0, 2)
    path = save_checkpoint(engine, folder, {"step": 2})
    expected = train(engine, 2, 2)
    for keys in (variant["deepspeed"], {}):
        initialize(model := autoencoder(), "other weights", 0)
        loaded = start(model, **(variant | {"deepspeed": keys}))
        load_checkpoint(loaded, path)
        assert_close(train(loaded, 2, 2), expected, rtol=1e-6, atol=0.0, msg=str(keys))


def _add(name: str, variant: dict[str, Any]) -> None:
    def case(folder: Path) -> None:
        _weights_move_as_without_the_key(variant)
        _refused_steps_move_nothing(variant)
        _checkpoints_continue_with_and_without_the_key(variant, folder)

    cases[name] = case


for _name, _variant in VARIANTS.items():
    _add(_name, _variant)


if __name__ == "__main__":
    cases.main()

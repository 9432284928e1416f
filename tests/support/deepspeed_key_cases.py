"""Keys that are passed on to DeepSpeed, on four real processes: `python deepspeed_key_cases.py FOLDER` on each rank."""

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
VARIANTS: list[dict[str, Any]] = [
    {"zero_stage": 3, "precision": "fp32", "deepspeed": HPZ},
    {"zero_stage": 3, "precision": "bf16", "deepspeed": HPZ},
    {"zero_stage": 1, "precision": "autocast", "deepspeed": OFFLOAD},
    {"zero_stage": 2, "precision": "fp32", "deepspeed": OFFLOAD},
    {"zero_stage": 2, "precision": "bf16", "deepspeed": OFFLOAD},
]


@cases.add
def weights_move_as_without_the_key(folder: Path) -> None:
    for variant in VARIANTS:
        plain = start(autoencoder(), **(variant | {"deepspeed": {}}))
        keyed = start(autoencoder(), **variant)
        initial = digest(keyed)
        assert_close(train(keyed, 0, 3), train(plain, 0, 3), rtol=1e-6, atol=0.0, msg=str(variant))
        assert digest(keyed) != initial


@cases.add
def refused_steps_move_nothing(folder: Path) -> None:
    for variant in VARIANTS:
        engine = start(autoencoder(), **variant)
        train(engine, 0, 1)
        before = digest(engine)
        result = engine.step([engine(*micro_batch(1, 0))[0].float().mean()], lambda loss, norm: None)
        assert not result.applied and digest(engine) == before, variant


@cases.add
def checkpoints_continue_with_and_without_the_key(folder: Path) -> None:
    for number, variant in enumerate(VARIANTS):
        engine = start(autoencoder(), **variant)
        train(engine, 0, 2)
        path = save_checkpoint(engine, folder / str(number), {"step": 2})
        expected = train(engine, 2, 2)
        for keys in (variant["deepspeed"], {}):
            initialize(model := autoencoder(), "other weights", 0)
            loaded = start(model, **(variant | {"deepspeed": keys}))
            load_checkpoint(loaded, path)
            assert_close(train(loaded, 2, 2), expected, rtol=1e-6, atol=0.0, msg=f"{variant} with {keys}")


if __name__ == "__main__":
    cases.main()

"""ZeRO-3 leaf modules and compiled units on real processes: `python leaf_cases.py FOLDER` on each rank.

Each rank runs all cases in one process group and writes ``FOLDER/results-RANK.json``: the error of each, or null.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import unwrap
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from support.masks import masks_of
from support.rank_cases import Cases
from torch import Tensor
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._dynamo.utils import counters
from torch.testing import assert_close

from pretrain import distributed
from pretrain.checkpointing.checkpoint import load_checkpoint, save_checkpoint, weights_hash
from pretrain.config.engine import EngineConfig
from pretrain.engine import deepspeed_adapter
from pretrain.engine.optimizers import build_adamw
from pretrain.engine.zero import ZeroEngine
from pretrain.models.initialize import initialize
from pretrain.models.unit import compilable_units
from pretrain.models.vit import SpecViT, ViTEncoder
from pretrain.objectives.masked_autoencoder import MaskedAutoencoder
from pretrain.objectives.masks import MaskedPatches

DEPTH = 10  # blocks of one class: more than the graphs that torch.compile keeps of a function
MICRO_BATCH, BANDS, PATCHES = 4, 80, 4
GRAPHS = 3  # blocks of the encoder, the first and the last one of the decoder

cases = Cases()


def autoencoder() -> MaskedAutoencoder:
    encoder = SpecViT(8, 4, width=16, depth=DEPTH, heads=2, mlp_hidden=32, bn_group=2)
    model = MaskedAutoencoder(encoder, BANDS, 0.5, True, decoder_width=16, decoder_depth=2, decoder_heads=2)
    initialize(model, "leaf", 0)
    return model


def start(model: MaskedAutoencoder, accumulation: int = 1, **config: Any) -> ZeroEngine:
    """Return an engine; weights are really divided at stage 3."""
    settings = {"zero_stage": 3, "precision": "fp32", "compile": False} | config
    optimizer = build_adamw(model, 1e-2, (0.9, 0.95), 0.1)
    return ZeroEngine(model, optimizer, EngineConfig(**settings), MICRO_BATCH, accumulation, 0.5)


def train(engine: ZeroEngine, first: int, steps: int) -> list[float]:
    """Return the loss and the norm of each step, of this rank's tiles."""
    found: list[float] = []

    def accept(loss: Tensor, norm: Tensor) -> float:
        found.extend([float(loss), float(norm)])
        return found[-1]

    for step in range(first, first + steps):
        losses = (engine(*micro_batch(step, number))[0].float().mean() for number in range(engine.accumulation))
        engine.step(losses, accept)
    return found


def micro_batch(step: int, number: int, size: int = MICRO_BATCH) -> tuple[Tensor, MaskedPatches]:
    """Return images and masks of this rank."""
    generator = torch.Generator().manual_seed(100 * step + 10 * number + distributed.rank())
    images = torch.randn(size, BANDS, 8, 8, generator=generator)
    return images, masks_of(torch.rand(size, PATCHES, generator=generator), 0.5)


@contextmanager
def without_leaf_modules() -> Iterator[None]:
    kept = deepspeed_adapter.set_leaf_modules
    deepspeed_adapter.set_leaf_modules = lambda *_: None
    try:
        yield
    finally:
        deepspeed_adapter.set_leaf_modules = kept


def digest(engine: ZeroEngine) -> str:
    return weights_hash(engine)


def hooks(engine: ZeroEngine) -> int:
    return sum(len(module._forward_pre_hooks) for module in engine.module.modules())


def graphs(engine: ZeroEngine) -> int:
    """Return the number of graphs of the encoder's and the decoder's blocks."""
    codes = {unwrap(unit.forward).__code__ for unit in compilable_units(engine.module)}
    return sum(len(_debug_get_cache_entry_list(code)) for code in codes)


@cases.add
def leaf_modules_change_no_digit(folder: Path) -> None:
    _compare_leaf_modules({"accumulation": 2}, {"activation_checkpointing": "blocks", "precision": "bf16"})


@cases.add
def leaf_modules_change_no_digit_in_other_layouts(folder: Path) -> None:
    _compare_leaf_modules(
        {"activation_checkpointing": "blocks"},
        {"activation_checkpointing": "selective"},
        {"precision": "autocast"},
        {"param_persistence_threshold": 100},
    )


def _compare_leaf_modules(*variants: dict[str, Any]) -> None:
    for variant in variants:
        leaf = start(autoencoder(), **variant)
        with without_leaf_modules():
            plain = start(autoencoder(), **variant)
        assert hooks(leaf) < hooks(plain) / 2
        initial = digest(plain)
        assert train(leaf, 0, 3) == train(plain, 0, 3), variant
        assert initial != digest(leaf) == digest(plain), variant


@cases.add
def blocks_behind_frozen_layers_learn(folder: Path) -> None:
    """Their inputs have no gradients, by which DeepSpeed finds out that a leaf module's are complete."""

    found = []
    for stage in (3, 1):
        model = autoencoder().requires_grad_(False)
        cast(ViTEncoder, model.encoder).core.block_list[-1].requires_grad_(True)
        found.append(train(start(model, zero_stage=stage), 0, 4))
    assert_close(found[0], found[1], rtol=1e-5, atol=0.0)
    assert min(found[0][1::2]) > 0  # norms


@cases.add
def compiled_units_follow_eager_ones_in_three_graphs(folder: Path) -> None:
    _compare_compiled({})


@cases.add
def compiled_units_recompute_in_three_graphs(folder: Path) -> None:
    _compare_compiled(
        {"activation_checkpointing": "blocks", "accumulation": 2},
        {"activation_checkpointing": "selective", "precision": "autocast", "zero_stage": 2},
    )


def _compare_compiled(*variants: dict[str, Any]) -> None:
    """Train with evaluations of other batch sizes in between; the blocks of a model share graphs."""
    expected = {count: train(start(autoencoder(), count), 0, 3) for count in (1, 2)}
    for variant in variants:
        torch._dynamo.reset()
        counters.clear()
        engine = start(autoencoder(), compile=True, **variant)
        losses = train(engine, 0, 2)
        for size in (2, 3, 5):
            engine.evaluation(*micro_batch(9, 0, size))
        losses += train(engine, 2, 1)
        bound = 2e-2 if "precision" in variant else 2e-5
        assert_close(losses, expected[engine.accumulation], rtol=bound, atol=0.0)
        assert graphs(engine) == GRAPHS, variant
        assert not counters["graph_break"] and not counters["recompile_limit"], counters


@cases.add
def a_checkpoint_of_neither_is_continued(folder: Path) -> None:
    with without_leaf_modules():
        first = start(autoencoder())
        train(first, 0, 2)
        path = save_checkpoint(first, folder, {"step": 2})
        expected = train(first, 2, 2)
    for compiles, bound in ((False, 0.0), (True, 2e-5)):
        initialize(model := autoencoder(), "other weights", 0)
        engine = start(model, compile=compiles)
        load_checkpoint(engine, path)
        assert_close(train(engine, 2, 2), expected, rtol=bound, atol=0.0)


if __name__ == "__main__":
    cases.main()

"""A small network for trouble_cases.py: its engine, its training, and the same training in plain PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from support.pieces import gather
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pretrain import distributed
from pretrain.config.engine import EngineConfig
from pretrain.engine.optimizers import build_adamw
from pretrain.engine.zero import ZeroEngine
from pretrain.engine.zero_state import local_state, parameter_shapes
from pretrain.models.initialize import initialize

WIDTH, BATCH, SEED = 8, 8, 5


class Network(nn.Module):
    """Two layers, a vector owned by the parent, like class and mask tokens, and a layer that can be frozen."""

    def __init__(self, frozen: bool = False, recompute: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 16), nn.Linear(16, 1)
        self.token = nn.Parameter(torch.full((1, 16), 0.1))
        self.fixed = nn.Linear(16, 16)
        self.fixed.requires_grad_(not frozen)
        self.keep_recomputing = recompute

    def forward(self, x: Tensor) -> Tensor:
        if self.keep_recomputing:
            hidden = checkpoint(self.body, x, use_reentrant=False)
        else:
            hidden = self.body(x)
        return self.second(hidden + self.token).squeeze(-1)

    def body(self, x: Tensor) -> Tensor:
        return self.fixed(torch.tanh(self.first(x.to(self.token.dtype))))


def network(**options: bool) -> Network:
    module = Network(**options)
    initialize(module, "troubles", SEED)
    with torch.no_grad():
        module.token.fill_(0.1)
    return module


def engine(
    module: nn.Module,
    stage: int = 3,
    precision: str = "fp32",
    accumulation: int = 1,
    clip: float = 0.0,
    optimizer: torch.optim.Optimizer | None = None,
) -> ZeroEngine:
    config = EngineConfig(zero_stage=stage, precision=precision, param_persistence_threshold=0)  # type: ignore[arg-type]
    optimizer = optimizer or build_adamw(module, 1e-2, (0.9, 0.95), 0.1)
    micro = BATCH // (distributed.world_size() * accumulation)
    return ZeroEngine(module, optimizer, config, micro, accumulation, clip)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Return the global batch of a step: inputs (B, WIDTH) and targets (B,)."""
    x = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(step))
    return x, torch.sin(x.sum(1))


def train(zero: ZeroEngine, first: int, steps: int, factor: float = 1.0, accept=None) -> list[float]:
    """Train some steps; return the losses over the global batch, which is split by rank and by accumulation."""
    losses = []
    for step in range(first, first + steps):
        x, y = (part.chunk(distributed.world_size())[distributed.rank()] for part in batch(step))
        parts = zip(x.chunk(zero.accumulation), y.chunk(zero.accumulation), strict=True)
        result = zero.step((F.mse_loss(zero(a).float(), b) * factor for a, b in parts), accept)
        losses.append(float(distributed.all_reduce_sum(result.losses.mean()) / distributed.world_size()))
    return losses


def plain_losses(steps: int, clip: float = 0.0) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Train in plain PyTorch on the global batch; return losses, gradient norms before clipping, final weights."""
    module = network()
    optimizer = build_adamw(module, 1e-2, (0.9, 0.95), 0.1)
    losses, norms = [], []
    for step in range(steps):
        x, y = batch(step)
        loss = F.mse_loss(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(module.parameters(), clip or 1e9)))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, {name: value.detach().clone() for name, value in module.named_parameters()}


def weights(zero: ZeroEngine) -> dict[str, Tensor]:
    """Return all weights on every rank."""
    return gather(local_state(zero).weights, parameter_shapes(zero))


def close(actual: list[float], expected: list[float], rel: float = 1e-5) -> None:
    assert np.allclose(actual, expected, rtol=rel, atol=0), f"{actual} where {expected} was expected"


# ---- the cases, named by their subject ----


def bare_steps(bare: Any, steps: int) -> list[Tensor]:
    found = []
    for step in range(steps):
        x, y = (part.chunk(distributed.world_size())[distributed.rank()] for part in batch(step))
        loss = F.mse_loss(bare(x), y)
        bare.backward(loss)
        bare.step()
        found.append(loss.detach())
    return found


def plain_training(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, steps: int) -> list[float]:
    """Train in plain PyTorch from a step on and return the losses."""
    losses = []
    for step in range(first, first + steps):
        x, y = batch(step)
        loss = F.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def resumed_from_file(path: Path) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model and AdamW with the state of a file that `spectralforge-convert --to torch` wrote."""
    saved, model = torch.load(path, weights_only=True), Network()
    model.load_state_dict(saved["model"])
    named = dict(model.named_parameters())
    groups = [{"params": [named[name] for name in one["param_names"]]} for one in saved["optimizer"]["param_groups"]]
    optimizer = torch.optim.AdamW(groups)
    optimizer.load_state_dict(saved["optimizer"])
    return model, optimizer


def resumed_from_dcp(folder: Path) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model and AdamW, of one parameter group per weight decay, with the state of a DCP folder."""
    model, options = Network(), StateDictOptions(flatten_optimizer_state_dict=True)
    matrices, vectors = ([p for p in model.parameters() if (p.dim() > 1) is large] for large in (True, False))
    optimizer = torch.optim.AdamW([{"params": vectors}, {"params": matrices}])
    state = dict(zip(("model", "optim"), get_state_dict(model, optimizer, options=options), strict=True))
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"], options=options)
    return model, optimizer

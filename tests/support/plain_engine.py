"""A single-process engine for tests of objectives; DeepSpeed's engine is tested on process groups."""

import torch
from torch import nn


class PlainEngine:
    """An engine around an unmodified module: fp32, one micro batch for each step."""

    accumulation = 1

    def __init__(self, module: nn.Module) -> None:
        self.module = module.train()

    def __call__(self, *inputs):
        return self.module(*inputs)

    def evaluation(self, *inputs, **options):
        self.module.eval()
        try:
            with torch.no_grad():
                return self.module(*inputs, **options)
        finally:
            self.module.train()

    def forward_context(self):
        return torch.autocast("cpu", torch.bfloat16, enabled=False)

    def shard_of(self, parameter):
        return parameter.detach().flatten().clone()

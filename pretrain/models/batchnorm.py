"""Batch normalization over fixed groups of samples.

Ordinary batch norm takes statistics over whatever a forward happens to hold, so the loss depends on the
number of ranks, the micro batch and accumulation (3 % at step 0 in a trial). Here each call in training
is one group, a fixed number of consecutive samples of the global batch; micro batches are multiples of a
group, so every division of the batch gives the same numbers, without a collective. Running statistics
are updated once per optimizer step, by the mean over all groups of all ranks.

The layers in front of a batch norm run group by group too (``by_groups``): their gradients are small
differences of large sums, and rounding them over different numbers of samples is what separates two runs
first (3e-6 of the stem's gradient otherwise, 2e-7 so).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.activation_checkpointing import is_recomputing


def by_groups(layers: Callable[[Tensor], Tensor], x: Tensor, group: int | None) -> Tensor:
    """Run ``layers`` on each group of ``group`` samples of ``x`` (samples, ...); None takes all as one group.

    Raises:
        ValueError: the number of samples is not a multiple of the group.
    """
    groups = num_groups(x, group)
    if groups == 1:
        return layers(x)  # without a chunk: torch.export would fix its size
    return torch.cat([layers(part) for part in x.chunk(groups)])


def num_groups(x: Tensor, group: int | None) -> int:
    """Return the number of groups of ``group`` samples in ``x`` (samples, ...); None takes all as one group.

    Raises:
        ValueError: the number of samples is not a multiple of the group.
    """
    if group is None:
        return 1
    if len(x) % group:
        raise ValueError(f"{len(x)} samples are not a multiple of bn_group {group}")
    return len(x) // group


class GroupedBatchNorm(nn.Module):
    """Batch norm with the parameters, buffers and evaluation of ``nn.BatchNorm3d``; one training call, one group.

    Args:
        channels: size of dimension 1.

    Attributes:
        count_without_grad: count groups that run without gradients, too: a momentum network never has any.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum, self.count_without_grad = eps, momentum, False
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        self._pending: list[Tensor] = []

    def reset(self) -> None:
        """Reset the running statistics to those of an untrained layer."""
        self.running_mean.zero_()
        self.running_var.fill_(1.0)
        self.num_batches_tracked.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (n, channels, ...), in fp32 whatever the input's dtype."""
        with torch.autocast(x.device.type, enabled=False):
            weight, bias, values = self.weight.float(), self.bias.float(), x.float()
            if self.training:
                out = self._normalize(values, weight, bias)
            else:
                out = F.batch_norm(values, self.running_mean, self.running_var, weight, bias, False, 0.0, self.eps)
            return out.to(x.dtype)

    def _normalize(self, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out, mean, invstd = torch.native_batch_norm(values, weight, bias, None, None, True, 0.0, self.eps)
        moments = torch.stack([mean, invstd.pow(-2) - self.eps]).detach()
        self.record(moments[:, None], values.numel() // values.shape[1])
        return out

    def record(self, moments: Tensor, count: int) -> None:
        """Record each group's mean and biased variance over ``count`` values, for the running statistics.

        Args:
            moments: (2, groups, channels).
        """
        if self.training and (torch.is_grad_enabled() or self.count_without_grad) and not is_recomputing():
            mean, variance = moments
            self._pending.append(torch.stack([mean, variance * (count / max(count - 1, 1))]))

    def flush(self) -> tuple[Tensor, int]:
        """Return sums of groups' means and unbiased variances since the last call, (2, C), and the number of groups."""
        empty = torch.zeros_like(self.running_mean).repeat(2, 0, 1)  # under ZeRO-3 only buffers keep their shape
        pending = torch.cat([empty, *self._pending], 1)
        self._pending = []
        return pending.sum(1), pending.shape[1]

    def move(self, sums: Tensor, groups: int) -> None:
        """Update the running statistics by one step, from the results of ``flush`` summed over ranks."""
        if groups:
            mean, variance = sums / groups
            self.running_mean += self.momentum * (mean - self.running_mean)
            self.running_var += self.momentum * (variance - self.running_var)
        self.num_batches_tracked += 1


def grouped_batch_norms(model: nn.Module) -> list[GroupedBatchNorm]:
    """List a model's grouped batch norms, in a fixed order."""
    return [module for module in model.modules() if isinstance(module, GroupedBatchNorm)]

"""Batch normalisation over fixed groups of samples.

Ordinary batch norm takes statistics over whatever a forward happens to hold, so the loss depends on the
number of ranks, the micro batch and accumulation (3 % at step 0 in a trial). Here statistics are taken
over groups of ``group`` consecutive samples of the global batch; micro batches are multiples of a group,
so every way of cutting the batch gives the same numbers, without a collective. Running statistics move
once per optimizer step, by the mean over all groups of all ranks.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GroupedBatchNorm(nn.Module):
    """Batch norm with the parameters, buffers and evaluation of ``nn.BatchNorm3d`` (eps 1e-5, momentum 0.1).

    Args:
        channels: size of dimension 1.
        group: samples that share statistics; None takes each forward as one group.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, group: int | None, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.group, self.eps, self.momentum = group, eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        self._pending: list[Tensor] = []

    def forget(self) -> None:
        """Put the running statistics back to those of an untrained layer."""
        self.running_mean.zero_()
        self.running_var.fill_(1.0)
        self.num_batches_tracked.zero_()

    def forward(self, x: Tensor, samples: int) -> Tensor:
        """Normalise (samples * n, channels, length), in fp32 whatever the input's dtype.

        Raises:
            ValueError: ``samples`` is no multiple of the group in training mode.
        """
        with torch.autocast(x.device.type, enabled=False):
            weight, bias, values = self.weight.float(), self.bias.float(), x.float()
            if not self.training:
                out = F.batch_norm(values, self.running_mean, self.running_var, weight, bias, False, 0.0, self.eps)
                return out.to(x.dtype)
            group = self.group or samples
            if samples % group:
                raise ValueError(f"{samples} samples are no multiple of bn_group {group}")
            chunks = [self._normalise(chunk, weight, bias) for chunk in values.chunk(samples // group)]
            return (torch.cat(chunks) if len(chunks) > 1 else chunks[0]).to(x.dtype)

    def _normalise(self, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out, mean, invstd = torch.native_batch_norm(values, weight, bias, None, None, True, 0.0, self.eps)
        if torch.is_grad_enabled():
            count = values.numel() // values.shape[1]
            variance = (invstd.detach().pow(-2) - self.eps) * (count / max(count - 1, 1))
            self._pending.append(torch.stack([mean.detach(), variance]))
        return out

    def take_pending(self) -> Tensor:
        """Sum of group (mean, unbiased variance) since the last call and the number of groups, (2 * channels + 1,)."""
        groups = len(self._pending)
        empty = torch.zeros_like(self.running_mean).repeat(2)  # under ZeRO-3 only buffers keep their shape
        sums = torch.stack(self._pending).sum(0).flatten() if groups else empty
        self._pending = []
        return torch.cat([sums, sums.new_tensor([float(groups)])])

    def move(self, pending: Tensor) -> None:
        """Move the running statistics by one step, from ``take_pending`` summed over ranks."""
        groups = pending[-1]
        mean, variance = (pending[:-1] / groups.clamp(min=1)).view(2, -1)
        weight = self.momentum * (groups > 0)
        self.running_mean += weight * (mean - self.running_mean)
        self.running_var += weight * (variance - self.running_var)
        self.num_batches_tracked += 1


def grouped_batch_norms(model: nn.Module) -> list[GroupedBatchNorm]:
    """All of a model's grouped batch norms, in a fixed order."""
    return [module for module in model.modules() if isinstance(module, GroupedBatchNorm)]

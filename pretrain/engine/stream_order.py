"""Let a GPU's streams wait for each other at the end of a backward pass, where DeepSpeed lets the host wait for them.

Gradients are reduced on a stream of their own. Before DeepSpeed uses the results and releases buffers, it synchronizes
the device, or that stream, so that the host can't queue the next micro batch or the norm. The order of the two streams
is enough: what follows runs on the current stream, and buffers are reused in the order of the streams, too. Gradients
that are offloaded are used on the host, which has to wait for them.
"""

from typing import Any

import torch


def order_streams(optimizer: Any, owner: Any, reduction: torch.cuda.Stream) -> None:
    """Replace the host's waits in the end of backward passes of a ZeRO optimizer.

    Args:
        optimizer: DeepSpeed's.
        owner: object whose method ``synchronize`` DeepSpeed calls there, replaced while it runs.
        reduction: stream of the reductions.
    """
    end_backward = optimizer.independent_gradient_partition_epilogue

    def order(*_: Any) -> None:
        current = torch.cuda.current_stream()
        reduction.wait_stream(current)
        current.wait_stream(reduction)

    def ordered() -> None:
        owner.synchronize = order
        try:
            end_backward()
        finally:
            del owner.synchronize

    optimizer.independent_gradient_partition_epilogue = ordered

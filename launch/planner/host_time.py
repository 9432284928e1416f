"""Time that the host needs for a step on a GPU: Python and launches, which bound small micro batches.

Measured on CPUs with real engines under torch's fake process group (spread: a factor of two either way between
machines), ViT-H with 393 tensors of weights: 43 ms for the kernels of a micro batch, 58 to 69 with stage 1, 99 to 106
with stage 3. tools/bench_plan.py measures the reduce-scatter.
"""

from launch.planner.memory import Layout

KERNEL = 10e-6
"""Seconds to launch one kernel from eager autograd."""

TENSOR = {0: 0.0, 1: 50e-6, 2: 50e-6, 3: 150e-6}
"""Seconds per tensor of weights and micro batch that DeepSpeed's hooks take, by stage."""

REDUCED_SHARD = 2e-6
"""Seconds per tensor and process: at stage 3, DeepSpeed cuts every gradient into the processes' shards in Python."""


def host_seconds(kernels: int, tensors: int, layout: Layout, accumulation: int) -> float:
    """Return the host's time of an optimizer step.

    Args:
        kernels: number of kernels in a micro batch.
        tensors: number of trained tensors.
    """
    if layout.device == "cpu":
        return 0.0  # the host computes
    hooks = TENSOR[layout.stage] * tensors
    return accumulation * (KERNEL * kernels + hooks + reduce_scatter_seconds(tensors, layout))


def reduce_scatter_seconds(tensors: int, layout: Layout) -> float:
    """Return the host's time of stage 3's reduce-scatters in a micro batch."""
    return REDUCED_SHARD * tensors * layout.world if layout.stage == 3 and layout.world > 1 else 0.0

"""The attention kernel of the run: whether xformers' C++ extension loads where there are GPUs."""

import platform
from collections.abc import Sequence

import torch

from launch.doctor.cluster import Cluster, values
from launch.doctor.table import Row
from pretrain.models.attention import XFORMERS_PAIR, Backend, is_installed, xformers_problem

Kernel = tuple[bool, bool, str]
"""Of one rank: whether it has a GPU, whether xformers is installed, and why it can't be used ("" if it can)."""


def check(cluster: Cluster) -> Row:
    """Check that the kernel that the config asks for, or the faster one under ``auto``, can run on every rank."""
    model = cluster.config.model
    if not model.is_vit:
        return Row("green", f"none in {model.name}")
    answers = cluster.everywhere(_look)
    failure = cluster.failure(answers)
    if failure:
        return Row("red", failure, "an xformers that imports, or none")
    return judge(values(answers), [cluster.name(rank) for rank in range(cluster.size)], model.attention)


def judge(ranks: Sequence[Kernel], names: Sequence[str], backend: Backend, machine: str = platform.machine()) -> Row:
    """Return the row for the kernels of the ranks with these names."""
    if backend in ("sdpa", "math"):
        return Row("green", f"model.attention {backend}: torch's, without xformers")
    if not any(on_gpu for on_gpu, _, _ in ranks):
        if backend == "xformers":
            return Row("red", "model.attention xformers runs on GPUs, and there is none", "model.attention=auto")
        found = "no GPU: torch's attention would be used, and whether xformers loads can't be checked"
        return Row("yellow", found, "run the doctor on a node of the GPU partition")
    failed = [(name, rank) for name, rank in zip(names, ranks, strict=True) if rank[2]]
    if not failed:
        return Row("green", "xformers, in half precision")
    name, (_, installed, problem) = failed[0]
    found = f"{name}: {problem}"
    if backend == "xformers" or installed:
        return Row("red", found, f"{XFORMERS_PAIR}, or model.attention=sdpa for torch's attention")
    found += "; torch's attention would be used"
    if machine != "x86_64":
        return Row("green", found)  # there is no wheel
    return Row("yellow", found, XFORMERS_PAIR)


def _look() -> Kernel:
    return torch.cuda.is_available(), is_installed(), xformers_problem() or ""

"""torch.compile: whether what it needs is on every rank."""

from collections.abc import Sequence
from typing import Literal

import torch

from launch.doctor.cluster import Cluster, values
from launch.doctor.table import Row
from pretrain.engine.compiled_units import compiler_problem

Compiler = tuple[bool, str]
"""Of one rank: whether it has a GPU, and what torch.compile lacks there ("" for nothing)."""


def check(cluster: Cluster) -> Row:
    """Check that torch.compile can run on every rank that uses it."""
    answers = cluster.everywhere(_look)
    failure = cluster.failure(answers)
    if failure:
        return Row("red", failure, "a torch that imports")
    names = [cluster.name(rank) for rank in range(cluster.size)]
    return judge(values(answers), names, cluster.config.engine.compile)


def judge(ranks: Sequence[Compiler], names: Sequence[str], setting: bool | Literal["auto"]) -> Row:
    """Return the row for the compilers of the ranks with these names."""
    if not setting:
        return Row("green", "engine.compile is false")
    used = [(name, problem) for name, (on_gpu, problem) in zip(names, ranks, strict=True) if on_gpu or setting is True]
    if not used:
        return Row("green", "engine.compile auto: only GPUs compile")
    failed = [(name, problem) for name, problem in used if problem]
    if not failed:
        return Row("green", "torch.compile finds its compiler")
    name, problem = failed[0]
    return Row("red", f"{name}: {problem}", "what the line names, or engine.compile=false")


def _look() -> Compiler:
    on_gpu = torch.cuda.is_available()
    return on_gpu, compiler_problem("cuda" if on_gpu else "cpu") or ""

"""Package versions: within the project's ranges, without known-bad pairs, and the same on every rank."""

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from launch.doctor.cluster import Cluster, values
from launch.doctor.table import Row, State, worst

PACKAGES = ("torch", "deepspeed", "xformers", "webdataset", "zarr", "numcodecs", "numpy")
"""Packages shown in the row, with Python and the CUDA libraries; details list all packages required by the project."""

Versions = Mapping[str, str]
"""Installed versions by name: packages, and python, cuda, cudnn, nccl, driver."""


@dataclass(frozen=True)
class Bad:
    """Versions that don't work together; ``when`` applies if every name is installed and in its range."""

    when: dict[str, str]
    state: State
    what: str
    fix: str
    source: str


NEWER_CUDNN = (
    "pip install --no-deps nvidia-cudnn-cu12==9.20.0.48 (cu13 with CUDA 13); unset LD_LIBRARY_PATH if it names another "
    "CUDA, which hides the wheel's"
)

KNOWN_BAD = (
    Bad(
        {"torch": "==2.9.0", "cudnn": ">=0"},
        "red",
        "torch 2.9.0 disables cuDNN's bf16 conv3d: 3 to 17 times the memory and far slower",
        "torch 2.10 or newer",
        "pytorch #166643, #166122, #174051",
    ),
    Bad(
        {"cudnn": ">=9.8,<9.11"},
        "red",
        "cuDNN 9.8 to 9.10 give wrong conv3d results",
        NEWER_CUDNN,
        "pytorch #163539",
    ),
    Bad(
        {"cudnn": "<9.15.1"},
        "yellow",
        "cuDNN before 9.15.1: attention fails at lengths that 128 does not divide; torch uses a slower one on H100",
        NEWER_CUDNN,
        "pytorch #169849",
    ),
    Bad(
        {"torch": "==2.5.0", "cudnn": ">=0"},
        "red",
        "torch 2.5.0 prefers cuDNN's attention, which was reverted for its bugs",
        "torch 2.10 or newer",
        "pytorch #138522, #138529, #139298",
    ),
    Bad(
        {"xformers": ">=0.0.34", "torch": "<2.10"},
        "red",
        "xformers 0.0.34 and newer are built for the stable ABI of torch 2.10",
        "torch 2.10 or newer, or no xformers (model.attention falls back to torch's)",
        "xformers 0.0.34 release notes",
    ),
    Bad(
        {"xformers": "==0.0.33.*", "torch": "!=2.9.*"},
        "red",
        "xformers 0.0.33 is built only for torch 2.9",
        "xformers 0.0.35 or newer",
        "xformers 0.0.33 release notes",
    ),
    Bad(
        {"numcodecs": "<=0.16.6", "zfpy": ">=1.0.1.post0"},
        "red",
        "importing numcodecs 0.16.6 crashes on zfpy's version 1.0.1.post0",
        "pip uninstall zfpy",
        "tried: ValueError for int('post0')",
    ),
    Bad(
        {"deepspeed": "<0.19.3"},
        "red",
        "DeepSpeed before 0.19.3 breaks activation checkpointing with frozen weights and has other silent defaults",
        "deepspeed 0.19.8 or newer",
        "DeepSpeed #8148, #8068, #8035",
    ),
    Bad(
        {"deepspeed": "<0.18.8"},
        "red",
        "DeepSpeed before 0.18.8: overlap_comm can give NaN or wrong losses",
        "deepspeed 0.19.8 or newer",
        "DeepSpeed #7898, #7188",
    ),
)


def check(cluster: Cluster) -> Row:
    """Check rank 0's versions against the ranges and the known-bad pairs, and every other rank's against rank 0's."""
    answers = cluster.everywhere(find_versions)
    failure = cluster.failure(answers)
    if failure:
        return Row("red", failure, "install the project and its requirements there")
    per_rank = values(answers)
    return judge(per_rank, _requirements(), [cluster.name(rank) for rank in range(cluster.size)])


def judge(per_rank: Sequence[Versions], requirements: Sequence[str], names: Sequence[str]) -> Row:
    """Return the row for the versions of the ranks with these names."""
    own_versions = per_rank[0]
    bad = known_bad(own_versions)
    problems = out_of_range(own_versions, requirements)
    differing = differences(per_rank, names)
    shown = ("python", *PACKAGES, "cuda", "cudnn", "nccl", "driver")
    found = [", ".join(f"{name} {own_versions[name]}" for name in shown if name in own_versions)]
    found += problems + [f"{entry.what} ({entry.source})" for entry in bad] + differing
    fixes = [_install(problems, requirements)] if problems else []
    fixes += [entry.fix for entry in bad] + (["the same environment on every host"] if differing else [])
    state = worst("red" if problems or differing else "green", *(entry.state for entry in bad))
    details = "\n".join(f"{name} {version}" for name, version in sorted(own_versions.items()))
    return Row(state, "; ".join(found), "; ".join(dict.fromkeys(fixes)), details)


def find_versions() -> dict[str, str]:
    """Return the versions that are installed and loaded in this process."""
    import torch

    versions = {"python": platform.python_version()}
    for name in {*PACKAGES, "zfpy", "spectralforge", *(Requirement(text).name for text in _requirements())}:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    versions["torch"] = torch.__version__  # version of the imported torch, with its build (+cpu)
    if torch.version.cuda:
        versions |= {"cuda": torch.version.cuda, "nccl": ".".join(map(str, torch.cuda.nccl.version()))}
    cudnn = torch.backends.cudnn.version()
    if cudnn:
        versions["cudnn"] = cudnn_version(cudnn)
    return versions | _driver()


def cudnn_version(number: int) -> str:
    """Return cuDNN's version as text: ``91002`` is 9.10.2, and ``8902`` (before cuDNN 9) is 8.9.2."""
    major, rest = divmod(number, 10000 if number >= 90000 else 1000)
    return f"{major}.{rest // 100}.{rest % 100}"


def known_bad(versions: Versions) -> list[Bad]:
    """Return the rows of the table that apply to these versions."""
    return [bad for bad in KNOWN_BAD if all(_within(versions, name, range_) for name, range_ in bad.when.items())]


def out_of_range(versions: Versions, requirements: Sequence[str]) -> list[str]:
    """Return the requirements (``Requires-Dist`` lines) that are missing or out of range."""
    problems = []
    for requirement in map(Requirement, requirements):
        optional = requirement.marker is not None and "extra" in str(requirement.marker)
        if requirement.name in versions:
            if not _within(versions, requirement.name, str(requirement.specifier)):
                problems.append(f"{requirement.name} {versions[requirement.name]} is not {requirement.specifier}")
        elif not optional:
            problems.append(f"{requirement.name} is not installed")
    return problems


def _install(problems: Sequence[str], requirements: Sequence[str]) -> str:
    """Return the command that installs the requirements found by `out_of_range`."""
    names = {problem.split()[0] for problem in problems}
    packages = [
        f"'{requirement.name}{requirement.specifier}'"
        for requirement in map(Requirement, requirements)
        if requirement.name in names - {"python"}
    ]
    return f"pip install {' '.join(packages)}" if packages else "another Python"


def differences(per_rank: Sequence[Versions], names: Sequence[str]) -> list[str]:
    """Return the ranks whose versions differ from rank 0's, with the first difference of each."""
    lines = []
    for name, versions in zip(names[1:], per_rank[1:], strict=True):
        differing = [key for key in sorted({*per_rank[0], *versions}) if per_rank[0].get(key) != versions.get(key)]
        if differing:
            on_main, on_rank = (each.get(differing[0], "none") for each in (per_rank[0], versions))
            lines.append(f"{name} has {differing[0]} {on_rank}, but {names[0]} has {on_main}")
    return lines


def _within(versions: Versions, name: str, range_: str) -> bool:
    return name in versions and SpecifierSet(range_).contains(versions[name], prereleases=True)


def _requirements() -> list[str]:
    """Return the version ranges of setup.cfg as installed, without development extras."""
    lines = metadata.requires("spectralforge") or []
    python = metadata.metadata("spectralforge")["Requires-Python"]
    required = [line for line in lines if "extra ==" not in line or 'extra == "gpu"' in line]
    return [*required, f"python{python}"]


def _driver() -> dict[str, str]:
    """Return the NVIDIA driver's version by name; empty without a driver."""
    path = Path("/proc/driver/nvidia/version")
    match = re.search(r"\b(\d{3}\.\d+[\d.]*)\b", path.read_text()) if path.exists() else None
    return {"driver": match[1]} if match else {}

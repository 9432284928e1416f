"""GPUs and their nodes. Figures are from the vendors unless a comment says otherwise; none was measured here."""

import difflib
from dataclasses import dataclass, replace

from pretrain.metrics.peaks import PEAKS
from shards.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """A GPU and its share of a node.

    Attributes:
        name: display name.
        memory: bytes of memory visible to torch.
        flops: dense peak FLOP/s by precision, ``bf16`` and ``fp32``.
        hbm: memory bandwidth in bytes/s.
        nvlink: bus bandwidth of a collective inside a node, in bytes/s.
        nic: one GPU's share of its node's network bandwidth, in bytes/s.
        gpus: GPUs per node.
        cores: cores per node.
    """

    name: str
    memory: float
    flops: dict[str, float]
    hbm: float
    nvlink: float
    nic: float
    gpus: int
    cores: int

    def peak(self, precision: str) -> float:
        """Return the peak FLOP/s at a run's precision."""
        return self.flops["fp32" if precision == "fp32" else "bf16"]


def _a100(name: str, memory: float, hbm: float) -> Machine:
    return Machine(name, memory * GIB, _peaks("A100"), hbm, 235e9, 25e9, 8, 128)


def _hopper(name: str, memory: float, hbm: float) -> Machine:
    return Machine(name, memory * GIB, _peaks("H100"), hbm, 361e9, 50e9, 8, 112)


def _peaks(device: str) -> dict[str, float]:
    return dict(zip(("bf16", "fp32"), PEAKS[device], strict=True))


MACHINES = {
    "a100-40": _a100("A100 40 GB", 39.4, 1.555e12),
    "a100-80": _a100("A100 80 GB", 79.2, 2.0e12),
    "h100": _hopper("H100 80 GB", 79.1, 3.35e12),
    "h200": _hopper("H200 141 GB", 139.8, 4.8e12),
}
"""Machines by the name of --gpu. Bus bandwidths are published all-gather rates on 8 GPUs (stas00/ml-engineering)."""

NAMES = (*MACHINES, "custom")


def find_machine(name: str, custom: dict[str, float | None], cores: int | None) -> Machine:
    """Return a machine from the table, or the one that flags describe.

    Args:
        name: value of --gpu.
        custom: values of --gpu-memory (GB), --gpu-tflops, --gpu-hbm (GB/s), --gpu-nvlink (GB/s) and --gpu-nic (GB/s).
        cores: cores per node; None uses the usual number.

    Raises:
        ConfigError: the name is unknown, or a custom GPU lacks a figure.
    """
    if name != "custom":
        if name not in MACHINES:
            near = difflib.get_close_matches(name.lower(), NAMES, 1, 0.4)
            raise ConfigError(f"--gpu {name}: {f'did you mean {near[0]}? ' if near else ''}known: {', '.join(NAMES)}")
        given = [flag for flag, value in custom.items() if value is not None]
        if given:
            raise ConfigError(f"{given[0]}: it applies only to --gpu custom; {name} has its own figures")
        machine = MACHINES[name]
        return machine if cores is None else replace(machine, cores=cores)
    for flag, value in custom.items():
        if value is None or value <= 0:
            raise ConfigError(f"--gpu custom needs {flag} with a positive number, as well as {', '.join(custom)}")
    memory, tflops, hbm, nvlink, nic = (float(value or 0) for value in custom.values())
    flops = {"bf16": tflops * 1e12, "fp32": tflops * 1e12}
    return Machine("custom GPU", memory * 1e9, flops, hbm * 1e9, nvlink * 1e9, nic * 1e9, 8, cores or 64)

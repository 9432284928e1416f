"""Parts of a step that run on GPUs as kernels of our own, with less traffic than the traced operations."""

from typing import cast

from launch.planner.kernel_costs import BANDWIDTH_SHARE
from launch.planner.machines import Machine
from pretrain.config import PretrainConfig
from pretrain.config.objective import MaeConfig

PATCHED_BYTES = 4  # per value of a view: read and written in the order of patches
ERROR_BYTES = 10  # per decoded value: prediction and target are read, the gradient is written and scaled


def fused_seconds(config: PretrainConfig, bands: int, machine: Machine) -> dict[str, float]:
    """Return the seconds of a micro batch's parts that are kernels of our own; none with spectral angles or in fp32."""
    mae = cast(MaeConfig, config.objective)
    if config.engine.precision == "fp32" or mae.spectral_angle:
        return {}
    values = config.train.micro_batch * bands * config.model.image_size**2
    moved = values * (PATCHED_BYTES + ERROR_BYTES * mae.mask_ratio * mae.decode_share)
    return {"loss": moved / (BANDWIDTH_SHARE * machine.hbm)}

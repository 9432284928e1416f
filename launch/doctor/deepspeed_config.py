"""DeepSpeed's interpretation of the run's config: no relevant key may depend on the defaults of its version."""

import json
from collections.abc import Mapping
from typing import Any

import torch

from launch.doctor.cluster import Cluster
from launch.doctor.table import Row
from pretrain.config import PretrainConfig
from pretrain.engine.zero import deepspeed_config
from pretrain.models.registry import build_encoder
from shards.errors import ConfigError

MUST_BE_SET = {
    "train_micro_batch_size_per_gpu": "",
    "gradient_accumulation_steps": "",
    "gradient_clipping": "0 before DeepSpeed 0.19.3, 1.0 since (#8068)",
    "data_types.grad_accum_dtype": "dtype in which gradients of micro batches are accumulated",
    "bf16.check_grad_overflow": "false before DeepSpeed 0.19.3, true since (#8035)",
    "zero_optimization.stage": "",
    "zero_optimization.overlap_comm": "true for stage 3, else false",
    "zero_optimization.contiguous_gradients": "",
    "zero_optimization.reduce_scatter": "",
    "zero_optimization.reduce_bucket_size": "5e8: a gigabyte of bf16 on every device",
    "zero_optimization.allgather_bucket_size": "5e8",
    "zero_optimization.stage3_prefetch_bucket_size": "5e7 in the code, 5e8 in the documentation",
    "zero_optimization.stage3_param_persistence_threshold": "1e5: gathered one by one after each step",
    "zero_optimization.stage3_max_live_parameters": "",
    "zero_optimization.stage3_max_reuse_distance": "",
    "zero_optimization.sub_group_size": "",
    "timers.throughput.enabled": "true: waits for the device twice per micro batch",
}
"""Keys that `deepspeed_config` must set, and the effect of leaving each out."""

_NAMES = {
    name: f"stage3_{name}"
    for name in (
        "prefetch_bucket_size",
        "param_persistence_threshold",
        "model_persistence_threshold",
        "max_live_parameters",
        "max_reuse_distance",
    )
} | {"gather_16bit_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save"}
"""Names of DeepSpeed's ZeRO fields that differ from their keys in the dict."""

_FIX = "set it in pretrain/engine/zero.py, deepspeed_config"


def check(cluster: Cluster) -> Row:
    """Compare the run's dict with DeepSpeed's interpretation of it."""
    config = cluster.config
    try:
        accumulation = config.accumulation(cluster.size)
    except ValueError as error:
        return Row("red", str(error), "another train.global_batch, train.micro_batch or number of processes")
    engine = config.engine.sized(_parameters(config))
    passed = deepspeed_config(engine, config.train.micro_batch, accumulation, config.optim.clip)
    unset = left_to_defaults(passed)
    if unset:
        lines = [f"{key} is left to DeepSpeed's default" + (f" ({why})" if why else "") for key, why in unset.items()]
        return Row("red", "; ".join(lines), _FIX, json.dumps(passed, indent=2))
    parsed = _parse(passed)
    changed = misread(passed, parsed)
    details = (
        json.dumps(passed, indent=2) + "\nleft to DeepSpeed's defaults:\n" + json.dumps(_rest(passed, parsed), indent=2)
    )
    if changed:
        return Row("red", "; ".join(changed), _FIX, details)
    batch = f"global batch {config.train.global_batch} = {config.train.micro_batch} x {cluster.size} x {accumulation}"
    return Row("green", f"{batch}, {describe(config, passed)}; all {len(required_keys(passed))} set", "", details)


def _parameters(config: PretrainConfig) -> int:
    """Return the number of the encoder's parameters, which are most of the trained ones."""
    model = config.model
    with torch.device("meta"):
        encoder = build_encoder(model.name, model.image_size, model.patch_size)
    return sum(parameter.numel() for parameter in encoder.parameters())


def required_keys(given: Mapping[str, Any]) -> list[str]:
    """Return the keys of MUST_BE_SET that this run's precision needs."""
    return [key for key in MUST_BE_SET if not key.startswith("bf16.") or "bf16" in given]


def left_to_defaults(given: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys that the dict lacks, with DeepSpeed's default for each."""
    return {key: MUST_BE_SET[key] for key in required_keys(given) if _lookup(given, key) is None}


def describe(config: PretrainConfig, given: Mapping[str, Any]) -> str:
    """Return the relevant settings as text."""
    zero = given["zero_optimization"]
    buckets = ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size")
    sizes = "/".join(f"{zero[bucket] / 1e6:g}" for bucket in buckets)
    overlap = "on" if zero["overlap_comm"] else "off"
    return (
        f"ZeRO stage {zero['stage']}, {config.engine.precision}, clipping {given['gradient_clipping']:g}, "
        f"{given['data_types']['grad_accum_dtype']} accumulation, overlap_comm {overlap}, "
        f"reduce/all-gather/prefetch buckets of {sizes} M"
    )


def misread(given: Mapping[str, Any], parsed: Mapping[str, Any]) -> list[str]:
    """Return the values that DeepSpeed interprets differently from the dict."""
    pairs = [(key, _lookup(given, key), _lookup(parsed, key)) for key in required_keys(given)]
    return [
        f"{key} is set to {value}, but DeepSpeed reads {interpreted}"
        for key, value, interpreted in pairs
        if value != interpreted
    ]


def _parse(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return DeepSpeed's interpretation of a dict, including defaults, under the names of the dict.

    Raises:
        ConfigError: DeepSpeed rejects the dict.
    """
    from pretrain.engine.deepspeed_adapter import read_config

    try:
        parsed = read_config(json.loads(json.dumps(given)))
    except Exception as error:  # DeepSpeed's assertions and pydantic's errors
        raise ConfigError(f"DeepSpeed refuses the config: {' '.join(str(error).split())}") from None
    zero = {_NAMES.get(name, name): value for name, value in parsed.zero_config.model_dump(mode="json").items()}
    return {
        "train_micro_batch_size_per_gpu": parsed.train_micro_batch_size_per_gpu,
        "gradient_accumulation_steps": parsed.gradient_accumulation_steps,
        "gradient_clipping": parsed.gradient_clipping,
        "data_types": {"grad_accum_dtype": parsed.grad_accum_dtype},
        "bf16": parsed.bfloat16_config.model_dump(mode="json"),
        "zero_optimization": zero,
        "timers": {"throughput": parsed.timers_config.model_dump(mode="json")},
    }


def _rest(given: Mapping[str, Any], parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that DeepSpeed filled in."""
    zero = parsed["zero_optimization"]
    return {name: value for name, value in zero.items() if name not in given["zero_optimization"]}


def _lookup(given: Mapping[str, Any], key: str) -> Any:
    value: Any = given
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value

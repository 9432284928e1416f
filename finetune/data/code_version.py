"""The version of the code that a result comes from: a hash of each source file that computes something.

Comments, docstrings and blank lines do not count. Files that only read, write or report are left out: their
output is hashed by content.
"""

import ast
import hashlib
import io
import tokenize
from functools import cache
from pathlib import Path
from typing import Literal

from shards.config import REPOSITORY
from shards.plugins import plugin_files

Stage = Literal["reading", "features", "heads", "tuning", "baselines"]

READING = (
    "finetune/data/folders.py",
    "finetune/data/label_rasters.py",
    "finetune/data/tables.py",
    "shards/sensors/band_metadata.py",
    "shards/sources/digital_numbers.py",
    "shards/sources/geotiff.py",
    "shards/sources/raster.py",
    "shards/sensors/sensor.py",
)
"""Code that turns the file of an image into an array."""

FEATURES = (
    "finetune/data/datasets.py",
    "finetune/encoders/band_sets.py",
    "finetune/encoders/features.py",
    "finetune/encoders/function_encoder.py",
    "finetune/encoders/images.py",
    "finetune/encoders/model_file.py",
    "finetune/encoders/raw_spectra.py",
    "finetune/heads/inputs.py",
    *(
        f"pretrain/models/{name}.py"
        for name in (
            "adapter",
            "attention",
            "batchnorm",
            "compilation",
            "encoder",
            "fused_block",
            "fused_wave",
            "layer_maps",
            "normalize",
            "patches",
            "published",
            "registry",
            "resnet",
            "spectral_eager",
            "spectral_features",
            "spectral_fused",
            "spectral_layers",
            "spectral_moments",
            "spectral_parts",
            "spectrum",
            "stem",
            "transformer",
            "unit",
            "vit",
            "wave",
        )
    ),
    "pretrain/kernels/bias_sums.py",
    "pretrain/kernels/launching.py",
    "pretrain/kernels/normalize.py",
    "pretrain/kernels/residual_norm.py",
    "pretrain/kernels/stem.py",
    "pretrain/kernels/stem_backward.py",
    "pretrain/kernels/stem_moments.py",
    "pretrain/kernels/stem_weights.py",
    "pretrain/kernels/wave.py",
    "pretrain/weights/resample.py",
)
"""Code that turns the array of an image into the encoder's features."""

HEADS = (
    *FEATURES,
    "finetune/data/batches.py",
    "finetune/data/few_shots.py",
    "finetune/evaluation/collector.py",
    "finetune/evaluation/context.py",
    "finetune/evaluation/neighbors.py",
    "finetune/evaluation/selection.py",
    "finetune/heads/build.py",
    "finetune/heads/dense.py",
    "finetune/heads/multilayer.py",
    "finetune/heads/pooled.py",
    "finetune/losses/classes.py",
    "finetune/losses/dice.py",
    "finetune/losses/loss.py",
    "finetune/losses/targets.py",
    "finetune/metrics/calibration.py",
    "finetune/metrics/scores.py",
    "finetune/protocols/frozen.py",
    "finetune/protocols/knn.py",
    "finetune/protocols/outcome.py",
    "finetune/protocols/runner.py",
    "finetune/protocols/same_place.py",
    "finetune/tasks/__init__.py",
    *(
        f"finetune/tasks/kinds/{name}.py"
        for name in (
            "classes",
            "classification",
            "kind",
            "multilabel",
            "pixel_regression",
            "regression",
            "segmentation",
            "targets",
        )
    ),
    "pretrain/loop/nearest.py",
    "pretrain/models/initialize.py",
    "pretrain/engine/optimizers.py",
    "pretrain/engine/schedules.py",
    "shards/order/random_bits.py",
)
"""Code that turns features into scores."""

TUNING = (
    *HEADS,
    "finetune/protocols/full.py",
    "finetune/protocols/training_batches.py",
    "finetune/protocols/tuned_model.py",
    "finetune/protocols/epoch_evaluation.py",
    "pretrain/loop/loop.py",
    "pretrain/data/augment.py",
    "pretrain/data/draws.py",
    "pretrain/engine/compiled_units.py",
    "pretrain/engine/deepspeed_adapter.py",
    "pretrain/engine/gradients.py",
    "pretrain/engine/leaf_modules.py",
    "pretrain/engine/sharding.py",
    "pretrain/engine/zero.py",
    "pretrain/resilience/guard.py",
    "pretrain/models/activation_checkpointing.py",
    "pretrain/models/lora.py",
)
"""Code that turns the array of an image into scores, through an encoder that is trained."""

BASELINES = (*HEADS, "finetune/baselines/models.py", "finetune/protocols/baseline.py")
"""Code that turns the array of an image into scores, without an encoder."""

STAGES: dict[Stage, tuple[str, ...]] = {
    "reading": READING,
    "features": FEATURES,
    "heads": HEADS,
    "tuning": TUNING,
    "baselines": BASELINES,
}


def code_version(stage: Stage) -> dict[str, str]:
    """Return a hash of each source file of a stage, by path, and of each plugin."""
    files = {name: REPOSITORY / name for name in STAGES[stage]} | plugin_files()
    return {name: source_hash(path) for name, path in files.items()}


@cache
def source_hash(path: Path) -> str:
    """Return the hash of a Python file's statements."""
    return hashlib.sha256("\n".join(statements(path.read_text(encoding="utf-8"))).encode()).hexdigest()[:16]


def statements(source: str) -> list[str]:
    """Return the lines of a source without comments, docstrings and blank lines.

    The text itself is used, since dumps of the syntax tree differ between versions of Python.
    """
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for row in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                lines[row - 1] = ""
    return [line.rstrip() for line in lines if line.strip()]

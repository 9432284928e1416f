"""Encoders with the published parameter names; torch, numpy and safetensors only, so they load on a laptop.

The public surface: `build_encoder`, `load_encoder`, `from_pretrained`, `save_encoder`, `PretrainedEncoder`,
`EncoderDescription`, `Normaliser`.
"""

from pretrain.models.description import EncoderDescription, WeightsError
from pretrain.models.hub import from_pretrained
from pretrain.models.normalise import Normaliser
from pretrain.models.pretrained import PretrainedEncoder
from pretrain.models.registry import ENCODERS, build_encoder
from pretrain.models.weights import load_encoder, save_encoder

__all__ = [
    "ENCODERS",
    "EncoderDescription",
    "Normaliser",
    "PretrainedEncoder",
    "WeightsError",
    "build_encoder",
    "from_pretrained",
    "load_encoder",
    "save_encoder",
]

"""Encoders with the published parameter names; torch only, so they load on a laptop.

The public surface: `build_encoder`, `load_encoder`, `save_encoder`, `encode`,
`EncoderDescription`, `Normaliser`.
"""

from pretrain.models.normalise import Normaliser
from pretrain.models.registry import ENCODERS, build_encoder
from pretrain.models.weights import EncoderDescription, encode, load_encoder, save_encoder

__all__ = ["ENCODERS", "EncoderDescription", "Normaliser", "build_encoder", "encode", "load_encoder", "save_encoder"]

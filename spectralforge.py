"""SpectralForge for notebooks: open a folder of shards, load an exported encoder, encode tiles.

>>> import spectralforge
>>> tiles = spectralforge.open_dataset("demo/shards-demo")
>>> encoder, description = spectralforge.load_encoder("encoder.safetensors")
>>> features = spectralforge.encode(encoder, description, tiles[0][None])  # (1, D)
"""

from pretrain.models import encode, load_encoder
from shards.reader import open_dataset

__all__ = ["encode", "load_encoder", "open_dataset"]

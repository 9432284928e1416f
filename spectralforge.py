"""SpectralForge for notebooks: open a folder of shards, load an exported encoder, encode tiles.

>>> import spectralforge
>>> encoder, description = spectralforge.load_encoder("runs/demo/encoder.safetensors")
>>> features = spectralforge.encode(encoder, description, tiles)   # int16 tiles in, (B, D) out
"""

from typing import Any

__all__ = ["encode", "load_encoder", "open_dataset"]


def __getattr__(name: str) -> Any:
    # Resolved on first use: reading shards must not load torch.
    if name == "open_dataset":
        from shards.reader import open_dataset as found
    elif name in ("encode", "load_encoder"):
        import pretrain.models

        found = getattr(pretrain.models, name)
    else:
        raise AttributeError(f"module 'spectralforge' has no attribute '{name}'")
    return found

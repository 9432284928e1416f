"""SpectralForge for notebooks: load an encoder, encode tiles, open shards.

>>> import spectralforge
>>> encoder = spectralforge.load_encoder("runs/demo")  # a file, a folder, a run or a URL
>>> tiles = spectralforge.open_dataset("demo/shards-demo")  # a torch Dataset of int16 tiles
>>> features = encoder.encode(tiles[0], tiles.wavelength_nm)  # float32 (1, D)
>>> with spectralforge.open_raster("scene.dat") as raster:  # a product, GeoTIFF, ENVI, a URL
...     features = encoder.encode(raster.read()[:, :32, :32], raster.wavelength_nm)
>>> theirs = spectralforge.resample(cube, wavelengths_nm, fwhm_nm, to=encoder)  # of another sensor, for encode

Loading and encoding need torch, numpy and safetensors; shards and rasters need the whole installation.
"""

from typing import TYPE_CHECKING, Any

from pretrain.weights.pretrained import PretrainedEncoder
from pretrain.weights.pretrained import load_pretrained as load_encoder
from pretrain.weights.resample import resample

if TYPE_CHECKING:
    from pretrain.data.tile_tensors import open_dataset as open_dataset
    from shards.sources.images import open_image as open_raster

from_pretrained = load_encoder

__all__ = ["PretrainedEncoder", "from_pretrained", "load_encoder", "open_dataset", "open_raster", "resample"]


def __getattr__(name: str) -> Any:
    if name == "open_dataset":
        from pretrain.data.tile_tensors import open_dataset

        return open_dataset
    if name == "open_raster":
        from shards.sources.images import open_image

        return open_image
    raise AttributeError(f"module 'spectralforge' has no attribute '{name}'")

"""The smallest registered encoder, with random weights and a description, for tests of files and caches."""

from pretrain.models.initialize import initialize
from pretrain.models.registry import build_encoder
from pretrain.models.vit import SpecViT
from pretrain.weights.description import EncoderDescription

BANDS, SIZE = 80, 8


def small_encoder(seed: int = 1, patch_size: int = 4) -> SpecViT:
    """Return spec_vit_tiny for 8 px images, in evaluation mode."""
    encoder = build_encoder("spec_vit_tiny", SIZE, patch_size)
    initialize(encoder, "small", seed)
    return encoder.eval()


def small_description(**changes: object) -> EncoderDescription:
    """Return the description of ``small_encoder`` with some fields changed."""
    values = {
        "architecture": "spec_vit_tiny",
        "image_size": SIZE,
        "patch_size": 4,
        "sensor": "enmap",
        "wavelength_nm": [400.25 + 6.5 * band for band in range(BANDS)],
        "fwhm_nm": [6.0] * BANDS,
        "mu": [1000.0 + band / 3 for band in range(BANDS)],
        "sigma": [300.0 + band / 7 for band in range(BANDS)],
        "objective": "mae",
        "samples_seen": 12345,
        "dataset": "f" * 64,
        "version": "0.1.0",
    }
    return EncoderDescription(**(values | changes))

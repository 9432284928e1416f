"""The last layer of a masked autoencoder's decoder by wavelength: predictions for any bands that are asked for."""

from torch import Tensor, nn

from pretrain.models.spectrum import Spectrum
from pretrain.models.wave import BandEmbedding, band_features

FACTORS = 64
"""Numbers of a pixel whose products with vectors of bands are its predicted spectrum."""


class BandPrediction(nn.Module):
    """Maps tokens to factors of their pixels, and these to the bands asked for, seen by the encoder or not.

    Args:
        width: of tokens.
        pixels: of a patch.
    """

    def __init__(self, width: int, pixels: int) -> None:
        super().__init__()
        self.factors = nn.Linear(width, pixels * FACTORS)
        self.embedding = BandEmbedding(FACTORS)

    def forward(self, tokens: Tensor, bands: Spectrum) -> Tensor:
        """Map (B, M, width) to (B, M, pixels * C), pixel by pixel; 0 for bands without width."""
        vectors = self.embedding.run(band_features(bands.center_nm, bands.fwhm_nm))
        vectors = vectors * bands.present[..., None] / FACTORS**0.5
        factors = self.factors(tokens)
        spectra = factors.view(len(vectors), -1, FACTORS) @ vectors.transpose(1, 2).to(factors.dtype)
        return spectra.view(*tokens.shape[:2], -1)

    def flops(self, bands: int) -> int:
        """Operations of a forward on one token; those on bands are the same for all tokens, and left out."""
        return 2 * self.factors.weight.numel() + 2 * self.factors.out_features * bands

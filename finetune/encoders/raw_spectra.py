"""The baseline without a network: the mean spectrum of each patch."""

from torch import Tensor
from torch.nn import functional as F

from pretrain.models.encoder import Encoder

RAW = "raw_spectra"
"""Its architecture in results."""


class RawSpectra(Encoder):
    """Mean normalized spectra as features, without weights.

    Args:
        bands: C, number of bands and of features.
        stride: side of a patch in pixels; maps have the resolution of the encoder that they are compared with.
    """

    def __init__(self, bands: int, stride: int) -> None:
        super().__init__()
        self.bands = self.feature_dim = bands
        self.stride = self.size_multiple = stride

    def _pooled(self, images: Tensor) -> Tensor:  # type: ignore[override]  # evaluations have images of one size
        return images.mean((2, 3))

    def _map(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, self.stride)

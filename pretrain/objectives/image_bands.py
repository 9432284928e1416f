"""What the bands of a micro batch are, for modules that take images of several sensors."""

from typing import NamedTuple

from torch import Tensor

from pretrain.models.spectrum import Spectrum


class ImageBands(NamedTuple):
    """The bands of B images; nothing where all images have the bands of one sensor.

    Attributes:
        sources: int64 (B,), whose statistics normalize int16 images; None for one source.
        seen: what the encoder gets, by wavelength; None for its default.
        wanted: what the decoder predicts, by wavelength, of the images' own C bands: a width of 0 is no target; None
            for the default of the encoder.
    """

    sources: Tensor | None = None
    seen: Spectrum | None = None
    wanted: Spectrum | None = None

    def targets(self, batch: int) -> Tensor | None:
        """Return which bands are targets, float32 (B, C), or None for all without wavelengths."""
        if self.wanted is None:
            return None
        present = self.wanted.present
        return present.float().repeat_interleave(batch // len(present), 0)


ALL_BANDS = ImageBands()
"""All images have the same bands, and all of these are seen and predicted."""

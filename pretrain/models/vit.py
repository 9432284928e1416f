"""Vision transformers: Spec. ViT (SpectralEarth, arXiv 2408.08447) and the plain ViT it is compared with.

Shapes in comments: B samples, T tokens of the grid, V visible tokens, D width, C bands, p patch size.
"""

from abc import abstractmethod
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from pretrain.models.adapter import SpectralAdapter
from pretrain.models.attention import Backend
from pretrain.models.encoder import Encoder, layer_numbers
from pretrain.models.flops import Parts, times
from pretrain.models.layer_maps import LayerShape
from pretrain.models.patches import patchify, sincos_positions
from pretrain.models.spectrum import Spectra, Spectrum, each_spectrum
from pretrain.models.stem import Stem
from pretrain.models.transformer import Grid, VisionTransformer


class ViTEncoder(Encoder):
    """The encoder's interface on top of a VisionTransformer.

    Attributes:
        image_size, patch_size: in pixels, of the image that positions are for.
        grid: patches per side of that image.
        core: the transformer.
        stem: in front of the patches; None if the transformer takes the bands themselves.
    """

    image_size: int
    patch_size: int
    grid: int
    is_transformer = True

    @property
    @abstractmethod
    def core(self) -> VisionTransformer: ...

    @property
    @abstractmethod
    def stem(self) -> Stem | None: ...

    @property
    def size_multiple(self) -> int:  # type: ignore[override]
        return self.patch_size

    @abstractmethod
    def _transform(
        self,
        batches: list[Tensor],
        grids: list[Grid],
        ids: Tensor | None,
        spectra: Spectra = None,
        blocks: Collection[int] = (),
    ) -> list[Tensor]:
        """Map patches of pixels (B, V, p*p, C) to tokens, as VisionTransformer.forward does patches of features."""

    def tokens(self, patches: Tensor, ids: Tensor | None = None, spectrum: Spectrum | None = None) -> Tensor:
        """Compute all tokens (B, 1 + V, D) of V patches of normalized pixels (B, V, p*p, C) at grid ``ids`` (B, V).

        Only these patches go through the stem: for MAE, 4 to 10 times less work than the whole image.
        """
        return self(patches, "tokens", ids, spectrum)

    def _pooled(self, images: Tensor | Sequence[Tensor], spectra: Spectra = None) -> Tensor:
        """Return class tokens."""
        sizes = [images] if isinstance(images, Tensor) else list(images)
        grids = [self._grid_of(images_of_size) for images_of_size in sizes]
        patches = [patchify(images_of_size, self.patch_size) for images_of_size in sizes]
        return torch.cat([tokens[:, 0] for tokens in self._transform(patches, grids, None, spectra)])

    def _map(self, images: Tensor, spectrum: Spectrum | None = None) -> Tensor:
        grid = self._grid_of(images)
        tokens = self._transform([patchify(images, self.patch_size)], [grid], None, spectrum)[0]
        return _as_map(tokens[:, 1:], grid)

    def _tokens(self, patches: Tensor, ids: Tensor | None, spectrum: Spectrum | None = None) -> Tensor:
        return self._transform([patches], [(self.grid, self.grid)], ids, spectrum)[0]

    def _layer_outputs(
        self, images: Tensor, n: int | Sequence[int], norm: bool, *spectrum: Spectrum
    ) -> list[tuple[Tensor, Tensor | None]]:
        numbers, grid = layer_numbers(n, len(self.core.blocks)), self._grid_of(images)
        patches, bands = [patchify(images, self.patch_size)], spectrum[0] if spectrum else None
        outputs = self._transform(patches, [grid], None, bands, numbers)
        if norm:
            outputs = [self.core.norm(x) for x in outputs]
        by_number = dict(zip(sorted(set(numbers)), outputs, strict=True))
        return [(_as_map(by_number[number][:, 1:], grid), by_number[number][:, :1]) for number in numbers]

    def _grid_of(self, images: Tensor) -> Grid:
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"images of {height} x {width} px can't be divided into patches of {self.patch_size} px")
        return height // self.patch_size, width // self.patch_size

    def layer_shapes(self) -> list[LayerShape]:
        return [LayerShape(self.feature_dim, self.stride)] * len(self.core.blocks)

    def parameter_layers(self) -> list[list[nn.Parameter]]:
        """Stem, embedding and positions, then the blocks; the final norm is in none."""
        core = self.core
        lowest = [] if self.stem is None else list(self.stem.parameters())
        lowest += [*core.parameters(recurse=False), *core.patch_embed.parameters()]
        return [lowest, *(list(block.parameters()) for block in core.blocks)]

    def residual_blocks(self) -> list[nn.Module]:
        return list(self.core.blocks)

    def use_sincos_positions(self) -> None:
        self.core.pos_embed.data.copy_(sincos_positions(self.feature_dim, self.grid))

    def flops(self, bands: int, image_size: int, visible: int | None = None) -> Parts:
        patches = self._count_patches(image_size, visible)
        stem = {} if self.stem is None else {"stem": patches * self.patch_size**2 * self.stem.flops(bands)}
        return stem | self.core.core_flops(patches)

    def training_flops(self, bands: int, image_size: int, visible: int | None = None) -> Parts:
        forward = self.flops(bands, image_size, visible)
        parts = times(3, forward)
        if not forward.get("stem") or self.stem is None:  # the pixels have no gradient
            return parts | {"patch_embed": 2 * forward["patch_embed"]}
        pixels = self._count_patches(image_size, visible) * self.patch_size**2
        return parts | {"stem": pixels * self.stem.training_flops(bands)}

    def recomputed_flops(
        self, bands: int, image_size: int, visible: int | None = None, checkpointing: bool = False
    ) -> int:
        patches = self._count_patches(image_size, visible)
        stem = 0 if self.stem is None else self.stem.recomputed_flops(bands, checkpointing)
        blocks = self.core.core_recomputed_flops(patches) if checkpointing else 0
        return patches * self.patch_size**2 * stem + blocks

    def _count_patches(self, image_size: int, visible: int | None) -> int:
        return (image_size // self.patch_size) ** 2 if visible is None else visible


def pixel_features(stem: Stem, patches: Tensor, spectrum: Spectrum | None = None) -> Tensor:
    """Map patches of pixels (B, V, p*p, C) to patches of features (B, V, p*p, channels)."""
    batch, visible, pixels, bands = patches.shape
    spectra = patches.reshape(batch, visible * pixels, bands)
    features = stem(spectra, spectrum) if stem.by_wavelength else stem(spectra)
    return features.view(batch, visible, pixels, stem.channels)


def _as_map(tokens: Tensor, grid: Grid) -> Tensor:
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


class SpecViT(ViTEncoder):
    """Spectral adapter and transformer.

    Args:
        image_size, patch_size: in pixels; the image is square, the patch divides it.
        width, depth, heads, mlp_hidden: of the transformer.
        bn_group: samples that share batch-norm statistics.
        backend: attention kernel.
        stem: in front of the patches; None for the spectral adapter. Its name is ``spectral_adapter`` in any case.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        mlp_hidden: int,
        bn_group: int | None = None,
        backend: Backend = "auto",
        stem: Stem | None = None,
    ) -> None:
        super().__init__()
        self.image_size, self.patch_size, self.stride = image_size, patch_size, patch_size
        self.feature_dim = width
        self.spectral_adapter = SpectralAdapter(bn_group) if stem is None else stem
        channels = self.spectral_adapter.channels
        self.vit_core = VisionTransformer(image_size, patch_size, channels, width, depth, heads, mlp_hidden, backend)
        self.bands, self.min_bands = self.spectral_adapter.bands, self.spectral_adapter.min_bands
        self.by_wavelength = self.spectral_adapter.by_wavelength
        self.grid = self.vit_core.grid

    @property
    def core(self) -> VisionTransformer:
        return self.vit_core

    @property
    def stem(self) -> Stem:
        return self.spectral_adapter

    def _transform(
        self,
        batches: list[Tensor],
        grids: list[Grid],
        ids: Tensor | None,
        spectra: Spectra = None,
        blocks: Collection[int] = (),
    ) -> list[Tensor]:
        pairs = zip(batches, each_spectrum(spectra, len(batches)), strict=True)
        features = [pixel_features(self.stem, patches, spectrum) for patches, spectrum in pairs]
        return self.vit_core(features, grids, ids, blocks)


class PlainViT(ViTEncoder, VisionTransformer):  # type: ignore[misc]  # forward and flops are the encoder's
    """A vision transformer on the bands themselves, without the adapter: the published baseline.

    Args:
        bands: C.
        image_size, patch_size, width, depth, heads, mlp_hidden, backend: as SpecViT's.
    """

    def __init__(
        self,
        bands: int,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        mlp_hidden: int,
        backend: Backend = "auto",
    ) -> None:
        VisionTransformer.__init__(self, image_size, patch_size, bands, width, depth, heads, mlp_hidden, backend)
        self.bands = bands
        self.image_size, self.patch_size, self.stride = image_size, patch_size, patch_size
        self.feature_dim = width

    @property
    def core(self) -> VisionTransformer:
        return self

    @property
    def stem(self) -> None:
        return None

    def _transform(
        self,
        batches: list[Tensor],
        grids: list[Grid],
        ids: Tensor | None,
        spectra: Spectra = None,
        blocks: Collection[int] = (),
    ) -> list[Tensor]:
        return VisionTransformer.forward(self, batches, grids, ids, blocks)

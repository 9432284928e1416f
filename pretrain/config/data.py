"""What a run reads, how views of it are cut, and what it is probed on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from shards.config import ConfigModel, NamedConfig
from shards.config.fields import (
    Code,
    Name,
    NotNegative,
    OpenShare,
    PathText,
    Positive,
    Rate,
    Scale,
    Share,
    Switch,
    Threads,
    Unique,
    Weight,
)
from shards.order.selection import OrderConfig, ViewConfig


class SourceConfig(ConfigModel):
    """One of several datasets of a run."""

    shards: PathText
    """Folder or URL of packed shards."""
    weight: Rate = 1.0
    """Share of the samples, relative to the other sources' weights."""
    name: Name | None = None
    """Name in logs and scalars; null takes the folder's."""
    view: ViewConfig | None = None
    """Which tiles of the shards are used; null takes ``data.view``."""
    holdout: OpenShare | None = None
    """Share of locations kept for the validation loss; null takes ``data.holdout``."""
    probe: PathText | None = None
    """Folder or URL of labeled shards of the same bands, for the section ``probe``; null for none."""

    @property
    def label(self) -> str:
        """The name, or that of the folder."""
        return self.name or Path(self.shards).name


class DataConfig(ConfigModel):
    """What is read."""

    shards: PathText | None = None
    """Folder or URL of packed shards; null if ``sources`` names several."""
    sources: Annotated[tuple[SourceConfig, ...], Field(strict=False)] = ()
    """Several datasets, instead of ``shards``: each sample comes from one of them, in exact shares by weight."""
    view: ViewConfig = ViewConfig()
    """Which tiles of the shards are used."""
    order: OrderConfig = OrderConfig()
    """The order in which tiles are drawn."""
    holdout: OpenShare = 0.01
    """Share of locations kept for the validation loss."""
    read_threads: Threads = 4
    """Threads that read and decode tiles, per process."""
    prefetch: Positive = 2
    """Micro batches read ahead."""
    decode: Literal["host", "device"] = "host"
    """Where the prediction of tiles is undone; ``device`` leaves the host their compression alone. The tiles are the
    same."""
    stage: PathText | None = None
    """Node-local folder to which shards are copied during the first epoch; null reads them where they are."""
    stage_quota_gb: Positive | None = None
    """Largest size of the staged copies, in gigabytes; null for what the disk has."""
    max_bad_tiles: NotNegative = 100
    """Damaged tiles that a run replaces by others before it gives up."""

    @model_validator(mode="after")
    def _shards_or_sources(self) -> Self:
        if bool(self.sources) == (self.shards is not None):
            raise ValueError(
                ".shards and .sources both name what is read: remove one of them, or set .shards: null over a base"
                if self.sources
                else ".shards is missing: name a folder of packed shards, or several in .sources"
            )
        return self

    @model_validator(mode="after")
    def _sources_differ(self) -> Self:
        folders: dict[str, int] = {}
        labels: dict[str, int] = {}
        for number, source in enumerate(self.sources):
            folder = source.shards if "://" in source.shards else str(Path(source.shards).resolve())
            if folder in folders:
                raise ValueError(
                    f".sources.{number}.shards: {source.shards} is already .sources.{folders[folder]}.shards: name "
                    "each folder once, with the sum of the weights"
                )
            if "/" in source.label or source.label in labels:
                problem = "contains '/'" if "/" in source.label else f"is also that of .sources.{labels[source.label]}"
                raise ValueError(f".sources.{number}: its name '{source.label}' {problem}: set .sources.{number}.name")
            folders[folder], labels[source.label] = number, number
        return self

    @property
    def each(self) -> tuple[SourceConfig, ...]:
        """The sources with views and held-out shares filled in; ``shards`` is one source."""
        sources = self.sources or (SourceConfig(shards=str(self.shards)),)
        return tuple(
            source.model_copy(
                update={
                    "view": self.view if source.view is None else source.view,
                    "holdout": self.holdout if source.holdout is None else source.holdout,
                }
            )
            for source in sources
        )


class SensorsConfig(ConfigModel):
    """Made-up sensors through which groups of ``model.bn_group`` samples are seen: frequencies of the kinds."""

    KINDS: ClassVar[tuple[str, ...]] = ("own", "subset", "range", "dropped", "responses")

    own: Weight = 1.0
    """All bands of the tiles."""
    subset: Weight = 1.0
    """A random subset, from 8 bands to nearly all."""
    range: Weight = 1.0
    """The bands of a random range of wavelengths, at least a fifth of the sensor's."""
    dropped: Weight = 1.0
    """All bands but some, up to half, dropped at random."""
    responses: Weight = 1.0
    """8 to 79 bands with Gaussian responses of 10 to 100 nm FWHM at random centers."""

    @property
    def weights(self) -> list[float]:
        """Frequencies in the order of ``KINDS``."""
        return [getattr(self, kind) for kind in self.KINDS]

    @model_validator(mode="after")
    def _any_kind(self) -> Self:
        if not sum(self.weights):
            raise ValueError("all kinds are 0: give one a frequency above 0, or leave the section out")
        return self


class AugmentConfig(NamedConfig):
    """Views of a tile. Augmentations with options of their own extend this class."""

    name: str = "crop"
    """What cuts views from tiles."""
    crop_scale: Scale | None = (0.4, 1.0)
    """Range of a crop's share of the tile's area, resized to the image size; null crops exactly the image size."""
    flip: Switch = True
    """Flip views at random, along both axes."""
    blur: Share = 0.0
    """Probability of a Gaussian blur of 0.1 to 2 pixels."""
    clip: Rate | None = None
    """Standard deviations at which normalized values are clipped; null for none."""
    sensors: SensorsConfig | None = None
    """Spectral augmentation, for ``model.stem: wave``: made-up sensors; null for the tiles' own bands."""


class ProbeConfig(ConfigModel):
    """Nearest-neighbor and linear probe of the encoder during training, on shards packed with ``--labels``."""

    RENAMED: ClassVar[Mapping[str, str]] = {"neighbours": "neighbors"}

    shards: PathText | None = None
    """Folder or URL of labeled shards with the splits train and val; null if ``data.sources`` names some."""
    every: Positive = 5000
    """Steps between two probes."""
    neighbors: Positive = 20
    """Nearest neighbors that vote."""
    samples: Positive = 4096
    """Labeled patches taken from each split."""
    ignore: Unique[Code] = (0,)
    """Labels that are not counted."""

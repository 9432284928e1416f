"""The pixels of the synthetic sample: parcels, terrain, season, atmosphere and noise of EnMAP-like tiles."""

from dataclasses import dataclass

import numpy as np

from shards.errors import ForgeError
from shards.sensors.sensor import NODATA, get_sensor
from tools.sample_spectra import CLASSES, CORNERS, NM, dip, endmembers

SENSOR = get_sensor("enmap")

PIXEL_M = 30.0
MIXED_BELOW = 0.75
"""A pixel whose largest class covers less than this share has no label."""


class SampleError(ForgeError):
    """Options are invalid, or the destination holds something else."""


@dataclass(frozen=True)
class SampleOptions:
    """Options of the sample: number of locations, tile side in pixels, seed."""

    locations: int = 40
    size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.locations < 5:
            raise SampleError(f"locations = {self.locations}: at least 5 are needed for the splits")
        if self.size < 16:
            raise SampleError(f"size = {self.size}: at least 16 pixels are needed")
        if self.seed < 0:
            raise SampleError(f"seed = {self.seed}: must not be negative")


# ---- places ----


def smooth_field(rng: np.random.Generator, size: int, length: float) -> np.ndarray:
    """Return a random field float32 (size, size) of mean 0, variance 1 and correlation length in pixels."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * np.exp(-((np.pi * frequency * length) ** 2))
    field = np.fft.irfft2(spectrum, s=(size, size))
    return ((field - field.mean()) / max(float(field.std()), 1e-12)).astype(np.float32)


def blur(layers: np.ndarray, sigma: float = 0.7) -> np.ndarray:
    """Apply the sensor's point spread to layers (K, H, W): Gaussian, sigma in pixels, edges replicated."""
    taps = np.exp(-(np.arange(-2, 3) ** 2) / (2 * sigma**2)).astype(np.float32)
    taps /= taps.sum()
    for axis in (1, 2):
        side = layers.shape[axis]
        pad = [(2, 2) if axis == a else (0, 0) for a in range(3)]
        wide = np.pad(layers, pad, mode="edge")
        layers = sum(tap * wide.take(range(i, i + side), axis) for i, tap in enumerate(taps))
    return layers


@dataclass(frozen=True)
class Place:
    """Properties of a location that are constant over dates.

    Attributes:
        parcels: int (size, size), the parcel of each pixel.
        classes: int (parcels,), the class of each parcel, 0 to 5.
        traits: float32 (2, size, size), the properties u and v of a pixel's material, 0 to 1.
        region: float64 (6, 3), regional deviations of the materials.
        height: float32 (size, size), terrain in m.
    """

    parcels: np.ndarray
    classes: np.ndarray
    traits: np.ndarray
    region: np.ndarray
    height: np.ndarray


def make_place(rng: np.random.Generator, size: int) -> Place:
    """Return parcels of about 9 x 9 pixels, whose classes follow smooth fields."""
    count = max(9, size * size // 80)
    centers = rng.uniform(0, size, (count, 2)).astype(np.float32)
    parcels = _nearest(rng, size, centers)
    at = tuple(centers.astype(int).T)
    likes = rng.normal(0, 0.6, len(CLASSES)) - np.array([0.0, 0.0, 0.0, 0.2, 0.3, 0.5])
    scores = [smooth_field(rng, size, 10.0)[at] + rng.normal(like, 0.3, count) for like in likes]
    traits = [0.8 * rng.normal(0, 1, count)[parcels] + 0.6 * smooth_field(rng, size, 3.0) for _ in range(2)]
    return Place(
        parcels=parcels,
        classes=np.stack(scores).argmax(0),
        traits=(1 / (1 + np.exp(-1.7 * np.stack(traits)))).astype(np.float32),  # approximately uniform
        region=rng.normal(0, 1, (len(CLASSES), 3)),
        height=rng.uniform(10, 50) * smooth_field(rng, size, 12.0),
    )


def _nearest(rng: np.random.Generator, size: int, centers: np.ndarray) -> np.ndarray:
    """Return the nearest center (count, 2) of each pixel of a warped grid, so that borders are curved."""
    row, column = np.mgrid[0:size, 0:size].astype(np.float32)
    row, column = (axis + 2.0 * smooth_field(rng, size, 6.0) for axis in (row, column))
    lines = zip(row[..., None], column[..., None], strict=True)  # one at a time, which fits into the cache
    return np.stack([((y - centers[:, 0]) ** 2 + (x - centers[:, 1]) ** 2).argmin(-1) for y, x in lines])


# ---- dates ----


@dataclass(frozen=True)
class Visit:
    """One date of a location: its scene, season 0 (early summer) to 1 (autumn), and whether it has a swath margin."""

    scene: int
    season: float
    margin: bool


def plan_visits(options: SampleOptions) -> list[list[Visit]]:
    """Return the dates of each location: a quarter have two dates, a tenth of the tiles a margin, at least one each."""
    rng = np.random.default_rng([options.seed, 0])
    twice = set(rng.permutation(options.locations)[: max(1, round(options.locations / 4))].tolist())
    tiles = options.locations + len(twice)
    margins = iter(rng.permutation(tiles) < max(1, round(tiles / 10)))
    visits = []
    for number in range(options.locations):
        scenes = np.sort(rng.choice(11636, size=1 + (number in twice), replace=False) + 1)
        first = rng.uniform(0, 0.4)
        visits.append([Visit(int(scene), first + 0.5 * i, bool(next(margins))) for i, scene in enumerate(scenes)])
    return visits


def render(rng: np.random.Generator, place: Place, visit: Visit) -> tuple[np.ndarray, np.ndarray]:
    """Return one date of a place: int16 tile (202, size, size) and labels uint8 (size, size)."""
    size = place.parcels.shape[0]
    weights = blur(_weights(rng, place, visit))
    spectra = endmembers(visit.season, place.region).reshape(-1, len(NM)) * _gain(rng)
    signal = (spectra.T @ weights.reshape(len(spectra), -1)).reshape(-1, size, size)
    signal = signal * terrain_light(rng, place.height, visit.season) + _haze(rng)[:, None, None]
    tile = np.clip(np.rint((signal + sensor_noise(rng, signal)) * SENSOR.scale), -500, 12000).astype(np.int16)
    shares = weights.reshape(len(CLASSES), len(CORNERS), size, size).sum(1)
    labels = np.where(shares.max(0) >= MIXED_BELOW, shares.argmax(0) + 1, 0).astype(np.uint8)
    if visit.margin:
        outside = _margin(rng, size)
        tile[:, outside], labels[outside] = NODATA, 0
    return tile, labels


def _weights(rng: np.random.Generator, place: Place, visit: Visit) -> np.ndarray:
    """Return the fraction of each endmember in each pixel, float32 (24, size, size), with sum 1."""
    ploughed = (place.classes == 0) & (rng.random(len(place.classes)) < 0.1 * visit.season)
    classes = np.where(ploughed, CLASSES.index("bare soil"), place.classes)[place.parcels]
    u, v = place.traits
    corners = np.stack([(u if a else 1 - u) * (v if b else 1 - v) for a, b in CORNERS])
    chosen = (classes == np.arange(len(CLASSES))[:, None, None]).astype(np.float32)
    return (chosen[:, None] * corners).reshape(-1, *classes.shape)


def terrain_light(rng: np.random.Generator, height: np.ndarray, season: float) -> np.ndarray:
    """Return sunlight on slopes relative to flat ground, float32 (size, size), after an incomplete correction."""
    zenith, azimuth = np.radians(30 + 25 * season), np.radians(rng.uniform(145, 170))
    south, east = np.gradient(height, PIXEL_M)
    uphill = -south * np.cos(azimuth) + east * np.sin(azimuth)  # toward the sun
    relative = (1 - np.tan(zenith) * uphill) / np.sqrt(1 + south**2 + east**2)
    return np.clip(1 + 0.7 * (relative - 1), 0.5, 1.5).astype(np.float32)


def _gain(rng: np.random.Generator) -> np.ndarray:
    """Return residuals of the atmospheric correction (gain, tilt, oxygen, water vapor) as a factor float32 (202,)."""
    gain, tilt, vapour, oxygen = 1 + rng.normal(0, 0.07), rng.normal(0, 0.05), rng.normal(0, 0.06), rng.normal(0, 0.03)
    gas = vapour * (dip(940, 16) + 1.3 * dip(1130, 20) + 2 * dip(1380, 30) + 2 * dip(1870, 60))
    return (gain * (1 + tilt * (NM - 1400) / 1000) * np.exp(-gas - oxygen * dip(761, 4))).astype(np.float32)


def _haze(rng: np.random.Generator) -> np.ndarray:
    """Return the reflectance of over- or undercorrected aerosol, float32 (202,), mostly in the blue."""
    return (rng.normal(0, 0.004) * (NM / 450) ** -2.5).astype(np.float32)


def noise_at_30_percent() -> np.ndarray:
    """Return the standard deviation of the noise at reflectance 0.3, float32 (202,)."""
    ratio = np.interp(NM, [418, 495, 800, 1000, 1300, 1700, 2200, 2446], [200, 350, 330, 260, 250, 230, 170, 90])
    return (0.3 / (ratio * (1 - 0.5 * dip(1380, 40) - 0.4 * dip(1870, 60)))).astype(np.float32)


def sensor_noise(rng: np.random.Generator, signal: np.ndarray) -> np.ndarray:
    """Return float32 noise shaped like the signal (202, size, size): a quarter electronic, the rest photon noise."""
    spread = np.sqrt(0.25 + 0.75 * np.clip(signal, 0, None) / 0.3)
    noise = rng.standard_normal(signal.shape, dtype=np.float32) * spread
    stripes = 0.4 * rng.standard_normal((len(NM), 1, signal.shape[2]), dtype=np.float32)
    return (noise + stripes) * noise_at_30_percent()[:, None, None]


def _margin(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return the pixels outside the swath, bool (size, size): a slanted edge on the left or right."""
    row, column = np.mgrid[0:size, 0:size]
    outside = column + 0.2 * row < rng.uniform(0.15, 0.35) * size
    return outside if rng.random() < 0.5 else outside[::-1, ::-1]

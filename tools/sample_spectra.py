"""The six materials of the synthetic sample: spectra from simple formulas on EnMAP's band centers.

All spectra are reflectance, float32 (202,), 0 to 1.
"""

from collections.abc import Callable

import numpy as np

from shards.sensors.sensor import get_sensor

NM = np.asarray(get_sensor("enmap").wavelength_nm, dtype=np.float32)
"""Band centers in nm."""


def dip(center_nm: float, width_nm: float) -> np.ndarray:
    """Return a Gaussian of height 1 along the wavelength axis."""
    return np.exp(-(((NM - center_nm) / width_nm) ** 2) / 2)


def _step(edge_nm: float, width_nm: float) -> np.ndarray:
    """Return 1 below the edge and 0 above."""
    return (1 - np.tanh((NM - edge_nm) / (2 * width_nm))) / 2


CHLOROPHYLL = _step(708, 9) + 1.3 * dip(440, 40) + 0.5 * dip(490, 25) + 0.5 * dip(640, 30) + 1.4 * dip(672, 21)
"""Absorbance of leaf pigments per unit; more pigment shifts the red edge to longer wavelengths."""

LIQUID_WATER = (
    0.07 * dip(970, 28) + 0.2 * dip(1190, 42) + 1.6 * dip(1450, 80) + 2.4 * dip(1940, 120) + 2.2 * dip(2550, 280)
)
"""Absorbance of liquid water per unit of thickness, in leaves and in soil."""


def leaves(pigment: float, water: float, plateau: float) -> np.ndarray:
    """Return a green canopy: an infrared plateau with pigments and water removed, and a waxy surface reflection."""
    ramp = plateau * (1 - 0.00015 * np.clip(NM - 1100, 0, None))
    return 0.018 + ramp * np.exp(-pigment * CHLOROPHYLL - water * LIQUID_WATER)


def straw() -> np.ndarray:
    """Return dry plants: no red edge, lignin and cellulose absorption at 1730, 2100 and 2300 nm."""
    rise = 0.08 + 0.36 * (1 - np.exp(-(NM - 400) / 450))
    return rise * (1 - 0.07 * dip(1730, 30) - 0.17 * dip(2100, 55) - 0.14 * dip(2300, 40))


def earth(moisture: float, clay: float, iron: float) -> np.ndarray:
    """Return soil: a rising spectrum, iron at 870 nm, clay at 2205 nm, darker when moist."""
    rise = 0.05 + 0.38 * (1 - np.exp(-(NM - 400) / 650))
    return rise * (1 - iron * dip(870, 80)) * (1 - clay * dip(2205, 20)) * np.exp(-moisture * (0.3 + LIQUID_WATER))


def concrete(brightness: float, carbonate: float) -> np.ndarray:
    """Return roofs and roads: a nearly flat spectrum, carbonate at 2340 nm."""
    return brightness * (0.8 + 0.25 * (1 - np.exp(-(NM - 400) / 250))) * (1 - carbonate * dip(2340, 28))


# ---- classes: a spectrum from two properties u, v in 0..1, season 0 (early summer) to 1, region (3,) around 0 ----


def cropland(u: float, v: float, season: float, region: np.ndarray) -> np.ndarray:
    """Return canopy cover u over soil with ripeness v; crops yellow and dry out with the season."""
    ripe = 0.03 + 0.25 * v + 0.22 * season
    green = leaves(1.75 - 0.6 * ripe + 0.2 * region[0], 1.0 - 0.4 * ripe + 0.15 * region[1], 0.45 + 0.02 * region[2])
    cover = 0.65 + 0.3 * u
    return cover * ((1 - ripe) * green + ripe * straw()) + (1 - cover) * earth(0.2, 0.12, 0.08)


def grassland(u: float, v: float, season: float, region: np.ndarray) -> np.ndarray:
    """Return plant cover u with dry litter v; similar to cropland, with less pigment and water."""
    dry = 0.03 + 0.22 * v + 0.18 * season
    green = leaves(1.45 - 0.5 * dry + 0.2 * region[0], 0.85 - 0.4 * dry + 0.15 * region[1], 0.44 + 0.02 * region[2])
    cover = 0.7 + 0.25 * u
    return cover * ((1 - dry) * green + dry * straw()) + (1 - cover) * earth(0.2, 0.12, 0.08)


def forest(u: float, v: float, season: float, region: np.ndarray) -> np.ndarray:
    """Return crown light u with broad leaves v; more pigment and water, and darker slopes."""
    pigment, water = 1.9 - 0.25 * v - 0.15 * season + 0.2 * region[0], 1.05 - 0.15 * v + 0.15 * region[1]
    green = leaves(pigment, water, 0.43 + 0.02 * region[2])
    return (0.6 + 0.38 * u) * (0.92 * green + 0.08 * straw())


def bare_soil(u: float, v: float, season: float, region: np.ndarray) -> np.ndarray:
    """Return soil of moisture u with plant remains v."""
    rest = 0.02 + 0.3 * v
    soil = earth(0.1 + 0.5 * u - 0.1 * season, 0.12 + 0.03 * region[0], 0.08 + 0.02 * region[1])
    return (1 - rest) * soil + rest * (0.7 * straw() + 0.3 * leaves(1.2, 0.7, 0.4))


def built_up(u: float, v: float, season: float, region: np.ndarray) -> np.ndarray:
    """Return roofs and roads of brightness u with gardens and open ground v."""
    ground = 0.1 + 0.7 * v
    garden = leaves(1.5 - 0.2 * season, 0.8, 0.42)
    hard = concrete(0.12 + 0.16 * u, 0.08 + 0.03 * region[0])
    return (1 - ground) * hard + ground * (0.4 * garden + 0.6 * earth(0.1, 0.1, 0.08))


def open_water(u: float, v: float, season: float, region: np.ndarray) -> np.ndarray:
    """Return water with sediment u and algae v: dark, falling, black beyond 900 nm except for sky glint."""
    clear = 0.035 * np.exp(-(NM - 420) / 140)
    sediment = (0.01 + 0.05 * u) * np.exp(-(((NM - 590) / 100) ** 2))
    algae = 1 - (0.1 + 0.3 * v + 0.1 * season) * dip(672, 15)
    return (clear + sediment) * algae + 0.002 + 0.0008 * region[0]


Material = Callable[[float, float, float, np.ndarray], np.ndarray]
MATERIALS: dict[str, Material] = {
    "cropland": cropland,
    "grassland": grassland,
    "forest": forest,
    "bare soil": bare_soil,
    "built-up": built_up,
    "water": open_water,
}
CLASSES = tuple(MATERIALS)
"""Classes of codes 1 to 6, as listed in finetune/tasks/sample_materials.yaml."""

CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))


def endmembers(season: float, region: np.ndarray) -> np.ndarray:
    """Return the spectra at the corners of each class's two properties, float32 (6, 4, 202); region is (6, 3)."""
    rows = [
        [make(u, v, season, here) for u, v in CORNERS] for make, here in zip(MATERIALS.values(), region, strict=True)
    ]
    return np.clip(np.asarray(rows, dtype=np.float32), 0, None)

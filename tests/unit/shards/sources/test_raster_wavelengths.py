"""Wavelengths and widths of bands, wherever a raster holds them."""

import numpy as np
import pytest
import rasterio
from support.rasters import DETECTORS, ENMAP, PRODUCT_NM, cube, values_of, write

from shards.errors import TileError
from shards.sources.raster import open_raster


def described(path, nm, text):
    with rasterio.open(path, "r+") as file:
        for band, center in enumerate(nm, start=1):
            file.set_band_description(band, text(band, center))


def tagged(path, nm, tags, **domain):
    with rasterio.open(path, "r+") as file:
        for band, center in enumerate(nm, start=1):
            file.update_tags(band, **domain, **tags(center))


def listed(path, nm, name, scale, **more):
    with rasterio.open(path, "r+") as file:
        text = ", ".join(f"{center * scale:.6f}" for center in nm)
        file.update_tags(ns="ENVI", **{name: f"{{{text}}}"}, **more)


def numbered(path, nm, key, text):
    with rasterio.open(path, "r+") as file:
        file.update_tags(**{key.format(band): text(center) for band, center in enumerate(nm, start=1)})


def header_beside(path, nm):
    centers = ",\n".join(f"{center}" for center in nm)
    path.with_suffix(".hdr").write_text(
        f"ENVI\nbands = {len(nm)}\nwavelength units = Nanometers\nwavelength = {{\n{centers}}}\n"
    )


WAYS = {
    "numbered tags": lambda path, nm: numbered(path, nm, "Band_{}", lambda c: f"Band ({c} Nanometers)"),
    "numbered wavelengths": lambda path, nm: numbered(path, nm, "wavelength_{}", lambda c: f"{c}"),
    "a header beside": header_beside,
    "tags in nanometers": lambda path, nm: tagged(path, nm, lambda c: {"wavelength": str(c), "wavelength_units": "nm"}),
    "tags in micrometers": lambda path, nm: tagged(
        path, nm, lambda c: {"wavelength": str(c / 1000), "wavelength_unit": "Micrometers"}
    ),
    "tags without a unit": lambda path, nm: tagged(path, nm, lambda c: {"Wavelength": f"{c / 1000:.6f}"}),
    "tags with the unit in the text": lambda path, nm: tagged(path, nm, lambda c: {"center_wavelength": f"{c} nm"}),
    "tags with the unit in the name": lambda path, nm: tagged(path, nm, lambda c: {"WAVELENGTH_UM": f"{c / 1000:.6f}"}),
    "domain IMAGERY": lambda path, nm: tagged(
        path, nm, lambda c: {"CENTRAL_WAVELENGTH_UM": str(c / 1000)}, ns="IMAGERY"
    ),
    "any other domain": lambda path, nm: tagged(path, nm, lambda c: {"wavelength": str(c)}, ns="LAB"),
    "descriptions": lambda path, nm: described(path, nm, lambda b, c: f"band {b} ({c} Nanometers)"),
    "short descriptions": lambda path, nm: described(path, nm, lambda b, c: f"B{b:03d}_{c}nm"),
    "descriptions with brackets": lambda path, nm: described(path, nm, lambda b, c: f"{c} (nm), band {b}"),
    "descriptions that end with it": lambda path, nm: described(path, nm, lambda b, c: f"Band {b}: {c}"),
    "bare descriptions": lambda path, nm: described(path, nm, lambda b, c: f"{c}"),
    "bare micrometers": lambda path, nm: described(path, nm, lambda b, c: f"Band {b} ({c / 1000:.6f})"),
    "a list": lambda path, nm: listed(path, nm, "wavelength", 1),
    "a list as JSON": lambda path, nm: numbered(path, nm[:1], "wavelengths", lambda _: str([str(c) for c in nm])),
    "a list in micrometers": lambda path, nm: listed(path, nm, "wavelength", 1e-3, wavelength_units="Micrometers (um)"),
    "a list without a unit": lambda path, nm: listed(path, nm, "wavelengths", 1e-3),
}


@pytest.mark.parametrize("way", WAYS)
def test_bands_in_another_order_are_sorted_wherever_their_wavelengths_stand(tmp_path, way):
    values = cube(224)
    path = write(tmp_path / "a.tif", values[DETECTORS])
    WAYS[way](path, PRODUCT_NM[DETECTORS])
    np.testing.assert_array_equal(values_of(path), values[list(ENMAP.kept)])


@pytest.mark.parametrize("way", WAYS)
def test_bands_beside_those_that_are_wanted_do_no_harm(tmp_path, way):
    keep = [band for band in range(224) if not 1331 <= PRODUCT_NM[band] <= 1391]
    path = write(tmp_path / "a.tif", cube(224)[keep])
    WAYS[way](path, PRODUCT_NM[keep])
    np.testing.assert_array_equal(values_of(path), cube(224)[list(ENMAP.kept)])


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"wavelength": "short"}, "wavelength 'short' in the band tags is not a number"),
        ({"wavelength": "23687", "wavelength_units": "Wavenumber"}, "unit 'Wavenumber' in the band tags"),
        ({"bbl": "bad"}, "'bad' is neither 0 nor 1"),
    ],
)
def test_texts_that_tell_nothing_are_refused_in_one_line(tmp_path, tags, message):
    path = write(tmp_path / "a.tif", cube())
    tagged(path, ENMAP.wavelength_nm, lambda center: tags)
    with pytest.raises(TileError, match=message) as caught:
        values_of(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_places_that_contradict_each_other_are_refused(tmp_path):
    path = write(tmp_path / "a.tif", cube())
    WAYS["tags in nanometers"](path, ENMAP.wavelength_nm)
    WAYS["descriptions"](path, ENMAP.wavelength_nm[::-1])
    with pytest.raises(
        TileError,
        match=r"band 1 is at 418\.24 nm according to the band tags, but at 2445\.\d+ nm according to the band desc",
    ):
        values_of(path)


def test_a_rounded_place_contradicts_no_exact_one(tmp_path):
    path = write(tmp_path / "a.tif", cube(224)[DETECTORS])
    WAYS["tags in nanometers"](path, PRODUCT_NM[DETECTORS])
    tagged(path, PRODUCT_NM[DETECTORS], lambda c: {"CENTRAL_WAVELENGTH_UM": f"{c / 1000:.2f}"}, ns="IMAGERY")
    np.testing.assert_array_equal(values_of(path), cube(224)[list(ENMAP.kept)])


def test_wavelengths_of_some_bands_alone_are_refused(tmp_path):
    path = write(tmp_path / "a.tif", cube())
    tagged(path, ENMAP.wavelength_nm[:5], lambda center: {"wavelength": str(center)})
    with pytest.raises(TileError, match="5 bands have a wavelength, expected 202"):
        values_of(path)


def test_a_band_without_a_wavelength_beside_all_others_is_left_out(tmp_path):
    path = write(tmp_path / "a.tif", np.concatenate([cube()[:1] * 0, cube()]))  # a mask, then the spectrum
    with rasterio.open(path, "r+") as file:
        for band, center in enumerate(ENMAP.wavelength_nm, start=2):
            file.update_tags(band, wavelength=str(center))
    np.testing.assert_array_equal(values_of(path), cube())


def test_descriptions_that_count_bands_are_no_wavelengths(tmp_path):
    path = write(tmp_path / "a.tif", cube())
    described(path, ENMAP.wavelength_nm, lambda band, center: str(band))
    np.testing.assert_array_equal(values_of(path), cube())


@pytest.mark.parametrize("unit", ["nm", "um"])
def test_widths_are_read_in_the_unit_of_the_centers(tmp_path, unit):
    factor = {"nm": 1, "um": 1e-3}[unit]
    path = write(tmp_path / "a.tif", cube())
    tagged(path, ENMAP.wavelength_nm, lambda c: {"wavelength": f"{c * factor:.6f}", "fwhm": f"{7 * factor:.6f}"})
    with open_raster(path) as raster:
        np.testing.assert_allclose(raster.fwhm_nm, 7)
        np.testing.assert_allclose(raster.wavelength_nm, ENMAP.wavelength_nm, atol=1e-3)

"""Scenes that are arrays, written as rasters in the way that docs/inputs.md shows, and packed."""

import numpy as np
import pytest
from support.datasets import read_all
from support.documents import python_code

from shards.format.manifest import read_manifest
from shards.pack.build import pack
from shards.pack.scan import PackConfig


def test_an_array_is_packed_with_its_bands_in_order_of_wavelength(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    centers = np.r_[np.linspace(400, 700, 20), np.linspace(680, 900, 20)]  # detectors overlap
    cube = np.random.default_rng(0).integers(900, 9000, (12, 8, 40)).astype(np.uint16)
    np.savez("indian_pines.npz", cube=cube, wavelength_nm=centers)
    exec(python_code("inputs.md", "Arrays"), {})
    pack(tmp_path / "indian_pines.tif", tmp_path / "shards", PackConfig(sensor="indian_pines.tif", size=4))
    order = np.argsort(centers)
    manifest, tiles = read_manifest(tmp_path / "shards"), read_all(tmp_path / "shards")
    np.testing.assert_allclose(manifest.wavelength_nm, centers[order], atol=0.01)
    assert set(manifest.fwhm_nm) == {10.0}
    assert len(tiles) == 6
    tile = np.moveaxis(cube[8:, 4:, order], 2, 0)
    assert any(np.array_equal(values, tile) for values in tiles.values())


def test_a_table_of_bands_by_pixels_is_read_in_the_order_of_columns(tmp_path, monkeypatch):
    savemat = pytest.importorskip("scipy.io", reason="reading .mat files needs SciPy").savemat
    monkeypatch.chdir(tmp_path)
    cube = np.random.default_rng(0).integers(0, 5000, (100, 100, 198)).astype(np.uint16)
    bands = np.arange(4, 202)[:, None]
    savemat("jasperRidge2_R198.mat", {"Y": cube.transpose(2, 1, 0).reshape(198, -1), "SlectBands": bands})
    written = {}
    exec(
        python_code("inputs.md", "Arrays", 1),
        {"np": np, "write_cube": lambda *arguments, fwhm_nm: written.update(zip("pcw", arguments, strict=True))},
    )
    np.testing.assert_array_equal(written["c"], cube)
    np.testing.assert_allclose(written["w"][:2], 380 + np.array([3, 4]) * 2120 / 223)

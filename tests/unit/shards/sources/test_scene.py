"""EnMAP L2A products and archives into shards: the zone's grid, quality shares, limits, streams that break off."""

import os
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from rasterio.windows import Window
from support.scenes import ENMAP, SIZE, tiles_of
from support.tiles import NODATA, folder_bytes

from shards.errors import SourceError, TileError
from shards.sources.limits import NO_LIMITS, SceneLimits
from shards.sources.product import Metadata, is_product
from shards.sources.scene import Scene
from tools import sample_scene


def test_a_product_is_cut_on_the_grid_of_its_zone(products):
    with rasterio.open(next(products[0].glob("*SPECTRAL_IMAGE.TIF"))) as file:
        stored = file.read([band + 1 for band in ENMAP.kept])
        place = file.transform
    tiles = tiles_of(products[0])
    assert len(tiles) in (9, 12, 16)
    for source, tile in tiles.values():
        _, column, row = map(int, source.location.split("-"))
        x, y = tile.transform[2], tile.transform[5]
        assert ((x - 15) / 30, (y - 15) / 30) == (column * SIZE, (row + 1) * SIZE)
        left, top = round((x - place.c) / 30), round((place.f - y) / 30)
        np.testing.assert_array_equal(tile.values, stored[:, top : top + SIZE, left : left + SIZE])
        assert (source.timestamp, source.date, tile.date) == ("20220724T101530Z", "2022-07-24", "2022-07-24")
        assert re.fullmatch(r"[A-Za-z0-9_-]+", source.key)
        assert source.scene == products[0].name


def test_the_same_place_is_the_same_location_in_every_product(products):
    first, second = ({tile[0].location for tile in tiles_of(path).values()} for path in products)
    assert len(first & second) >= 4


def test_quality_shares_are_those_of_the_layers(products):
    layers = {}
    for name in ("CLOUD", "CLOUDSHADOW", "HAZE", "CIRRUS", "SNOW"):
        with rasterio.open(next(products[0].glob(f"*QUALITY_{name}.TIF"))) as file:
            layers[{"CLOUDSHADOW": "cloud_shadow"}.get(name, name.lower())] = file.read(1) > 0
            place = file.transform
    seen = dict.fromkeys(layers, 0.0)
    for _, tile in tiles_of(products[0]).values():
        left, top = round((tile.transform[2] - place.c) / 30), round((place.f - tile.transform[5]) / 30)
        for name, layer in layers.items():
            assert tile.quality[name] == layer[top : top + SIZE, left : left + SIZE].mean()
            seen[name] += tile.quality[name]
    assert seen["cloud"] > 0.2 and seen["cirrus"] > 0 and seen["snow"] == 0


def test_tiles_beyond_a_limit_are_left_out_and_counted(products):
    everything = {key: tile for key, (_, tile) in tiles_of(products[0]).items()}
    scene = Scene(products[0], "p", ENMAP, SIZE, SceneLimits(cloud=0.05, nodata=0.0))
    kept = {source.key for source, _ in scene.tiles(())}
    cloudy = {key for key, tile in everything.items() if tile.quality["cloud"] > 0.05}
    edge = {key for key, tile in everything.items() if (tile.values == NODATA).any()}
    assert kept == everything.keys() - cloudy - edge
    assert scene.filtered == {"cloud": len(cloudy), "nodata": len(edge - cloudy)}
    assert cloudy and edge


def test_a_zip_of_a_product_is_the_same_product(products, tmp_path):
    path = tmp_path / "product.zip"
    with zipfile.ZipFile(path, "w") as file:
        for member in products[0].iterdir():
            file.write(member, f"{products[0].name}/{member.name}")
    assert is_product(path)
    zipped = tiles_of(path)
    for key, (_, tile) in tiles_of(products[0]).items():
        np.testing.assert_array_equal(zipped[key][1].values, tile.values)


def test_tiles_that_are_there_already_are_not_read_again(products):
    keys = list(tiles_of(products[0]))
    assert list(tiles_of(products[0], skip=keys[:4])) == keys[4:]


@pytest.fixture
def copy(products, tmp_path):
    return Path(shutil.copytree(products[0], tmp_path / products[0].name))


def test_a_missing_quality_layer_is_an_error_only_where_it_is_needed(copy):
    next(copy.glob("*QUALITY_CLOUD.TIF")).unlink()
    with pytest.raises(SourceError, match=r"QL_QUALITY_CLOUD\.TIF.*--max-cloud none"):
        tiles_of(copy, SceneLimits())
    assert all("cloud" not in tile.quality for _, tile in tiles_of(copy).values())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.0001", "0.001", "gain and offset"),
        ("startTime", "beginTime", "no element temporalCoverage/startTime"),
        ("</level_X>", "", "not the metadata"),
        ("418.240", "518.240", "wavelengths are not enmap's"),
        ("160668Z", "160668+02:00", r"start time 2022-07-24T10:15:30.160668\+02:00 is not a UTC time"),
        ("2022-07-24T", "2022-13-24T", "month must be in 1..12"),
    ],
)
def test_metadata_that_says_something_else_is_one_line(copy, old, new, message):
    path = next(copy.glob("*METADATA.XML"))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(SourceError, match=message):
        tiles_of(copy)


def test_the_metadata_of_a_published_product_is_read(enmap_l2a):
    with zipfile.ZipFile(enmap_l2a / "enmap_L2A_gtif_qualification.zip") as file:
        name = next(name for name in file.namelist() if name.endswith("METADATA.XML"))
        metadata = Metadata.parse(file.read(name), name)
    assert metadata.time == "20170626T102020Z"
    assert len(metadata.wavelength_nm) == 218  # 88 VNIR and 130 SWIR before launch
    assert metadata.wavelength_nm[:2] == (423.03, 428.8)


# ---- the grid, layers and files as they may come ----


def _cut(product, dest, right=0, down=0, meters=0.0, size=150):
    """A part of a product, its pixel grid moved by ``meters`` to the east and the north."""
    folder = dest / product.name
    folder.mkdir(parents=True)
    for path in product.iterdir():
        if path.suffix == ".XML":
            shutil.copy(path, folder)
            continue
        with rasterio.open(path) as file:
            values = file.read(window=Window(right, down, size, size))
            place = Affine.translation(meters, meters) @ file.transform @ Affine.translation(right, down)
            profile = file.profile | {"height": size, "width": size, "transform": place}
        with rasterio.open(folder / path.name, "w", **profile) as file:
            file.write(values)
    return folder


@pytest.mark.parametrize("meters", [0.0, 15.0, -11.0, 7.5])
def test_products_at_any_offset_have_the_same_pixels_at_the_same_place(products, tmp_path, meters):
    cuts = [(20, 40), (21, 40), (33, 51)]
    folders = [_cut(products[0], tmp_path / str(number), *cut, meters) for number, cut in enumerate(cuts)]
    first, *others = ({s.location: tile for s, tile in tiles_of(folder, size=32).values()} for folder in folders)
    for other in others:
        shared = first.keys() & other.keys()
        assert len(shared) >= 6
        for location in shared:
            np.testing.assert_array_equal(first[location].values, other[location].values)
            assert first[location].transform == other[location].transform
    edges = {(tile.transform[2] - meters - 15, tile.transform[5] - meters - 15) for tile in first.values()}
    assert all(x % 30 == 0 and y % 30 == 0 for x, y in edges)  # the place is the file's, not the grid's


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transform": Affine(10.0, 0.0, 366015.0, 0.0, -10.0, 5809965.0)}, "30 m pixels"),
        ({"transform": Affine(30.0, 1.0, 366015.0, 1.0, -30.0, 5809965.0)}, "north-up"),
        ({"crs": None}, "north-up UTM image"),
        ({"count": 223}, "223 bands, but METADATA.XML lists 224"),
    ],
)
def test_an_image_of_another_kind_is_one_line(products, tmp_path, change, message):
    folder = _cut(products[0], tmp_path, size=70)
    path = next(folder.glob("*SPECTRAL_IMAGE.TIF"))
    with rasterio.open(path) as file:
        profile, values = file.profile | change, file.read()
    with rasterio.open(path, "w", **profile) as file:
        file.write(values[: profile["count"]])
    with pytest.raises(SourceError, match=message) as caught:
        tiles_of(folder)
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_the_background_value_marks_what_was_not_measured_where_the_image_names_none(products, tmp_path):
    folder = _cut(products[0], tmp_path)
    expected = tiles_of(folder)
    path, metadata = next(folder.glob("*SPECTRAL_IMAGE.TIF")), next(folder.glob("*METADATA.XML"))
    with rasterio.open(path) as file:
        profile, values = file.profile | {"nodata": None}, file.read()
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.where(values == NODATA, np.int16(-9999), values))
    text = f"<backgroundValue>{NODATA}</backgroundValue>"
    assert text in metadata.read_text()
    metadata.write_text(metadata.read_text().replace(text, "<backgroundValue>-9999</backgroundValue>"))
    for key, (_, tile) in tiles_of(folder).items():
        np.testing.assert_array_equal(tile.values, expected[key][1].values)
    assert any((tile.values == NODATA).any() for _, tile in expected.values())


def test_a_quality_layers_own_nodata_counts_as_clear(copy):
    path = next(copy.glob("*QUALITY_CLOUD.TIF"))
    with rasterio.open(path) as file:
        profile, values = file.profile | {"nodata": 255}, file.read()
    clouds = {key: tile.quality["cloud"] for key, (_, tile) in tiles_of(copy).items()}
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.where(values == 0, 255, values).astype(np.uint8))
    assert {key: tile.quality["cloud"] for key, (_, tile) in tiles_of(copy).items()} == clouds


@pytest.mark.parametrize("damage", ["cut", "small"])
def test_a_damaged_quality_layer_is_an_error_only_where_it_is_needed(copy, damage):
    path = next(copy.glob("*QUALITY_CLOUD.TIF"))
    if damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        with rasterio.open(path) as file:
            profile = file.profile | {"height": 200}
        with rasterio.open(path, "w", **profile):
            pass
    with pytest.raises(SourceError, match="--max-cloud none") as caught:
        tiles_of(copy, SceneLimits())
    assert str(copy) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert all("cloud" not in tile.quality and "haze" in tile.quality for _, tile in tiles_of(copy).values())


def test_an_image_that_breaks_off_gives_its_whole_tiles_and_names_the_others(copy):
    expected = tiles_of(copy)
    image = next(copy.glob("*SPECTRAL_IMAGE.TIF"))
    os.truncate(image, image.stat().st_size * 6 // 10)
    found = tiles_of(copy)
    assert found.keys() == expected.keys()
    bad = {key: str(tile) for key, (_, tile) in found.items() if isinstance(tile, TileError)}
    assert 0 < len(bad) < len(found)
    for key, (source, tile) in found.items():
        if key in bad:
            assert bad[key].startswith(f"{copy.name}!{source.location}: ") and "\n" not in bad[key]
        else:
            np.testing.assert_array_equal(tile.values, expected[key][1].values)


def test_files_of_the_cloud_optimized_kind_are_the_same_product(copy):
    expected = tiles_of(copy)
    for path in copy.glob("*.TIF"):
        path.rename(path.with_name(f"{path.stem}_COG.tiff"))
    found = tiles_of(copy)
    assert found.keys() == expected.keys()
    assert all("cloud" in tile.quality for _, tile in found.values())


def test_no_tile_is_read_that_is_known_or_too_cloudy(products, monkeypatch):
    everything = {key: tile for key, (_, tile) in tiles_of(products[0]).items()}
    cloudy = {key for key, tile in everything.items() if tile.quality["cloud"] > 0.1}
    known = set(list(everything.keys() - cloudy)[:3])
    scene = Scene(products[0], "p", ENMAP, SIZE, SceneLimits(nodata=None))
    read, windows = Scene._tile, []

    def watched(self, image, *rest):
        class Image:
            def __getattr__(self, name):
                return getattr(image, name)

            def read(self, bands, window):
                windows.append(window)
                return image.read(bands, window=window)

        return read(self, Image(), *rest)

    monkeypatch.setattr(Scene, "_tile", watched)
    assert {source.key for source, _ in scene.tiles(known)} == everything.keys() - cloudy - known
    assert len(windows) == len(everything) - len(cloudy) - len(known)
    assert scene.filtered == {"cloud": len(cloudy)} and cloudy


def test_the_sample_product_is_made_by_command(products, tmp_path, capsys):
    options = ["--size", "260", "--offset", "37,21", "--day", "20220829"]
    assert sample_scene.main([str(tmp_path), *options]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder.parent == tmp_path and is_product(folder)
    assert folder_bytes(folder) == folder_bytes(products[1])
    for refused in (["--size", "4000"], ["--offset=-1,0"], options):
        assert sample_scene.main([str(tmp_path), *refused]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("name", ["cloud", "cirrus"])
def test_pixels_that_a_quality_layer_flags_are_missing_where_asked(products, name):
    with rasterio.open(next(products[0].glob(f"*QUALITY_{name.upper()}.TIF"))) as file:
        layer, place = file.read(1) > 0, file.transform
    plain = {source.key: tile for source, tile in Scene(products[0], "p", ENMAP, SIZE, NO_LIMITS).tiles(())}
    masked = list(Scene(products[0], "p", ENMAP, SIZE, NO_LIMITS, masked=(name,)).tiles(()))
    assert len(masked) == len(plain)
    for source, tile in masked:
        left, top = round((tile.transform[2] - place.c) / 30), round((place.f - tile.transform[5]) / 30)
        flagged = layer[top : top + SIZE, left : left + SIZE]
        assert (tile.values[:, flagged] == NODATA).all()
        np.testing.assert_array_equal(tile.values[:, ~flagged], plain[source.key].values[:, ~flagged])
    assert layer.any()


def test_a_layer_to_mask_that_is_missing_is_one_line(copy):
    next(copy.glob("*QUALITY_HAZE.TIF")).unlink()
    with pytest.raises(SourceError, match=r"has no QL_QUALITY_HAZE\.TIF; continue without masking 'haze'"):
        list(Scene(copy, "p", ENMAP, SIZE, NO_LIMITS, masked=("haze",)).tiles(()))


def _write_layer(product: Path, part: str, values: np.ndarray) -> None:
    """Write a layer of a product, (bands, height, width), on the grid of its image."""
    image = next(product.glob("*SPECTRAL_IMAGE.TIF"))
    with rasterio.open(image) as file:
        profile = {"driver": "GTiff", "crs": file.crs, "transform": file.transform, "compress": "deflate"}
        shape = {"height": file.height, "width": file.width, "count": len(values), "dtype": "uint8"}
    with rasterio.open(image.with_name(image.name.replace("SPECTRAL_IMAGE", part)), "w", **profile, **shape) as file:
        file.write(values.astype(np.uint8))


def _masked(product: Path, *names: str) -> tuple[np.ndarray, np.ndarray]:
    """Return which values of a product are missing with and without a mask, (224, height, width)."""
    with Scene(product, "p", ENMAP, SIZE, NO_LIMITS, masked=names).open_image() as image:
        plain = image.read()
        image.mask(names)
        return image.read() == NODATA, plain == NODATA


def test_defective_values_of_the_pixel_mask_are_missing_in_their_bands_alone(copy):
    mask = np.zeros((224, 260, 260))
    mask[10, 100:110, 90:95] = 1
    mask[:, 0] = 255  # background
    _write_layer(copy, "QL_PIXELMASK", mask)
    masked, before = _masked(copy, "defective")
    np.testing.assert_array_equal(masked, before | (mask == 1))
    assert (masked & ~before).sum() == 50


@pytest.mark.parametrize(
    ("name", "vnir", "swir"), [("interpolated", 8, 4), ("saturation", 32, 16), ("artifact", 128, 64)]
)
def test_a_test_flag_masks_the_bands_of_its_detector(copy, name, vnir, swir):
    flags = np.zeros((1, 260, 260), np.uint8)
    flags[0, 100:110, 90:100], flags[0, 120:130, 90:100] = vnir, swir | 1  # of reduced quality as well
    _write_layer(copy, "QL_QUALITY_TESTFLAGS", flags)
    masked, before = _masked(copy, name)
    wavelength_nm = np.asarray(ENMAP.product_wavelength_nm)
    for rows, has_flag in ((slice(100, 110), wavelength_nm < 1000), (slice(120, 130), wavelength_nm > 900)):
        assert masked[has_flag, rows, 90:100].all()
        np.testing.assert_array_equal(masked[~has_flag, rows], before[~has_flag, rows])
    np.testing.assert_array_equal(masked[:, :100], before[:, :100])


def test_a_pixel_mask_of_other_bands_is_one_line(copy):
    _write_layer(copy, "QL_PIXELMASK", np.zeros((3, 260, 260)))
    message = r"QL_PIXELMASK\.TIF: 3 bands, but the image has 224; continue without masking 'defective'$"
    with pytest.raises(SourceError, match=message):
        _masked(copy, "defective")
    assert len(tiles_of(copy)) > 0

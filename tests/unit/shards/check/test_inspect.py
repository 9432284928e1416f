"""`inspect` tells what is there, from a folder or over HTTP, and draws a tile with its spectra."""

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from support.range_server import RangeServer
from support.tiles import NODATA, spectra, write_archive, write_tile

from shards.__main__ import main
from shards.check.inspect import draw_spectra, rgb
from shards.pack.build import pack
from shards.pack.scan import Labels, PackConfig
from shards.sensors.sensor import get_sensor

ENMAP = get_sensor("enmap")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Ten tiles with label tiles in three shards."""
    folder = tmp_path_factory.mktemp("inspect")
    for key in write_archive(folder / "source"):
        location, timestamp = key.split("_")
        write_tile(folder / "labels/enmap" / location / f"{timestamp}.tif", np.eye(8, dtype=np.uint8))
    pack(folder / "source", folder / "shards", PackConfig(tiles_per_shard=3), labels=Labels(folder / "labels"))
    return folder / "shards"


def test_a_summary_tells_what_is_there(packed, capsys):
    assert main(["inspect", str(packed)]) == 0
    text = capsys.readouterr().out
    for expected in (
        "10 of 6 locations",
        "[202, 8, 8] int16, enmap, 418 to 2446 nm, nodata -32768",
        "3 of 0.",
        "1 to 3 a location, median 1.5, 50.0% have several",
        "all at once",
        "spectral_predictor",
        "13.0",  # degrees east
        "10 label tiles",
    ):
        assert expected in text, expected


def test_runs_that_appended_are_told_one_by_one(tmp_path, capsys):
    config = PackConfig(tiles_per_shard=3)
    write_archive(tmp_path / "source")
    pack(tmp_path / "source", tmp_path / "shards", config)
    write_archive(tmp_path / "more", scenes={"7777777": ("00001", "00002")})
    pack(tmp_path / "more", tmp_path / "shards", config, append=True)
    main(["inspect", str(tmp_path / "shards")])
    assert "10 tiles in 3 shards, then 2 tiles in 1 shards" in capsys.readouterr().out
    (tmp_path / "shards/pack.json").unlink()
    main(["inspect", str(tmp_path / "shards")])
    assert "in 2 runs" in capsys.readouterr().out


def test_a_url_is_told_and_drawn_as_a_folder_is(packed, tmp_path, capsys):
    main(["inspect", str(packed), "--tile", "0", "--picture", str(tmp_path / "a.png")])
    here = capsys.readouterr().out.splitlines()
    with RangeServer(packed) as server:
        assert main(["inspect", server.url, "--tile", "0", "--picture", str(tmp_path / "b.png")]) == 0
    assert capsys.readouterr().out.splitlines()[1:-1] == here[1:-1]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_picture_shows_the_label_tile_too(packed, tmp_path, capsys):
    picture = tmp_path / "tile.png"
    assert main(["inspect", str(packed), "--tile", "0000017_00003", "--picture", str(picture)]) == 0
    assert f"drawn: {picture}" in capsys.readouterr().out
    height, width = matplotlib.image.imread(picture).shape[:2]
    assert width > 3 * height  # three panels


@pytest.mark.parametrize("arguments", [["--tile", "none"], ["--tile", "10"], ["--tile", "0", "--picture", "tile.odd"]])
def test_what_can_not_be_drawn_is_one_line(packed, arguments, capsys):
    assert main(["inspect", str(packed), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


@pytest.mark.filterwarnings("error")
def test_lines_break_at_missing_values_and_where_bands_were_left_out():
    tile = spectra(1, 8)
    tile[30] = NODATA
    axes = Figure().subplots()
    draw_spectra(axes, tile, ENMAP)
    assert len(axes.lines) == 6
    nm, median = axes.lines[-1].get_data()
    order = np.argsort(ENMAP.wavelength_nm)
    left_out = np.count_nonzero(np.diff(np.asarray(ENMAP.wavelength_nm)[order]) > 30)
    assert left_out >= 2 and np.count_nonzero(np.isnan(nm)) == left_out
    assert np.count_nonzero(np.isnan(median)) == left_out + 1
    values = np.where(tile == NODATA, np.nan, tile / ENMAP.scale).reshape(202, -1)[100]
    assert np.nanmedian(values) in median


@pytest.mark.filterwarnings("error")
def test_a_tile_without_a_valid_pixel_is_an_empty_picture():
    tile = np.full((202, 4, 4), NODATA, np.int16)
    axes = Figure().subplots()
    draw_spectra(axes, tile, ENMAP)
    assert len(axes.lines) == 0
    assert (rgb(tile, ENMAP.rgb) == 1).all()
    tile[:, 0, 0] = 100
    assert (rgb(tile, ENMAP.rgb)[0, 0] == 0).all() and (rgb(tile, ENMAP.rgb)[1:] == 1).all()

"""`inspect`: a one-screen summary of a folder of shards, and a picture of one tile with its spectra."""

from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import ConfigError, ShardError
from shards.files.storage import open_storage
from shards.format.error_bounds import describe_max_error, max_error
from shards.format.manifest import parse_json, sensor_of
from shards.format.table import QUALITY
from shards.pack.record import RECORD, PackRecord
from shards.read.reader import ShardReader
from shards.sensors.rgb import stretch
from shards.sensors.sensor import NODATA, Sensor
from shards.sensors.spectrum import gaps


def inspect(location: str, tile: str | None, picture: Path) -> int:
    """Print a summary of the shards at a folder or URL, and draw a tile if one is given.

    Args:
        tile: sample key or row number.
        picture: path of the picture.

    Raises:
        ShardError: if the folder can't be read.
        ConfigError: if there is no such tile, or the picture's format is not supported.
    """
    reader = ShardReader(location)
    try:
        print(summary(reader))
        if tile is not None:
            _draw(reader, _row(reader, tile), picture)
            print(f"drawn: {picture}")
    finally:
        reader.close()
    return 0


def summary(reader: ShardReader) -> str:
    """Return the summary of a dataset as lines of text."""
    manifest, table = reader.manifest, reader.table
    raw = len(table) * 2 * int(np.prod(manifest.tile_shape))
    stored = sum(entry.size for entry in manifest.shards)
    visits = np.bincount(table["location_id"])
    sizes = [entry.size / 1e6 for entry in manifest.shards]
    lines = {
        "dataset": f"{reader.location} (format {manifest.format}, content {manifest.content_hash[:16]})",
        "tiles": f"{len(table)} of {len(visits)} locations, {manifest.rejected} set aside when packing",
        "shape": f"{manifest.tile_shape} int16, {manifest.sensor}, "
        f"{manifest.wavelength_nm[0]:.0f} to {manifest.wavelength_nm[-1]:.0f} nm, nodata {manifest.nodata}",
        "shards": f"{len(sizes)} of {min(sizes):.1f} to {max(sizes):.1f} MB",
        "codec": f"{manifest.codec}: {raw / 1e9:.3f} GB in {stored / 1e9:.3f} GB ({raw / stored:.2f}x)",
        "max error": describe_max_error(max_error(manifest)),
        "timestamps": f"{visits.min()} to {visits.max()} a location, median {np.median(visits):g}, "
        f"{np.mean(visits > 1):.1%} have several",
        "added": _added(reader),
        "dates": _range(table["date"][~np.isnat(table["date"])].astype(str)),
        "places": _places(table),
        "quality": _quality(table),
        "splits": _splits(table),
        "mean": f"{min(manifest.mean):.0f} to {max(manifest.mean):.0f} over the bands, "
        f"std {min(manifest.std):.0f} to {max(manifest.std):.0f}",
    }
    return "\n".join(f"{name:<11}{text}" for name, text in lines.items())


def _added(reader: ShardReader) -> str:
    """Describe the tiles and shards of each run of `pack`: the first one and every --append."""
    manifest = reader.manifest
    if manifest.generations == 1:
        return "all at once"
    storage = open_storage(reader.location)
    try:
        record = parse_json(storage.read(RECORD), PackRecord, f"{reader.location}/{RECORD}")
    except ShardError:  # the dataset is complete without it
        return f"in {manifest.generations} runs"
    finally:
        storage.close()
    runs = record.generations[: manifest.generations]
    return ", then ".join(f"{run.tiles} tiles in {run.shards} shards" for run in runs)


def _range(values: np.ndarray) -> str:
    return f"{values.min()} to {values.max()} ({len(values)} tiles)" if len(values) else "unknown"


def _places(table: np.ndarray) -> str:
    known = table[~np.isnan(table["lon"])]
    if not len(known):
        return "unknown"
    lon, lat = known["lon"], known["lat"]
    return f"{lon.min():.3f} to {lon.max():.3f} E, {lat.min():.3f} to {lat.max():.3f} N ({len(known)} tiles)"


def _quality(table: np.ndarray) -> str:
    texts = []
    for name in QUALITY:
        known = table[name][~np.isnan(table[name])]
        if len(known):
            texts.append(f"{name} {np.median(known):.1%} (most {known.max():.1%})")
    return "median " + ", ".join(texts) if texts else "unknown"


def _splits(table: np.ndarray) -> str:
    names, counts = np.unique(table["split"], return_counts=True)
    masks = int(np.count_nonzero(table["mask_length"]))
    texts = [f"{name.decode()} {count}" for name, count in zip(names, counts, strict=True) if name]
    return f"{', '.join(texts)}; {masks} label tiles" if texts else "none"


def _row(reader: ShardReader, tile: str) -> int:
    matches = np.flatnonzero(reader.table["key"] == tile.encode())
    if len(matches):
        return int(matches[0])
    if tile.isdecimal() and int(tile) < len(reader):
        return int(tile)
    raise ConfigError(f"{reader.location}: no tile '{tile}': give a sample key, e.g. {reader.key(0)}, or a row number")


def _draw(reader: ShardReader, row: int, path: Path) -> None:
    """Draw an RGB composite (2 to 98 %), the label tile if there is one, and spectra over wavelength."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    values = np.empty((1, *reader.tile_shape), dtype=np.int16)
    reader.read([row], values)
    tile, mask = values[0], reader.read_mask(row)
    figure = Figure(figsize=(12, 4) if mask is None else (15, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(1, 2 if mask is None else 3, width_ratios=[1, 2] if mask is None else [1, 1, 2])
    sensor = sensor_of(reader.manifest)
    axes[0].imshow(rgb(tile, sensor.rgb))
    axes[0].set_title(f"{reader.key(row)}", fontsize=9)
    axes[0].axis("off")
    if mask is not None:
        axes[1].imshow(np.ma.masked_equal(mask, NODATA), cmap="tab20", interpolation="nearest")
        axes[1].axis("off")
    draw_spectra(axes[-1], tile, sensor)
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None


def rgb(tile: np.ndarray, bands: tuple[int, int, int]) -> np.ndarray:
    """Return an int16 tile as RGB, float (height, width, 3) in [0, 1], stretched from 2 to 98 %; no data is white."""
    layers = tile[list(bands)].transpose(1, 2, 0)
    return stretch(np.where(layers == NODATA, np.nan, layers))


def draw_spectra(axes: Any, tile: np.ndarray, sensor: Sensor) -> None:
    """Plot the reflectance of five pixels and the median, with breaks at spectral gaps and missing values.

    Args:
        tile: int16 (bands, height, width).
        sensor: sensor of the tile's bands.
    """
    pixels = tile.reshape(len(tile), -1).astype(np.float64)
    pixels[pixels == NODATA] = np.nan
    pixels /= sensor.scale
    centers, widths = np.asarray(sensor.wavelength_nm), np.asarray(sensor.fwhm_nm)
    order = np.argsort(centers)
    breaks = gaps(centers[order], widths[order])
    nm = np.insert(centers[order], breaks, np.nan)
    valid = np.flatnonzero(~np.isnan(pixels).all(0))
    if len(valid):
        median = np.full(len(pixels), np.nan)
        present = ~np.isnan(pixels).all(1)
        median[present] = np.nanmedian(pixels[present], axis=1)
        for pixel in valid[np.linspace(0, len(valid) - 1, 5).astype(int)]:
            axes.plot(nm, np.insert(pixels[order, pixel], breaks, np.nan), lw=0.7)
        axes.plot(nm, np.insert(median[order], breaks, np.nan), color="black", label="median")
        axes.legend()
    axes.set_xlabel("wavelength (nm)")
    axes.set_ylabel("reflectance")

"""Training jobs over sources of different tile sizes and sensors, and the record of what they read."""

import json
from pathlib import Path

import numpy as np
import yaml
from support.tiles import NODATA, write_tile
from support.zero_jobs import Runs

from shards.pack.build import PackConfig, pack

HALF = 2


def pack_small_tiles(folder: Path) -> None:
    """Pack seven locations of 24 x 24 px, two of them with two dates."""
    nm = np.linspace(0, 1, 202)[:, None, None]
    for number in range(7):
        rng = np.random.default_rng(100 + number)
        for date in range(1 + (number < 2)):
            values = np.rint(2000 * nm + 900 * np.cos(number + 4 * nm) + rng.normal(0, 20, (202, 24, 24)))
            values[:, :2, :2] = NODATA
            write_tile(folder / "enmap" / f"{number + 500:07d}" / f"{date + 1:05d}.tif", values.astype(np.int16))
    pack(folder, folder / "shards", PackConfig(tiles_per_shard=4))


def pack_camera_tiles(folder: Path) -> None:
    """Pack six tiles of 20 x 20 px of a camera with 80 bands."""
    nm = np.linspace(450, 950, 80)
    rows = "".join(f"{center:.2f},9\n" for center in nm)
    folder.mkdir(parents=True)
    (folder / "camera.csv").write_text(f"wavelength_nm,fwhm_nm\n{rows}")
    for number in range(6):
        noise = np.random.default_rng(200 + number).normal(0, 20, (80, 20, 20))
        values = 1500 + 800 * np.sin(nm[:, None, None] / 90 + number) + noise
        write_tile(folder / "tiles" / f"field-{number}.tif", np.rint(values).astype(np.int16))
    pack(folder / "tiles", folder / "shards", PackConfig(sensor=str(folder / "camera.csv")))


def sources(folder: Path, with_camera: bool = False) -> list[str]:
    """Return overrides that read the shards of a folder, twice as often as those of `pack_small_tiles` in it."""
    small = {"shards": str(folder / "small" / "shards"), "name": "small", "holdout": 0.2}
    parts: list[dict] = [{"shards": str(folder / "shards"), "name": "large", "weight": 2}, small]
    if with_camera:
        parts.append({"shards": str(folder / "camera" / "shards"), "name": "camera", "holdout": 0.2})
    text = yaml.safe_dump(parts, default_flow_style=True, width=10**6).strip()
    return ["data.shards=null", f"data.sources={text}", "log.samples=true"]


def mixture_jobs(runs: Runs) -> tuple[list[dict], list[dict]]:
    """Return the jobs for two processes, and those for one that follow them."""
    folder = runs.folder
    pack_small_tiles(folder / "small")
    pack_camera_tiles(folder / "camera")
    both, three, mae = sources(folder), sources(folder, with_camera=True), "objective.mask_ratio=0.75"
    sensors = [mae, "objective.ignore_nodata=true", "model.stem=wave", "train.steps=4"]
    moco = [*both, "objective={name: moco, queue: 64, hidden: 64, dim: 32, momentum: 0.9, head_norm: true}"]
    two = [
        runs.job("sensors-2", *three, *sensors),
        runs.job("sensors-half", *three, *sensors, stop_at=2),
        runs.job("mixture-2", *moco, "train.steps=2"),
        runs.job("alone", mae, "log.samples=true", stop_at=HALF),
    ]
    accept = "checkpoint.accept=[data.sources]"
    one = [
        runs.job("sensors-1", *three, *sensors, "engine.zero_stage=2", "train.micro_batch=4"),
        runs.job("sensors-resumed", *three, *sensors, copy_from="sensors-half"),
        runs.job("sensors-other", *both, *sensors, copy_from="sensors-half"),
        runs.job("sensors-conv", *three, mae),
        runs.job("mixture-1", *moco, "train.steps=2"),
        runs.job("mixture-added", *both, mae, copy_from="alone"),
        runs.job("mixture-begun", *both, mae, accept, copy_from="alone", stop_at=HALF + 1),
        runs.job("mixture-begun-again", *both, mae, copy_from="mixture-begun", stop_at=HALF + 2),
    ]
    return two, one


def samples_read(runs: Runs, name: str) -> dict[int, tuple[int, str]]:
    """Return the tile and the source of every sample number in a run's sample log; each is there once."""
    read: dict[int, tuple[int, str]] = {}
    for path in sorted((runs.folder / name).glob("samples-*.jsonl")):
        for line in map(json.loads, path.read_text().splitlines()):
            found = zip(line["tiles"], line.get("sources", ["alone"] * len(line["tiles"])), strict=True)
            numbers = dict(zip(line["samples"], found, strict=True))
            assert read.keys().isdisjoint(numbers)
            read |= numbers
    return read

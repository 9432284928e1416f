"""Training jobs over two sources of different tile sizes, and the record of what they read."""

import json
from pathlib import Path

import numpy as np
import yaml
from support.tiles import NODATA, write_tile
from support.zero_jobs import Runs

from shards.pack.build import PackConfig, pack

HALF = 3


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


def sources(folder: Path, small_weight: int = 1) -> list[str]:
    """Return overrides that read the shards of a folder, twice as often as those of `pack_small_tiles` in it."""
    small = {"shards": str(folder / "small" / "shards"), "name": "small", "weight": small_weight, "holdout": 0.2}
    parts = [{"shards": str(folder / "shards"), "name": "large", "weight": 2}, small]
    text = yaml.safe_dump(parts, default_flow_style=True, width=10**6).strip()
    return ["data.shards=null", f"data.sources={text}", "log.samples=true"]


def mixture_jobs(runs: Runs) -> tuple[list[dict], list[dict]]:
    """Return the jobs for two processes, and those for one that follow them."""
    folder, half = runs.folder, {"copy_from": "mixture-half"}
    pack_small_tiles(folder / "small")
    moco = "objective={name: moco, queue: 64, hidden: 64, dim: 32, momentum: 0.9, head_norm: true}"
    both, mae = sources(folder), "objective.mask_ratio=0.75"
    two = [
        runs.job("mixture-2", mae, *both),
        runs.job("mixture-half", mae, *both, stop_at=HALF),
        runs.job("mixture-moco-2", *both, moco, "train.steps=2"),
        runs.job("alone", mae, "log.samples=true", stop_at=HALF),
    ]
    accept = "checkpoint.accept=[data.sources]"
    one = [
        runs.job("mixture-1", mae, *both, "engine.zero_stage=2", "train.micro_batch=4"),
        runs.job("mixture-resumed", mae, *both, "engine.zero_stage=0", **half),
        runs.job("mixture-moco-1", *both, moco, "train.steps=2"),
        runs.job("mixture-other", mae, *sources(folder, 3), **half),
        runs.job("mixture-accepted", mae, *sources(folder, 3), accept, **half),
        runs.job("mixture-added", mae, *both, copy_from="alone"),
        runs.job("mixture-begun", mae, *both, accept, copy_from="alone", stop_at=HALF + 1),
        runs.job("mixture-begun-again", mae, *both, copy_from="mixture-begun"),
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

"""A synthetic sample in SpectralEarth's layout, for the demo and tests: `python -m tools.sample_data DEST`.

Every pixel is a mixture of six materials on the true 202-band wavelength axis. The data are
physically plausible but synthetic: scores on them show that the workflow runs, not how good a model is.

::

    DEST/
      enmap/<location>/<scene>.tif     202 bands, int16 reflectance x 10000, some locations with two dates
      labels/<location>/<scene>.tif    uint8: classes 1 to 6, 0 where mixed or not measured
      splits/{train,val,test}.txt      60/20/20 by location
      sample.json  README.txt          how it was made
"""

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine

from finetune.tasks import get_task, task_names
from shards.cli import Parser, positive, run_command, whole_number
from shards.files.atomic import TEMPORARY
from shards.progress import progress
from tools.sample_spectra import CLASSES
from tools.sample_tasks import make_task_sample
from tools.sample_tiles import PIXEL_M, SampleError, SampleOptions, make_place, plan_visits, render

RECIPE = 1
"""Increment whenever the same options give a different sample, so that older samples are not mistaken for it."""

README = """\
These tiles are synthetic. No satellite measured them; no place on Earth looks like this.

They imitate EnMAP L2A tiles as SpectralEarth stores them, so that the whole path (shards, pretraining,
fine-tuning) can be run without a download. Scores on them show that the path works, nothing more.

How they are made (tools/sample_data.py, numpy only, seeded; sample.json holds the options):
- six materials with spectra from simple formulas on EnMAP's band centers (tools/sample_spectra.py): pigments,
  liquid water, cellulose, clay, iron and carbonate; each varies with two properties, and from location to location;
- parcels with curved borders, blurred by the sensor's point spread, so border pixels are mixed;
- terrain lit by the sun, a gain, a tilt, haze and water vapour left over from the atmosphere, per tile;
- noise by wavelength and signal (signal-to-noise at 30 % reflectance: 350 at 495 nm, 170 at 2200 nm), column stripes;
- a quarter of the locations at a second, later date; a tenth of the tiles with a swath margin, -32768 in all bands.

Labels: {classes}; 0 = no label (mixed or not measured). Splits are by location.
"""


def make_sample(dest: Path, options: SampleOptions) -> str:
    """Make the sample in ``dest`` unless it already holds this sample; return a line that reports which.

    Raises:
        SampleError: ``dest`` holds something else.
    """
    if dest.exists():
        if not holds_sample(dest, options):
            raise SampleError(f"{dest}: contains something other than this sample; remove it or choose another folder")
        return f"{dest}: the sample already exists"
    staged = dest.with_name(f"{dest.name}.{os.getpid()}{TEMPORARY}")
    try:
        tiles = _fill(staged, options)
        os.rename(staged, dest)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return f"{dest}: {tiles} synthetic tiles of {options.locations} locations, {len(CLASSES)} labeled classes"


def holds_sample(dest: Path, options: SampleOptions) -> bool:
    """Return whether ``dest`` holds the sample of these options, made by this version."""
    return _recorded(dest) == _record(options)


def _record(options: SampleOptions) -> dict[str, int]:
    return {"recipe": RECIPE, **asdict(options)}


def _recorded(dest: Path) -> object:
    """Return the contents of ``dest``'s sample.json; None if it is missing or damaged."""
    try:
        return json.loads((dest / "sample.json").read_bytes())
    except (OSError, ValueError):
        return None


def _fill(folder: Path, options: SampleOptions) -> int:
    """Write the complete sample into ``folder`` and return the number of tiles."""
    folder.mkdir(parents=True)
    scenes: dict[str, list[str]] = {}
    visits = plan_visits(options)
    with progress("sample", sum(map(len, visits))) as bar:
        for number, dates in enumerate(visits):
            name = f"{1000 + 37 * number:07d}"
            scenes[name] = [f"{visit.scene:05d}.tif" for visit in dates]
            rng = np.random.default_rng([options.seed, number + 1])  # plan_visits uses 0
            place = make_place(rng, options.size)
            grid = Affine(PIXEL_M, 0.0, 300000.0 + 5000.0 * number, 0.0, -PIXEL_M, 5800000.0)
            for visit, scene in zip(dates, scenes[name], strict=True):
                tile, labels = render(rng, place, visit)
                _write(folder / "enmap" / name / scene, tile, grid)
                _write(folder / "labels" / name / scene, labels[None], grid)
                bar.update()
    _write_splits(folder / "splits", scenes, options.seed)
    codes = ", ".join(f"{code} = {name}" for code, name in enumerate(CLASSES, start=1))
    (folder / "README.txt").write_text(README.format(classes=codes), encoding="utf-8")
    (folder / "sample.json").write_text(json.dumps(_record(options)) + "\n", encoding="utf-8")
    return sum(map(len, visits))


def _write(path: Path, values: np.ndarray, grid: Affine) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = values.shape
    options = {"driver": "GTiff", "interleave": "pixel", "crs": "EPSG:32633", "transform": grid}
    with rasterio.open(path, "w", count=bands, height=height, width=width, dtype=values.dtype, **options) as file:
        file.write(values)
        file.update_tags(TIFFTAG_IMAGEDESCRIPTION="synthetic EnMAP-like tile, made up, not measured")


def _write_splits(folder: Path, scenes: dict[str, list[str]], seed: int) -> None:
    """Write random splits of the locations, 60/20/20."""
    folder.mkdir()
    drawn = np.random.default_rng([seed, len(scenes) + 1]).permutation(sorted(scenes)).tolist()
    fifth = round(len(drawn) / 5)
    parts = {"val": drawn[:fifth], "test": drawn[fifth : 2 * fifth], "train": drawn[2 * fifth :]}
    for split, locations in parts.items():
        lines = [f"{location}/{name}\n" for location in sorted(locations) for name in scenes[location]]
        (folder / f"{split}.txt").write_text("".join(lines), encoding="utf-8")


def _make_tasks(arguments: argparse.Namespace) -> None:
    names = [arguments.task]
    if arguments.task == "all":
        names = [name for name in task_names() if get_task(name).layout]
    size = 32 if arguments.size == SampleOptions.size else arguments.size
    for name in names:
        print(make_task_sample(arguments.dest, get_task(name), arguments.tiles, size, arguments.seed))


def main(argv: list[str] | None = None) -> int:
    """Make a sample and return the exit code."""
    return run_command(build_parser(), argv)


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="python -m tools.sample_data", description=str(__doc__).splitlines()[0])
    parser.add_argument("dest", type=Path, help="folder to write")
    parser.add_argument("--locations", type=whole_number, default=SampleOptions.locations, help="default: %(default)s")
    parser.add_argument(
        "--size", type=whole_number, default=SampleOptions.size, help="tile side in pixels (%(default)s)"
    )
    parser.add_argument("--seed", type=whole_number, default=SampleOptions.seed, help="default: %(default)s")
    parser.add_argument("--task", help="write a small copy of a downstream task's download instead; 'all' for each")
    parser.add_argument("--tiles", type=positive, default=15, help="tiles of a task's copy (%(default)s)")
    parser.set_defaults(run=_make)
    return parser


def _make(arguments: argparse.Namespace) -> None:
    if arguments.task is not None:
        _make_tasks(arguments)
        return
    print(make_sample(arguments.dest, SampleOptions(arguments.locations, arguments.size, arguments.seed)))


if __name__ == "__main__":
    sys.exit(main())

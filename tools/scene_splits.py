"""Draw the split of a classic scene: a map of tiles for the key ``scene.split`` of its task.

With the scene's files, simulated annealing searches for the map whose splits share every class or target best. Without,
square regions are drawn into train, val or test, with a line of tiles between them. In both, tiles of two splits never
touch, not even at a corner.

    python -m tools.scene_splits indian_pines --rows 145 --columns 145 --tile 16 --files FILES
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from finetune.data.scenes import read_labels
from finetune.tasks import get_task
from finetune.tasks.scene import LETTERS, UNUSED, Scene
from shards.cli import Parser, positive, run_command

SHARES = {"train": 0.5, "val": 0.2, "test": 0.3}
"""Share of the regions, or of the pixels of each class, that each split should have."""

LEAST = 1e-3
"""What counts as the share of a class that a split lacks."""

SIDE = 3
"""Height and width of drawn regions in tiles, in grids of at least four regions a side; smaller in others."""

UNTAUGHT = -0.3
"""What counts as the share of a class that val or test have, but train lacks."""

MOVES, HOTTEST = 10_000, 0.03


def main(argv: list[str] | None = None) -> int:
    """Print the map of a scene."""
    parser = Parser(prog="python -m tools.scene_splits", description=__doc__)
    parser.add_argument("task", help="task whose labels are counted")
    for name in ("rows", "columns", "tile"):
        parser.add_argument(f"--{name}", type=positive, required=True, help="in pixels")
    parser.add_argument("--searches", type=positive, default=8, help="searches, of which the best counts (default: 8)")
    parser.add_argument("--files", nargs="*", type=Path, default=[], help="files of the scene, for its labels")
    parser.set_defaults(run=_print_map)
    return run_command(parser, argv)


def _print_map(arguments: argparse.Namespace) -> None:
    grid = (arguments.rows // arguments.tile, arguments.columns // arguments.tile)
    letters = np.array([UNUSED, *LETTERS.values()])
    if not arguments.files:
        splits = draw_regions(grid, np.random.default_rng(0))
    else:
        task = get_task(arguments.task)
        blank = "\n".join([UNUSED * grid[1]] * grid[0])
        scene = Scene(shape=(arguments.rows, arguments.columns, 1), tile=arguments.tile, split=blank)
        labels = read_labels(task, scene, arguments.files)
        if task.classes:
            labels = (labels == np.array([entry.all_codes[0] for entry in task.classes])[:, None, None]).astype(float)
        counts = count_by_tile(labels, scene)
        found = [search(counts, np.random.default_rng(seed)) for seed in range(arguments.searches)]
        splits = max(found, key=lambda splits: coverage(splits, counts))
    print("\n".join("".join(line) for line in letters[splits + 1].tolist()))


def count_by_tile(labels: np.ndarray, scene: Scene) -> np.ndarray:
    """Return the sum of each output in each tile, (rows, columns, outputs)."""
    rows, columns = scene.grid
    cut = labels[:, : rows * scene.tile, : columns * scene.tile]
    return cut.reshape(-1, rows, scene.tile, columns, scene.tile).sum((2, 4)).transpose(1, 2, 0)


def search(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the split of each tile, int (rows, columns), -1 for none, found by simulated annealing.

    A move puts one tile into a split and takes its neighbors out of all others.
    """
    rows, columns = counts.shape[:2]
    splits = np.full((rows, columns), -1)
    score = coverage(splits, counts)
    for move in range(MOVES):
        row, column, split = rng.integers(0, [rows, columns, len(LETTERS)])
        moved = splits.copy()
        near = moved[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        near[near != split] = -1
        moved[row, column] = split
        reached = coverage(moved, counts)
        temperature = HOTTEST * (1 - move / MOVES)
        if reached >= score or rng.random() < np.exp((reached - score) / temperature):
            splits, score = moved, reached
    return splits


def coverage(splits: np.ndarray, counts: np.ndarray) -> float:
    """Return how well the splits share the outputs: 1 if each has its share of all pixels of each output.

    An output that val or test have, but train lacks, can't be learned, and is worse than one that no split has.
    """
    of_split = splits.ravel() == np.arange(len(LETTERS))[:, None]
    sums = of_split.astype(float) @ counts.reshape(-1, counts.shape[2])
    wanted = np.maximum(counts.sum((0, 1)), 1) * np.array(list(SHARES.values()))[:, None]
    shared = np.prod(np.clip(sums / wanted, LEAST, 1), axis=0) ** (1 / len(LETTERS))
    untaught = (sums[0] == 0) & (sums[1:] > 0).any(0)
    return float(np.mean(np.where(untaught, UNTAUGHT, shared)))


def draw_regions(grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return the split of each tile, int (rows, columns), -1 for none: squares with a line of tiles between them.

    A tile between regions joins the split of its neighbors if they are all in the same one.
    """
    side = max(1, min(SIDE, min(grid) // 4))
    (row, down), (column, right) = (np.divmod(np.arange(length), side + 1) for length in grid)
    shares = np.array(list(SHARES.values()))
    regions = (row[-1] + 1, column[-1] + 1)
    drawn = rng.permutation(np.searchsorted(shares.cumsum(), (np.arange(np.prod(regions)) + 0.5) / np.prod(regions)))
    splits = np.where((down == side)[:, None] | (right == side), -1, drawn.reshape(regions)[np.ix_(row, column)])
    padded, joined = np.pad(splits, 1, constant_values=-1), splits.copy()
    for i, j in np.argwhere(splits == -1):
        near = set(padded[i : i + 3, j : j + 3].ravel().tolist()) - {-1}
        if len(near) == 1:
            joined[i, j] = near.pop()
    return joined


if __name__ == "__main__":
    sys.exit(main())

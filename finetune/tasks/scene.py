"""A classic scene: one cube with one label map, cut into tiles whose splits are regions that don't touch."""

import itertools
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from shards.config import ConfigModel
from shards.config.fields import Positive, Rate

LETTERS = {"train": "T", "val": "V", "test": "X"}
"""How a map of tiles shows each split; tiles with any other letter of `UNUSED` are in none."""

UNUSED = "."


class Scene(ConfigModel):
    """The arrays of a scene and its published splits.

    ``split`` has a line for each row of tiles and a letter for each tile: T (train), V (val), X (test), or a dot for
    tiles that are in no split. Tiles of two splits never touch, not even at a corner, so at least one tile lies between
    them.
    """

    shape: Annotated[tuple[Positive, Positive, Positive], Field(strict=False)]
    """Rows, columns and bands of the cube."""
    tile: Positive
    """Height and width of a tile in pixels; what remains at the lower and the right edge is left out."""
    factor: Rate = 1.0
    """Values are multiplied by it and rounded to digital numbers in int16."""
    split: str
    """The map of tiles."""

    @model_validator(mode="after")
    def _map_fits(self) -> Self:
        rows, columns = self.grid
        lines = self.split.split()
        if [len(line) for line in lines] != [columns] * rows:
            raise ValueError(f".split: expected {rows} lines of {columns} letters, one for each tile")
        if wrong := sorted(set("".join(lines)) - {UNUSED, *LETTERS.values()}):
            raise ValueError(f".split: unknown letter '{wrong[0]}': use {', '.join(LETTERS.values())} and '{UNUSED}'")
        if touching := find_touching(self.letters):
            (row, column), (other_row, other_column) = touching
            raise ValueError(
                f".split: the tiles in row {row}, column {column} and row {other_row}, column {other_column} touch, "
                "but are in different splits"
            )
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return self.shape[0] // self.tile, self.shape[1] // self.tile

    @property
    def letters(self) -> np.ndarray:
        """The letter of each tile, one-character strings (rows, columns)."""
        return np.array([list(line) for line in self.split.split()])

    def tiles_of(self, split: str) -> list[tuple[int, int]]:
        """Return row and column of each tile of a split, in reading order."""
        return [(int(row), int(column)) for row, column in np.argwhere(self.letters == LETTERS[split])]


def find_touching(letters: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return two tiles of different splits that share an edge or a corner, or None if there are none."""
    rows, columns = letters.shape
    for row, column in np.argwhere(letters != UNUSED).tolist():
        for down, right in itertools.product((-1, 0, 1), repeat=2):
            other = (row + down, column + right)
            inside = 0 <= other[0] < rows and 0 <= other[1] < columns
            if inside and letters[other] not in (UNUSED, letters[row, column]):
                return (row, column), other
    return None

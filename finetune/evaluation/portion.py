"""How many of the training tiles a run uses."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Portion:
    """A fraction of the training tiles, or few shots: all tiles of ``shots`` places of each class.

    Attributes:
        fraction: 0 < fraction <= 1; None for few shots.
    """

    fraction: float | None = 1.0
    shots: int | None = None

    @classmethod
    def few(cls, shots: int) -> "Portion":
        """Return the portion of few shots."""
        return cls(None, shots)

    @property
    def is_all(self) -> bool:
        """Whether it is all tiles."""
        return self.fraction == 1.0

    @property
    def key(self) -> str:
        """Short text for names of files."""
        return f"{self.shots}-shot" if self.fraction is None else f"{self.fraction:g}"

    @property
    def name(self) -> str:
        """Text for tables: ``10 %`` or ``5 shots``."""
        if self.fraction is not None:
            return f"{100 * self.fraction:g} %"
        return f"{self.shots} shot{'s' if self.shots != 1 else ''}"

    @property
    def of_tiles(self) -> str:
        """Text for sentences: ``10 % of the tiles`` or ``5 shots``."""
        return f"{self.name} of the tiles" if self.shots is None else self.name

    @property
    def rank(self) -> tuple[float, int]:
        """Key that sorts larger portions first, and fractions before shots."""
        return -(self.fraction or 0.0), -(self.shots or 0)


def list_portions(fractions: Sequence[float], shots: Sequence[int]) -> list[Portion]:
    """Return the portions of a config."""
    return [*(Portion(fraction) for fraction in fractions), *(Portion.few(number) for number in shots)]

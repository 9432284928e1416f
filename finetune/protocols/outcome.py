"""What a protocol found with one seed, and the result that it becomes."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from finetune.evaluation.collector import Evaluation
from finetune.evaluation.portion import Portion
from finetune.evaluation.results import Provenance, Result
from finetune.metrics.scores import Scores
from pretrain.resilience.guard import Diverged


@dataclass(frozen=True)
class SeedOutcome:
    """Outcome of a protocol with one seed, before it becomes a `Result`.

    Attributes:
        head: label of the head; ``knn`` for nearest neighbors.
        head_options: options of the head in a config, see HeadConfig.to_plain.
        weights: weights of the head by name, if they are not in a checkpoint.
    """

    head: str
    seed: int
    validation: Scores
    test: Evaluation
    lr: float | None = None
    epoch: int | None = None
    curve: list[dict[str, float]] | None = None
    head_options: Any = None
    weights: dict[str, Tensor] | None = None

    def to_result(self, encoder: str, protocol: str, portion: Portion, share: float, provenance: Provenance) -> Result:
        """Return the result to save.

        Args:
            encoder: key into the results' ``encoders``.
            share: fraction of the training tiles that the portion is.

        Raises:
            Diverged: a score is not finite.
        """
        for split, scores in (("validation", self.validation), ("test", self.test.scores)):
            if not scores.are_finite:
                bad = ", ".join(f"{key} {value}" for key, value in scores.values.items() if not math.isfinite(value))
                raise Diverged(
                    f"{encoder}, {protocol}, head {self.head}, seed {self.seed}, {portion.of_tiles}: {split} scores "
                    f"are not finite ({bad}): lower the learning rate, or look at the tiles of the '{split}' split"
                )
        return Result(
            encoder=encoder,
            protocol=protocol,
            head=self.head,
            seed=self.seed,
            fraction=share,
            shots=portion.shots,
            lr=self.lr,
            epoch=self.epoch,
            validation=self.validation.values,
            test=self.test.scores.values,
            by_output=self.test.scores.by_output,
            curve=self.curve or [],
            provenance=provenance,
            statistics=self.test.statistics,
            maps=self.test.maps,
            calibration=self.test.calibration,
        )

"""Compare the weights of a file with those of a model, name by name."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from pretrain.weights.description import WeightsError

_EXAMPLES = 2  # names that stand for the others in a table


@dataclass(frozen=True)
class LoadReport:
    """The names of weights by the result of their comparison.

    Attributes:
        total: number of weights of the model.
        matched: in the file with the model's shape.
        missing: in the model only.
        unexpected: in the file only.
        misshapen: in both with different shapes; each with both shapes.
        reshaped: position embeddings interpolated to another image size; each with both shapes.
        copies: in the file, equal to a weight that was taken.
        left_out: in the file, but not part of an encoder: heads, decoders, second networks.
    """

    total: int
    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]
    reshaped: list[str]
    copies: list[str]
    left_out: list[str]

    def table(self) -> str:
        """Return the report as text, one line for each kind."""
        rows = [
            ("matched", self.matched),
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.misshapen),
            ("reshaped", self.reshaped),
            ("equal copies", self.copies),
            ("left out", self.left_out),
        ]
        lines = [f"{'weights':<18}{'count':>6}  names"]
        for what, names in rows:
            more = ", ..." if len(names) > _EXAMPLES else ""
            lines.append(f"{what:<18}{len(names):>6}  {', '.join(names[:_EXAMPLES])}{more}".rstrip())
        return "\n".join([*lines, f"{'share of the model':<18}{len(self.matched) / max(self.total, 1):>6.0%}"])

    def require_all(self, where: str, model: str) -> None:
        """Raise an error unless the file holds all weights of the model and no others.

        Args:
            model: name of the model that the weights resemble most.

        Raises:
            WeightsError: one line that counts and names what is missing, unexpected or of another shape.
        """
        kinds = (("missing", self.missing), ("unexpected", self.unexpected), ("of a different shape", self.misshapen))
        problems = [f"{len(names)} {what} (e.g. {names[0]})" for what, names in kinds if names]
        if problems:
            counts = f"{len(self.matched)} of the {self.total} weights of {model} match, {', '.join(problems)}"
            raise WeightsError(f"{where}: weights of another model: {counts}; use a whole checkpoint of this model")

    def with_reshaped(self, name: str, before: Tensor, after: Tensor) -> "LoadReport":
        """Return the report after one weight was interpolated."""
        return replace(self, reshaped=[*self.reshaped, f"{name}: {tuple(before.shape)} to {tuple(after.shape)}"])


def compare(
    expected: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    copies: list[str] | None = None,
    left_out: list[str] | None = None,
) -> LoadReport:
    """Compare a model's state with weights by name and shape; names are sorted, matched ones in the model's order.

    Args:
        copies, left_out: names of the file's other entries.
    """
    shared = [name for name in expected if name in weights]
    matched = [name for name in shared if expected[name].shape == weights[name].shape]
    return LoadReport(
        total=len(expected),
        matched=matched,
        missing=sorted(expected.keys() - weights.keys()),
        unexpected=sorted(weights.keys() - expected.keys()),
        misshapen=[
            f"{name}: {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in sorted(set(shared) - set(matched))
        ],
        reshaped=[],
        copies=copies or [],
        left_out=left_out or [],
    )

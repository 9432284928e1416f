"""Compare time and scores of the frozen protocol and the published method on one task.

    python -m tools.bench_frozen --config configs/finetune/demo.yaml [key.sub=value ...] [--rounds 3]

Ours computes features of every view once, then trains all heads x rates x seeds on the cached features. The published
method runs the encoder on a crop of every tile in every epoch of every training, with adapting batch norms; one
training (first rate, first seed) is timed and multiplied by the number of trainings in the sweep. Rounds alternate;
ratios are taken within a round.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from finetune.config import FinetuneConfig
from finetune.encoders.features import BATCH, encode
from finetune.evaluate import prepare
from finetune.evaluation.context import EvaluationContext
from finetune.evaluation.portion import Portion
from finetune.protocols.runner import Protocols
from launch import runtime
from launch.command import command_parser, fail, parse_command
from pretrain import distributed
from pretrain.resilience.signals import StopRequest
from pretrain.resilience.watchdog import Watchdog
from shards.cli import positive
from shards.errors import ForgeError

PUBLISHED_CROP = (0.4, 1.0)


@dataclass(frozen=True)
class Round:
    """Seconds of one round.

    Attributes:
        one_pass: one pass of the encoder over the same views, without storing features.
        features, heads: feature computation and head training of our method.
        published: one training with the published method.
        trainings: number of trainings in the sweep.
    """

    one_pass: float
    features: float
    heads: float
    published: float
    trainings: int

    @property
    def faster(self) -> float:
        """How many times faster the sweep is."""
        return self.published * self.trainings / (self.features + self.heads)

    @property
    def overhead(self) -> float:
        """Our time divided by that of one pass of the encoder plus the heads."""
        return (self.features + self.heads) / (self.one_pass + self.heads)


@dataclass(frozen=True)
class Way:
    """A recipe and its data."""

    config: FinetuneConfig
    context: EvaluationContext

    def protocols(self, folder: Path) -> Protocols:
        """Return the protocols of a run in the given folder."""
        run = self.config.run.model_copy(update={"dir": str(folder)})
        watchdog = Watchdog(self.config.watchdog, folder, StopRequest())
        return Protocols(replace(self.context, config=self.config.model_copy(update={"run": run}), watchdog=watchdog))

    def test_scores(self, protocols: Protocols) -> list[float]:
        """Return the task's primary score for each seed."""
        results = protocols.run("pretrained", "frozen", Portion())
        assert results is not None  # no stop was requested
        return [result.test[self.context.kind.primary] for result in results]


def both_ways(config: FinetuneConfig) -> tuple[Way, Way]:
    """Return our recipe as configured, and the published recipe for one training."""
    heads = config.frozen.model_copy(update={"bn": "frozen"})
    ours = config.model_copy(update={"protocol": ("frozen",), "fractions": (1.0,), "frozen": heads})
    adapting = heads.model_copy(update={"bn": "adapt", "lrs": heads.lrs[:1], "evaluate_every": 1})
    crops = config.full.model_copy(update={"crop_scale": PUBLISHED_CROP})
    published = {"frozen": adapting, "full": crops, "seeds": config.seeds[:1], "select": "loss"}
    theirs = ours.model_copy(update=published)
    return _way(ours), _way(theirs)


def _way(config: FinetuneConfig) -> Way:
    return Way(config, prepare(config, Watchdog(config.watchdog, Path(config.run.dir), StopRequest())))


def measure(ours: Way, theirs: Way) -> tuple[Round, list[float], list[float]]:
    """Return one round's times, and the test scores of both methods."""
    with tempfile.TemporaryDirectory() as folder:
        sweep, published = ours.protocols(Path(folder) / "ours"), theirs.protocols(Path(folder) / "theirs")
        one_pass = _seconds(lambda: _encode_everything(sweep))
        scores: list[list[float]] = []
        total = _seconds(lambda: scores.append(ours.test_scores(sweep)))
        one_training = _seconds(lambda: scores.append(theirs.test_scores(published)))
    trainings = len(ours.config.seeds) * len(ours.config.frozen.lrs) * len(ours.context.recipe.heads)
    features = sweep.feature_seconds
    return Round(one_pass, features, total - features, one_training, trainings), scores[0], scores[1]


def _encode_everything(protocols: Protocols) -> None:
    """Encode all views of the training tiles and one view of the others, without storing features."""
    model = protocols.context.model("pretrained").to(distributed.device())
    for name, split in protocols.context.splits.items():
        for view in range(protocols.recipe.frozen.views if name == "train" else 1):
            for first in range(0, len(split), BATCH):
                rows = np.arange(first, min(first + BATCH, len(split)))
                encode(model, split, rows, np.full(len(rows), view), distributed.device())


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def _summary(rounds: list[Round], ours: Way, theirs: Way, scores: tuple[list[float], list[float]]) -> str:
    name, frozen = ours.context.kind.primary, ours.config.frozen
    trainings = rounds[0].trainings
    windows = {split: len(part) for split, part in ours.context.splits.items()}
    deviation = f" ± {statistics.stdev(scores[0]):.3f}" if len(scores[0]) > 1 else ""
    return "\n".join(
        [
            f"{ours.context.task.name}: {windows} windows, {frozen.epochs} epochs, median [range] of {len(rounds)}",
            f"ours: {trainings} trainings on {frozen.views} kept views, batch norms frozen, rate by validation score: "
            f"features {_spread([measured.features for measured in rounds], '.1f')} s, "
            f"heads {_spread([measured.heads for measured in rounds], '.1f')} s, "
            f"test {name} {statistics.mean(scores[0]):.3f}{deviation}",
            f"published way: one training at {theirs.config.frozen.lrs[0]:g}, batch norms adapt, "
            f"{_spread([measured.published for measured in rounds], '.1f')} s; {trainings} of them "
            f"{statistics.median([measured.published for measured in rounds]) * trainings:.0f} s; test {name} "
            f"{scores[1][0]:.3f}",
            f"ours is faster by {_spread([measured.faster for measured in rounds], '.1f')}",
            "ours over one pass of the encoder and the heads: "
            f"{_spread([measured.overhead for measured in rounds], '.2f')}",
        ]
    )


def main(argv: list[str] | None = None) -> None:
    """Measure, print, and end the process."""
    parser = command_parser(str(__doc__).splitlines()[0], prog="python -m tools.bench_frozen")
    parser.add_argument("--rounds", type=positive, default=3, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    config, arguments = parse_command(parser, argv, FinetuneConfig)
    runtime.prepare_environment(config.run.threads)
    runtime.prepare_torch(config.run.threads)
    from pretrain.engine.zero import init_distributed

    try:
        init_distributed()
        ways = both_ways(config)
        rounds = []
        for number in range(arguments.rounds):
            measured, *scores = measure(*ways)
            rounds.append(measured)
            print(f"round {number + 1}: {measured.faster:.1f}x", file=sys.stderr, flush=True)
    except ForgeError as error:
        fail(error)
    print(_summary(rounds, *ways, (scores[0], scores[1])))
    if arguments.json:
        content = [asdict(measured) | {"faster": measured.faster, "overhead": measured.overhead} for measured in rounds]
        arguments.json.write_text(json.dumps({"rounds": content, "scores": scores}, indent=1) + "\n")
    runtime.end_process(0)


if __name__ == "__main__":
    main()

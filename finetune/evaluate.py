"""One evaluation: the encoder and its untrained twin, under each protocol, to one table.

::

    RUN/
      config.yaml  report.md  results.json  maps.png
      features/<encoder>/<split>.zarr     cached features of the frozen protocol
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.config import FinetuneConfig
from finetune.datasets import LabelledWindows, load_splits
from finetune.features import frozen_features
from finetune.probe import FeatureSplit, Outcome, map_rows, probe
from finetune.report import Row, markdown_table, write_report
from finetune.tasks import Task, get_task
from finetune.tune import FullTuning, share_of_batch
from pretrain import distributed
from pretrain.models import EncoderDescription, Normaliser, load_encoder
from pretrain.models.batchnorm import grouped_batch_norms
from pretrain.models.encoder import Encoder
from pretrain.models.initialise import initialise
from pretrain.models.patches import sincos_positions
from pretrain.models.vit import ViTEncoder
from pretrain.telemetry import say
from shards.atomic import write_atomic
from shards.config import dump_config
from shards.errors import ConfigError
from shards.sensors import get_sensor


@dataclass(frozen=True)
class Labelled:
    """What an evaluation is about: the task and its windows, by split."""

    task: Task
    splits: dict[str, LabelledWindows]


def prepare(config: FinetuneConfig) -> Labelled:
    """Check a config and read its data; what is wrong is raised on every rank alike.

    Raises:
        ConfigError, WeightsError, SourceError, TileError: in one line.
    """
    return distributed.together(lambda: _prepare(config))


def _prepare(config: FinetuneConfig) -> Labelled:
    task = get_task(config.task)
    if "full" in config.protocols:
        share_of_batch(config.full)
    _, description = load_encoder(config.encoder)
    if description.sensor != config.data.sensor:
        raise ConfigError(f"key 'data.sensor': {config.data.sensor}, but the encoder is for {description.sensor}")
    if not description.mu:
        raise ConfigError(
            f"key 'encoder': {config.encoder} doesn't say how its images were normalised: "
            "python -m tools.convert FILE encoder.safetensors --statistics FOLDER adds it"
        )
    quiet = not distributed.is_main()
    return Labelled(task, load_splits(config.data, task, description.image_size, config.run.seed, quiet))


def evaluate(config: FinetuneConfig, labelled: Labelled) -> list[Row]:
    """Run all protocols of a config; rank 0 writes the report."""
    task, splits = labelled.task, labelled.splits
    folder = Path(config.run.dir)
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "config.yaml", dump_config(config))
    say(f"{task.name}: {', '.join(f'{len(part)} {name}' for name, part in splits.items())} windows")
    rows = []
    for name in ("pretrained", "random") if config.compare_random else ("pretrained",):
        for protocol in config.protocols:
            say(f"{name} encoder, {protocol}")
            run = _frozen if protocol == "frozen" else _full
            rows.append(Row(name, protocol, run(config, task, splits, name, folder)))
    if distributed.is_main():
        note = "Synthetic tiles: the numbers say that the path works, not how good the encoder is."
        write_report(folder, rows, task, note if task.synthetic else "")
        _draw_maps(folder / "maps.png", rows, task, splits["test"], config.data.sensor)
    say(markdown_table(rows, task))
    return rows


def _draw_maps(path: Path, rows: list[Row], task: Task, test: LabelledWindows, sensor: str) -> None:
    from finetune.pictures import map_figure  # matplotlib takes a second to load
    from pretrain.pictures import save_figure

    known = get_sensor(sensor)
    drawn = map_rows(len(test))
    images = test.images[drawn][:, list(known.rgb)].transpose(0, 2, 3, 1) / known.scale
    maps = {f"{row.encoder}, {row.protocol}": row.outcome.maps for row in rows}
    save_figure(map_figure(images, {"labels": test.labels[drawn], **maps}, task), path)


def _encoder(config: FinetuneConfig, name: str, bn_group: int | None) -> tuple[Encoder, Normaliser, EncoderDescription]:
    """The exported encoder, or its architecture with the weights that pretraining began from."""
    encoder, description = load_encoder(config.encoder, bn_group)
    if name == "random":
        initialise(encoder, "pretrain.encoder", config.run.seed)
        if isinstance(encoder, ViTEncoder) and description.objective == "mae":
            encoder.core.pos_embed.data.copy_(sincos_positions(encoder.feature_dim, encoder.grid))
        for norm in grouped_batch_norms(encoder):
            norm.forget()
    return (
        encoder,
        Normaliser(description.mu, description.sigma, description.clip).to(distributed.device()),
        description,
    )


def _frozen(config: FinetuneConfig, task: Task, splits: dict[str, LabelledWindows], name: str, folder: Path) -> Outcome:
    """On rank 0 alone: a head is small."""
    outcome = None
    if distributed.is_main():
        device = distributed.device()
        encoder, normalise, _ = _encoder(config, name, None)
        encoder.to(device).eval()
        features = {
            split: FeatureSplit(
                frozen_features(
                    encoder, normalise, windows, folder / "features" / name / f"{split}.zarr", device, quiet=False
                ).to(device),
                torch.from_numpy(windows.labels).to(device),
            )
            for split, windows in splits.items()
        }
        outcome = probe(features, task, encoder.stride, config.frozen, config.run.seed)
    return distributed.from_main(outcome)


def _full(config: FinetuneConfig, task: Task, splits: dict[str, LabelledWindows], name: str, folder: Path) -> Outcome:
    encoder, normalise, _ = _encoder(config, name, config.full.bn_group)
    return FullTuning(encoder, normalise, splits, task, config.full, config.engine, config.run.seed, name).fit()

"""Whatever strikes a run at random moments: the same samples and losses, no hang, no lost step."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support.fault_kinds import Signal, small_disk
from support.fault_schedule import Place, every_kind, run_schedule
from support.faults import FineTuning, Training
from support.mixture_jobs import pack_camera_tiles
from support.processes import SHALLOW
from support.tiles import write_archive

from finetune.tasks import get_task
from pretrain.checkpointing.checkpoint import step_of
from pretrain.models.initialize import initialize
from pretrain.models.published import SPEC_VITS
from pretrain.models.registry import build_encoder
from pretrain.weights.description import EncoderDescription
from pretrain.weights.files import save_encoder
from shards.pack.build import PackConfig, pack
from shards.sensors.sensor import get_sensor
from tools.sample_tasks import make_task_sample

STEPS, FAULTS, WORLDS, BATCH = 40, 24, (1, 2, 3, 4), 12
LIMIT, SETUP = 30, 90
"""watchdog.step and watchdog.setup, in seconds; four processes share two cores."""

OBJECTIVES: dict[str, dict] = {
    "mae": {"mask_ratio": 0.75, "decoder": {"width": 64, "depth": 1, "heads": 2}},
    "moco": {"name": "moco", "queue": 48, "hidden": 64, "dim": 32, "momentum": 0.9},
    "dino": {
        "name": "dino",
        "hidden": 64,
        "bottleneck": 32,
        "prototypes": 64,
        "momentum": 0.9,
        "local_crops": {"count": 2, "size": 8, "scale": [0.1, 0.4]},
    },
}

pytestmark = pytest.mark.distributed


def pretraining(folder: Path, objective: str, several: bool = False, **more: dict) -> Path:
    """Write the config of a run on one dataset, or on ``several`` sources, which are of two sensors."""
    write_archive(folder / "tiles", size=24)
    pack(folder / "tiles", folder / "shards", PackConfig(tiles_per_shard=4))
    data: dict = {"shards": str(folder / "shards")}
    if several:
        pack_camera_tiles(folder / "camera")
        sources = [
            {"shards": str(folder / "shards"), "weight": 2},
            {"shards": str(folder / "camera/shards"), "name": "camera"},
        ]
        data = {"sources": sources}
    config = {
        "plugins": [SHALLOW],
        "run": {"dir": "set by each training", "seed": 7},
        "data": data | {"holdout": 0.2, "read_threads": 1, "max_bad_tiles": 0},
        "model": {
            "name": "spec_vit_tiny",
            "image_size": 16,
            "patch_size": 4,
            "bn_group": 1,
            "stem": "wave" if several else None,
        },
        "objective": OBJECTIVES[objective],
        "optim": {"lr": 5e-4, "warmup_steps": 4},
        "train": {"steps": STEPS, "global_batch": BATCH, "micro_batch": 1},
        "engine": {"zero_stage": 3, "precision": "fp32", "param_persistence_threshold": 0},
        "checkpoint": {"every": 7, "keep": 3},
        "log": {"every": 1, "validate_every": 11, "samples": True},
        "watchdog": {"setup": SETUP, "step": LIMIT, "evaluation": 60, "saving": 60},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config | more))
    return path


def check_same(training: Training, reference: Training, exact: bool) -> None:
    assert training.ledger() == reference.ledger()
    losses, expected = training.losses(), reference.losses()
    assert losses.keys() == expected.keys()
    if exact:
        assert losses == expected
    else:
        assert losses == pytest.approx(expected, rel=1e-4, abs=0)


def check_epochs(training: Training) -> None:
    """In every whole epoch of a source each of its training tiles is seen once."""
    numbers = [number for samples in training.ledger().values() for number, _ in samples]
    assert numbers == list(range(len(numbers)))
    for rows in training.tiles_by_source().values():
        tiles = len(set(rows))
        for first in range(0, len(rows) - tiles + 1, tiles):
            assert len(set(rows[first : first + tiles])) == tiles


def test_a_training_on_two_sensors_survives_what_is_done_to_it(tmp_path: Path) -> None:
    config = pretraining(tmp_path, "mae", several=True, train={"steps": 14, "global_batch": 8, "micro_batch": 4})
    reference = Training(tmp_path / "whole", config)
    assert reference.launch(1).codes == [0]
    training = Training(tmp_path / "faulty", config)
    killed = Signal(step=11, number=signal.SIGKILL, ranks=[0, 1])
    assert training.launch(2, killed).codes == [-signal.SIGKILL] * 2
    assert step_of(training.whole()[-1]) == 7
    run_schedule(training, seed=5, faults=1, worlds=(1, 2), span=12)
    check_same(training, reference, exact=False)
    check_epochs(training)


# ---- the long form: 120 faults of every kind, 24 for each of five kinds of runs ----


@pytest.fixture
def disks() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def span_of(training: Training, world: int) -> float:
    begin = time.monotonic()
    ended = training.launch(world)
    assert ended.codes == [0] * world, ended.output
    return time.monotonic() - begin


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("objective", "several"), [("mae", False), ("mae", True), ("moco", False), ("dino", False)],
    ids=["mae", "several sources", "moco", "dino"],
)  # fmt: skip
def test_faults_of_a_pretraining(tmp_path: Path, disks: ExitStack, objective: str, several: bool) -> None:
    config = pretraining(tmp_path, objective, several)
    references = {world: Training(tmp_path / f"whole-{world}", config, batch=BATCH) for world in (1, 2)}
    span = max(span_of(reference, world) for world, reference in references.items())
    check_same(references[2], references[1], exact=False)
    faults = 0
    for seed in range(1000):
        worlds = WORLDS if seed % 3 else (1 + seed // 3 % 2,)
        stage = tmp_path / f"stage-{seed}"
        training = Training(
            tmp_path / f"faulty-{seed}", config, *([] if several else [f"data.stage={stage}"]), batch=BATCH
        )
        small = disks.enter_context(small_disk(training.folder, 300))
        place = Place(
            tmp_path / "hosts", tmp_path, None if several else tmp_path / "shards", None if several else stage, small
        )
        print(f"training {seed}, {'on a disk of its own' if small else 'no disk of its own: needs root'}:")
        report = run_schedule(
            training,
            f"{objective} {several} {seed}",
            min(6, FAULTS - faults),
            worlds,
            0.9 * span,
            every_kind(place),
            steps=12,
            limit=SETUP + 45,
        )
        faults += report.faults
        check_same(training, references[min(min(report.worlds), 2)], exact=report.worlds in ({1}, {2}))
        check_epochs(training)
        if faults >= FAULTS:
            break
    assert faults >= FAULTS


@pytest.mark.nightly
def test_faults_of_a_fine_tuning(tmp_path: Path, disks: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPEC_VITS, "spec_vit_tiny", replace(SPEC_VITS["spec_vit_tiny"], depth=2))
    config = fine_tuning(tmp_path)
    reference = FineTuning(tmp_path / "whole", config, batch=8)
    span = span_of(reference, 1)
    faults = 0
    for seed in range(1000):
        training = FineTuning(tmp_path / f"faulty-{seed}", config, batch=8)
        small = disks.enter_context(small_disk(training.folder, 300))
        print(f"fine-tuning {seed}, {'on a disk of its own' if small else 'no disk of its own: needs root'}:")
        draw = every_kind(Place(tmp_path / "hosts", tmp_path, small=small))
        report = run_schedule(
            training, f"fine-tuning {seed}", min(6, FAULTS - faults), (1, 2, 4), 0.9 * span, draw, limit=SETUP + 45
        )
        faults += report.faults
        for one, other in zip(training.scores(), reference.scores(), strict=True):
            assert one[:2] == other[:2]
            for scores, expected in zip((*one[2], one[3]), (*other[2], other[3]), strict=True):
                assert scores == pytest.approx(expected, rel=1e-4, abs=1e-4)
        if faults >= FAULTS:
            break
    assert faults >= FAULTS


def fine_tuning(folder: Path) -> Path:
    """Write the config of a task's sample, evaluated by a frozen and two fully tuned encoders."""
    make_task_sample(folder / "data", get_task("enmap_cdl"), tiles=16, size=16)
    enmap = get_sensor("enmap")
    told = [list(enmap.wavelength_nm), list(enmap.fwhm_nm), [2000.0] * 202, [1400.0] * 202]
    description = EncoderDescription("spec_vit_tiny", 16, 4, "enmap", *told, "mae", 0, "x", "t")
    encoder = build_encoder("spec_vit_tiny", 16, 4)
    initialize(encoder, "pretrain.encoder", 3)
    save_encoder(folder / "encoder.safetensors", encoder.state_dict(), description)
    config = {
        "plugins": [SHALLOW],
        "run": {"dir": "set by each training", "threads": 1},
        "checkpoint": str(folder / "encoder.safetensors"),
        "task": "enmap_cdl",
        "data": {"root": str(folder / "data"), "splits": str(folder / "data/splits/enmap_cdl")},
        "protocol": ["frozen", "full"],
        "compare_random": False,
        "seeds": [0, 1],
        "engine": {"precision": "fp32"},
        "frozen": {"epochs": 2, "views": 2, "lrs": [1e-3], "batch": 8},
        "full": {"batch": 8, "micro_batch": 2, "bn_group": 2, "epochs": 8, "warmup_epochs": 0, "save_every": 3},
        "watchdog": {"setup": SETUP, "step": LIMIT, "evaluation": 60, "saving": 60},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path

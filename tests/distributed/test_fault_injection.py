"""Kills, signals and damaged checkpoints at random moments: the same samples and losses, no hang, no lost step."""

import signal
from pathlib import Path

import pytest
import yaml
from support.faults import Fault, Training, run_schedule
from support.mixture_jobs import pack_camera_tiles
from support.tiles import write_archive

from pretrain.checkpointing.checkpoint import step_of
from shards.pack.build import PackConfig, pack

STEPS, SPAN, FAULTS = 60, 22.0, 30

pytestmark = pytest.mark.distributed


def config_file(folder: Path, steps: int, several: bool) -> Path:
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
        "run": {"dir": "set by each training", "seed": 7},
        "data": data | {"holdout": 0.2, "read_threads": 1},
        "model": {
            "name": "spec_vit_tiny",
            "image_size": 16,
            "patch_size": 4,
            "bn_group": 4,
            "stem": "wave" if several else None,
        },
        "objective": {"mask_ratio": 0.75, "decoder": {"width": 64, "depth": 1, "heads": 2}},
        "optim": {"lr": 5e-4, "warmup_steps": 4},
        "train": {"steps": steps, "global_batch": 8, "micro_batch": 4},
        "engine": {"zero_stage": 3, "precision": "fp32", "param_persistence_threshold": 0},
        "checkpoint": {"every": 7, "keep": 3},
        "log": {"every": 1, "validate_every": 11, "samples": True},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def check_same(training: Training, reference: Training, exact: bool) -> None:
    assert training.ledger() == reference.ledger()
    losses, expected = training.losses(), reference.losses()
    assert losses.keys() == expected.keys()
    if exact:
        assert losses == expected
    else:
        assert losses == pytest.approx(expected, rel=1e-5, abs=0)


def check_epochs(training: Training) -> None:
    """In every whole epoch of a source each of its training tiles is seen once."""
    numbers = [number for samples in training.ledger().values() for number, _ in samples]
    assert numbers == list(range(len(numbers)))
    for rows in training.tiles_by_source().values():
        tiles = len(set(rows))
        for first in range(0, len(rows) - tiles + 1, tiles):
            assert len(set(rows[first : first + tiles])) == tiles


def test_a_training_on_two_sensors_survives_what_is_done_to_it(tmp_path: Path) -> None:
    config = config_file(tmp_path, steps=14, several=True)
    reference = Training(tmp_path / "whole", config)
    assert reference.launch(1).codes == [0]
    training = Training(tmp_path / "faulty", config)
    assert training.launch(2, Fault(signal.SIGKILL, [0, 1], step=11)).codes == [-signal.SIGKILL] * 2
    assert step_of(training.whole()[-1]) == 7
    report = run_schedule(training, seed=5, faults=1, worlds=(1, 2), span=12)
    print("\n".join(report.lines))
    check_same(training, reference, exact=False)
    check_epochs(training)


@pytest.mark.nightly
@pytest.mark.parametrize("several", [False, True], ids=["one dataset", "several sources"])
def test_thirty_faults(tmp_path: Path, several: bool) -> None:
    config = config_file(tmp_path, STEPS, several)
    references = {world: Training(tmp_path / f"whole-{world}", config) for world in (1, 2)}
    for world, reference in references.items():
        assert reference.launch(world).codes == [0] * world
    check_same(references[2], references[1], exact=False)
    faults = 0
    for seed, worlds in enumerate([(1,), (2,), (1, 2), (1, 2)] * 100):
        training = Training(tmp_path / f"faulty-{seed}", config)
        report = run_schedule(training, seed, faults=min(6, FAULTS - faults), worlds=worlds, span=SPAN)
        faults += report.faults
        print(f"training {seed}:", *report.lines, sep="\n  ", flush=True)
        exact = len(report.worlds) == 1
        check_same(training, references[min(report.worlds)], exact)
        check_epochs(training)
        if faults >= FAULTS:
            break
    assert faults == FAULTS

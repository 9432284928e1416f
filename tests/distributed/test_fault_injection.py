"""Kills, signals and damaged checkpoints at random moments: the same samples and losses, no hang, no lost step."""

from pathlib import Path

import pytest
import yaml
from support.faults import Training, run_schedule
from support.tiles import write_archive

from shards.pack.build import PackConfig, pack

STEPS, SPAN = 60, 22.0

pytestmark = pytest.mark.distributed


def config_file(folder: Path, steps: int) -> Path:
    write_archive(folder / "tiles", size=24)
    pack(folder / "tiles", folder / "shards", PackConfig(tiles_per_shard=4))
    config = {
        "run": {"dir": "set by each training", "seed": 7},
        "data": {"shards": str(folder / "shards"), "holdout": 0.2, "read_threads": 1},
        "model": {"name": "spec_vit_tiny", "image_size": 16, "patch_size": 4, "bn_group": 4},
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


def check_epochs(training: Training, tiles: int) -> None:
    """In every whole epoch each training tile is seen once."""
    rows = [row for samples in training.ledger().values() for _, row in samples]
    numbers = [number for samples in training.ledger().values() for number, _ in samples]
    assert numbers == list(range(len(numbers)))
    for first in range(0, len(rows) - tiles + 1, tiles):
        assert len(set(rows[first : first + tiles])) == tiles


def test_a_training_survives_what_is_done_to_it(tmp_path: Path) -> None:
    config = config_file(tmp_path, steps=14)
    reference = Training(tmp_path / "whole", config)
    assert reference.launch(1).codes == [0]
    training = Training(tmp_path / "faulty", config)
    report = run_schedule(training, seed=2, faults=2, worlds=(1, 2), span=12)
    print("\n".join(report.lines))
    check_same(training, reference, exact=False)


@pytest.mark.nightly
def test_sixty_faults(tmp_path: Path) -> None:
    config = config_file(tmp_path, STEPS)
    references = {world: Training(tmp_path / f"whole-{world}", config) for world in (1, 2)}
    for world, reference in references.items():
        assert reference.launch(world).codes == [0] * world
    check_same(references[2], references[1], exact=False)
    faults = 0
    for seed, worlds in enumerate([(1,), (2,), (1, 2), (1, 2)] * 100):
        training = Training(tmp_path / f"faulty-{seed}", config)
        report = run_schedule(training, seed, faults=min(6, 60 - faults), worlds=worlds, span=SPAN)
        faults += report.faults
        print(f"training {seed}:", *report.lines, sep="\n  ", flush=True)
        exact = len(report.worlds) == 1
        check_same(training, references[min(report.worlds)], exact)
        check_epochs(training, len({row for samples in references[1].ledger().values() for _, row in samples}))
        if faults >= 60:
            break
    assert faults == 60

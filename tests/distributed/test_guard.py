"""Non-finite steps of one rank are skipped on all; weights go back after some in a row; disks get full."""

import json
from pathlib import Path

import pytest
from support.tiles import write_archive
from support.zero_jobs import Runs

from pretrain.checkpointing.checkpoint import find_damage, list_checkpoints, step_of
from pretrain.resilience.status import run_state
from shards.pack.build import PackConfig, pack

SIGNALLED = {"step": [2, 4], "evaluation": [2, 3], "saving": [4, 5]}
"""Phases, and the checkpoints that a run leaves which is told to stop in one after step 3 or later."""

EVALUATED = {"step": 0, "evaluation": 1, "saving": 0}

WORKER = Path(__file__).resolve().parent.parent / "support" / "guard_runs.py"

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guard")
    write_archive(folder / "tiles", size=24)
    pack(folder / "tiles", folder / "shards", PackConfig(tiles_per_shard=4))
    config = {
        "run": {"dir": "set by each job", "seed": 7},
        "data": {"shards": str(folder / "shards"), "holdout": 0.2, "read_threads": 1},
        "model": {"name": "spec_vit_tiny", "image_size": 8, "patch_size": 4, "bn_group": 2},
        "objective": {"mask_ratio": 0.5, "decoder": {"width": 64, "depth": 1, "heads": 2}},
        "train": {"steps": 10, "global_batch": 8, "micro_batch": 2},
        "engine": {"precision": "fp32", "param_persistence_threshold": 0},
        "checkpoint": {"every": 2, "keep": 2},
        "guard": {"patience": 2},
        "log": {"every": 1, "validate_every": 0, "samples": True},
    }
    jobs_of = Runs(folder, config, WORKER)
    job, moco = jobs_of.job, "objective={name: moco, queue: 64, hidden: 64, dim: 32, momentum: 0.9, head_norm: true}"
    jobs = [
        job("clean"),
        job("waited", "checkpoint.background=false"),
        job("once", poison={"rank": 1, "steps": [4]}),
        *(job(f"stage-{stage}", f"engine.zero_stage={stage}", poison={"rank": 1, "steps": [4]}) for stage in (0, 2)),
        job("moco", moco, "train.micro_batch=4", poison={"rank": 0, "steps": [1]}),
        job("twice", poison={"rank": 0, "steps": [5, 6]}),
        job("always", "train.steps=12", poison={"rank": 1, "steps": list(range(5, 12))}),
        job("full", disk_full_after=3),
        job("patient", "train.steps=3", "guard.patience=1000", poison={"rank": 0, "steps": [0, 1, 2]}),
        job("spoilt-momentum", moco, "train.micro_batch=4", "train.steps=3", spoil={"what": "momentum", "step": 3}),
        job("spoilt-moment", "train.steps=3", spoil={"what": "moment", "step": 3}),
        *(
            job(f"signal-in-{phase}", f"log.validate_every={every}", signal_in=phase)
            for phase, every in EVALUATED.items()
        ),
        job("again", "train.steps=6", poison={"rank": 1, "steps": [0, 1, 2, 3, 4, 5]}),
    ]
    jobs_of.launch(2, jobs, timeout=400)
    return folder


def records(folder: Path, key: str) -> dict[int, float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[key] for line in lines if key in line}


def skips(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def test_a_bad_step_of_one_rank_is_skipped_by_all_and_its_tiles_are_named(runs: Path) -> None:
    losses = records(runs / "once", "loss")
    assert losses.keys() == {*range(1, 11)} - {5}
    assert {step: loss for step, loss in losses.items() if step < 5} == {
        step: loss for step, loss in records(runs / "clean", "loss").items() if step < 5
    }
    (skip,) = skips(runs / "once")
    assert skip["step"] == 5
    assert skip["reason"] == "loss is non-finite"
    assert [batch["rank"] for batch in skip["batches"]] == [1, 1]
    assert all(len(batch["tiles"]) == 2 and batch["loss"] == "nan" for batch in skip["batches"])
    assert records(runs / "once", "skipped_steps")[10] == 1


def test_a_skipped_step_takes_its_place_in_order_and_schedule(runs: Path) -> None:
    lines = [json.loads(line) for line in (runs / "once" / "samples-00000.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert sorted(records(runs / "once", "lr")) == list(range(1, 11))


@pytest.mark.parametrize("stage", [0, 2])
def test_a_step_is_skipped_alike_at_every_stage(runs: Path, stage: int) -> None:
    assert [skip["step"] for skip in skips(runs / f"stage-{stage}")] == [5]
    expected = records(runs / "once", "loss")
    found = records(runs / f"stage-{stage}", "loss")
    assert found == pytest.approx(expected, rel=1e-5)


def test_momentum_networks_and_queues_pass_over_a_skipped_step(runs: Path) -> None:
    losses = records(runs / "moco", "loss")
    assert losses.keys() == {*range(1, 11)} - {2}
    assert all(0 < loss < 20 for loss in losses.values())


def test_weights_go_back_after_some_in_a_row_and_the_run_goes_on(runs: Path) -> None:
    losses = records(runs / "twice", "loss")
    assert losses.keys() == {*range(1, 11)} - {6, 7}
    assert [skip["step"] for skip in skips(runs / "twice")] == [6, 7]
    state = json.loads((runs / "twice" / "checkpoints" / "step-00000010" / "state.json").read_text())
    assert state["samples_seen"] == 80
    assert state["adam_step"] == 4 + 3  # of step-4's checkpoint, and steps 8 to 10
    assert state["guard"]["skipped"] == 2


def test_a_run_that_stays_bad_ends_clearly(runs: Path) -> None:
    error = (runs / "always" / "error.txt").read_text()
    assert error.startswith("76 True ")
    assert "2 steps in a row were skipped, and there is no earlier checkpoint to return to" in error
    assert "\n" not in error
    assert json.loads((runs / "always" / "status.json").read_text())["status"] == "failed"
    newest = list_checkpoints(runs / "always" / "checkpoints")[-1]
    assert find_damage(newest) is None


def test_without_a_checkpoint_a_bad_run_ends_clearly(runs: Path) -> None:
    assert (runs / "again" / "error.txt").read_text().startswith("76 True ")


def test_a_checkpoint_has_the_same_bytes_whether_it_was_waited_for_or_not(runs: Path) -> None:
    seals = [
        json.loads((runs / name / "checkpoints" / f"step-{step:08d}" / "checkpoint.json").read_text())["files"]
        for name in ("clean", "waited")
        for step in (8, 10)
    ]
    for files in seals:
        del files["state.json"]  # names the run's folder
        del files["random-00000-of-00001.safetensors"]  # of processes that have trained before
    assert seals[:2] == seals[2:]
    assert len(seals[0]) == 2 * 2 + 1  # weights and optimizer of two ranks, and the index
    assert records(runs / "clean", "checkpoint_wait_seconds").keys() >= {10}


def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(runs: Path) -> None:
    error = (runs / "full" / "error.txt").read_text()
    assert error.startswith("1 True ")
    assert "step-00000004: can't be written: " in error
    assert "the last one, step-00000002, is untouched" in error
    assert "\n" not in error
    checkpoints = runs / "full" / "checkpoints"
    assert [path.name for path in sorted(checkpoints.iterdir())] == ["latest", "step-00000002"]
    assert find_damage(checkpoints / "step-00000002") is None


def test_a_run_that_skipped_all_of_its_steps_is_not_complete(runs: Path) -> None:
    error = (runs / "patient" / "error.txt").read_text()
    assert error.startswith("76 True ") and "was non-finite in the last 3 of 3 steps" in error
    assert not (runs / "patient" / "encoder.safetensors").exists()
    assert run_state(runs / "patient").condition == "failed"


@pytest.mark.parametrize(
    ("what", "found"),
    [("momentum", "the validation loss is nan"), ("moment", "step-00000003: not saved: diverged: optimizer: ")],
)
def test_what_no_training_loss_shows_is_found_when_the_run_ends(runs: Path, what: str, found: str) -> None:
    folder = runs / f"spoilt-{what}"
    error = (folder / "error.txt").read_text()
    assert error.startswith("76 True ") and found in error
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["latest", "step-00000002"]
    assert not (folder / "encoder.safetensors").exists()
    state = run_state(folder)
    assert (state.condition, state.record.step, state.record.reason in error) == ("failed", 3, True)


@pytest.mark.parametrize("phase", SIGNALLED)
def test_a_signal_in_any_phase_ends_in_a_checkpoint_of_all_ranks(runs: Path, phase: str) -> None:
    folder = runs / f"signal-in-{phase}"
    kept = list_checkpoints(folder / "checkpoints")
    assert [step_of(path) for path in kept] == SIGNALLED[phase]
    assert [find_damage(path) for path in kept] == [None] * len(kept)
    status = json.loads((folder / "status.json").read_text())
    expected = {"status": "stopped", "step": SIGNALLED[phase][-1], "steps": 10, "samples": 8 * SIGNALLED[phase][-1]}
    assert status | expected == status
    if EVALUATED[phase]:
        assert max(records(folder, "validation_loss")) == 2  # the third is given up

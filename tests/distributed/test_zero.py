"""Losses agree for any number of processes, ZeRO stage, micro batch and accumulation; resumes are exact.

All jobs run in three process groups: two processes, then one, then two again.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.rank_cases import selected, shortened
from support.tiles import write_tile
from support.zero_jobs import Runs

from shards.pack.build import PackConfig, pack

STEPS, HALF, BEYOND = 12, 6, 2
SHORT = 6
STAGES = (0, 1, 2, 3)
PRECISIONS = ["autocast-0", "autocast-2", "autocast-3", "bf16-2", "bf16-3"]
PRECISION_CASES = shortened(PRECISIONS, nightly={"autocast-0", "autocast-2", "bf16-2"})
RESUMED = [(2, 3), (1, 1)]
SAVED = [(2, 3)]
HALVED = ["autocast", "bf16"]
SAVED_ALL = [(world, stage) for world in (1, 2) for stage in STAGES]

pytestmark = pytest.mark.distributed


def write_landscapes(folder: Path) -> None:
    """Ten tiles that a model can learn from, each nearly of one spectrum. On noise all losses would agree at 1."""
    nm = np.linspace(0, 1, 202)[:, None, None]
    slope = np.mgrid[0:32, 0:32][0] / 320
    for number in range(10):
        rng = np.random.default_rng(number)
        shares = rng.dirichlet((0.5, 0.5, 0.5))
        mixture = shares[0] * 4000 * nm + shares[1] * 3000 * np.sin(3 * nm) + shares[2] * 2500 * np.cos(5 * nm) ** 2
        spectrum = mixture * (1 + slope) + rng.normal(0, 20, (202, 32, 32))
        write_tile(folder / "enmap" / f"{number:07d}" / "00001.tif", np.rint(spectrum).astype(np.int16))


def base_config(folder: Path) -> dict:
    write_landscapes(folder / "tiles")
    pack(folder / "tiles", folder / "shards", PackConfig(tiles_per_shard=4))
    return {
        "run": {"dir": "set by each job", "seed": 3},
        "data": {"shards": str(folder / "shards"), "holdout": 0.0, "read_threads": 1},
        "augment": {"crop_scale": None},
        "model": {"name": "spec_vit_tiny", "image_size": 16, "patch_size": 4, "bn_group": 4},
        "objective": {"mask_ratio": 0.75, "norm_pix": False, "decoder": {"width": 64, "depth": 1, "heads": 2}},
        "optim": {"lr": 1e-3, "warmup_steps": 3, "clip": 0.1},
        "train": {"steps": STEPS, "global_batch": 16, "micro_batch": 8},
        # nothing persistent: every weight is really partitioned at stage 3
        "engine": {"zero_stage": 3, "precision": "fp32", "param_persistence_threshold": 0},
        "checkpoint": {"every": 1000},
        "log": {"every": 1, "validate_every": 0, "samples": True},
    }


def base_jobs(runs: Runs, world: int, resumed: list[tuple[int, int]]) -> list[dict]:
    """A run under every stage; of those that no other job resumes, half."""
    jobs = []
    for stage in STAGES:
        set_stage = f"engine.zero_stage={stage}"
        if (world, stage) not in resumed:
            jobs.append(runs.job(f"whole-{world}-{stage}", set_stage, stop_at=HALF))
            continue
        jobs.append(runs.job(f"whole-{world}-{stage}", set_stage))
        jobs.append(runs.job(f"half-{world}-{stage}", set_stage, stop_at=HALF))
        jobs.append(runs.job(f"resumed-{world}-{stage}", set_stage, copy_from=f"half-{world}-{stage}"))
    return jobs


def load_jobs(runs: Runs, world: int, saved: list[tuple[int, int]]) -> list[dict]:
    """Each saved half, continued for a few steps at this world size under every stage, from other initial weights."""
    return [
        runs.job(
            f"load-{was_world}-{was_stage}-into-{world}-{stage}",
            f"engine.zero_stage={stage}",
            copy_from=f"half-{was_world}-{was_stage}",
            stop_at=HALF + BEYOND,
        )
        for was_world, was_stage in saved
        for stage in STAGES
    ]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("zero")
    runs = Runs(folder, base_config(folder))
    chosen = sorted({"autocast-3", "bf16-3", *selected(request, test_half_precision_follows_fp32)})
    precision = [
        runs.job(
            name,
            f"engine.precision={name[:-2]}",
            f"engine.zero_stage={name[-1]}",
            f"train.steps={SHORT}",
            "optim.warmup_steps=0",
            probe=True,
        )
        for name in ["fp32-3", *chosen]
    ]
    halves = [
        runs.job(
            f"{kind}-half",
            f"engine.precision={kind}",
            f"train.steps={SHORT}",
            "optim.warmup_steps=0",
            stop_at=SHORT // 2,
        )
        for kind in HALVED
    ]
    cut = runs.job("micro-4-of-2", "train.micro_batch=4", stop_at=HALF)
    decoded = runs.job("device-decoded", "data.decode=device", stop_at=BEYOND)
    runs.launch(2, [*base_jobs(runs, 2, RESUMED), cut, decoded, *precision, *halves], "--shallow")
    shutil.copytree(folder / "half-2-3", folder / "emptied")
    shutil.rmtree(folder / "emptied" / "checkpoints")
    shutil.copytree(folder / "half-2-3" / "checkpoints" / f"step-{HALF:08d}", folder / "start")
    shutil.copytree(folder / "start", folder / "start-gone")
    cuts = [runs.job(f"micro-{micro}-of-1", f"train.micro_batch={micro}", stop_at=HALF) for micro in (16, 4)]
    half = {"copy_from": "half-2-3"}
    others = [
        runs.job("other-model", "model.image_size=8", **half),
        runs.job("other-seed", "run.seed=4", **half),
        runs.job("other-batch", "train.global_batch=32", **half),
        runs.job(
            "accepted", "train.global_batch=32", "checkpoint.accept=[train.global_batch]", **half, stop_at=HALF + 2
        ),
        runs.job("emptied"),
        runs.job("must", "checkpoint.resume=must"),
        runs.job("resized", "model.image_size=32", "checkpoint.accept=[model]", **half, stop_at=HALF + 2),
        runs.job("sgd", "optim.name=sgd", "engine.zero_stage=1", **half, stop_at=HALF + 2),
        runs.job("init-1-0", "engine.zero_stage=0", f"init={folder / 'start'}", "run.seed=4", stop_at=BEYOND),
        runs.job("init-1-3", f"init={folder / 'start-gone'}", "run.seed=4", stop_at=BEYOND - 1),
        runs.job("init-patch", f"init={folder / 'start'}", "model.patch_size=8"),
        runs.job("persistent", "engine.param_persistence_threshold=100000", **half, stop_at=HALF + BEYOND),
        *(
            runs.job(
                f"{kind}-continued",
                f"engine.precision={kind}",
                f"train.steps={SHORT}",
                "optim.warmup_steps=0",
                copy_from=f"{kind}-half",
            )
            for kind in HALVED
        ),
    ]
    runs.launch(1, [*base_jobs(runs, 1, RESUMED), *cuts, *others, *load_jobs(runs, 1, SAVED)], "--shallow")
    shutil.rmtree(folder / "start-gone")
    begun = [
        runs.job("init-2-2", "engine.zero_stage=2", f"init={folder / 'start'}", "run.seed=4", stop_at=BEYOND),
        runs.job("init-2-3", f"init={folder / 'start-gone'}", "run.seed=4", copy_from="init-1-3", stop_at=BEYOND),
        runs.job("init-other", "run.seed=4", copy_from="init-1-3"),
        runs.job(
            "resized-2",
            "model.image_size=32",
            "checkpoint.accept=[model]",
            "engine.zero_stage=2",
            **half,
            stop_at=HALF + 2,
        ),
    ]
    runs.launch(2, [*load_jobs(runs, 2, SAVED), *begun], "--shallow")
    return runs


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_losses_agree_for_processes_and_stages(runs: Runs, world: int, stage: int) -> None:
    reference = runs.losses("whole-2-3")
    assert len(reference) == STEPS
    assert reference[-1] < 0.8 * reference[0]  # it learns: agreement is not that of weights that never move
    losses = runs.losses(f"whole-{world}-{stage}")
    assert len(losses) == (STEPS if (world, stage) in RESUMED else HALF)
    assert losses == pytest.approx(reference[: len(losses)], rel=1e-5, abs=0)


@pytest.mark.parametrize("name", ["whole-1-0", "whole-1-3", "whole-2-2", "whole-2-3", "micro-4-of-1"])
def test_parts_of_the_step_add_up(runs: Runs, name: str) -> None:
    """Under every way of sharing weights, and with accumulation."""
    parts = {
        part: runs.records(name, f"time_{part}")
        for part in ("stem", "encoder", "decoder", "optimizer", "data", "other")
    }
    assert all(min(shares) > 0 for shares in parts.values())
    steps = len(runs.losses(name))
    assert [sum(shares) for shares in zip(*parts.values(), strict=True)] == pytest.approx([1.0] * steps)
    assert min(runs.records(name, "gb_per_second")) > 0
    assert all(
        now <= peak
        for now, peak in zip(*(runs.records(name, key) for key in ("memory_gb", "peak_memory_gb")), strict=True)
    )


@pytest.mark.parametrize("name", ["micro-16-of-1", "micro-4-of-1", "micro-4-of-2"])
def test_losses_agree_for_micro_batches_and_accumulation(runs: Runs, name: str) -> None:
    assert runs.losses(name) == pytest.approx(runs.losses("whole-2-3")[:HALF], rel=1e-5, abs=0)


def test_losses_do_not_depend_on_where_tiles_are_decoded(runs: Runs) -> None:
    assert runs.losses("device-decoded") == runs.losses("whole-2-3")[:BEYOND]


@pytest.mark.parametrize(("world", "stage"), RESUMED)
def test_resume_is_bit_exact(runs: Runs, world: int, stage: int) -> None:
    assert len(runs.losses(f"half-{world}-{stage}")) == HALF
    assert runs.losses(f"resumed-{world}-{stage}") == runs.losses(f"whole-{world}-{stage}")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("was_world", "was_stage"), SAVED)
def test_a_checkpoint_loads_into_any_size_and_stage(
    runs: Runs, was_world: int, was_stage: int, world: int, stage: int
) -> None:
    losses = runs.losses(f"load-{was_world}-{was_stage}-into-{world}-{stage}")
    assert losses == pytest.approx(runs.losses("whole-2-3")[: HALF + BEYOND], rel=1e-5, abs=0)


def test_a_checkpoint_loads_where_small_weights_stay_gathered(runs: Runs) -> None:
    assert runs.losses("persistent") == pytest.approx(runs.losses("whole-2-3")[: HALF + BEYOND], rel=1e-5, abs=0)


@pytest.mark.parametrize("name", PRECISION_CASES)
def test_half_precision_follows_fp32(runs: Runs, name: str) -> None:
    bound = {"autocast": 5e-3, "bf16": 2e-2}[name[:-2]]
    assert runs.losses(name) == pytest.approx(runs.losses("fp32-3"), rel=bound, abs=0)


@pytest.mark.parametrize("name", PRECISION_CASES)
def test_buffers_stay_fp32(runs: Runs, name: str) -> None:
    dtypes = json.loads((runs.folder / name / "dtypes.json").read_text())
    running = {dtype for name, dtype in dtypes.items() if "running" in name or "pos_embed" in name}
    weights = {dtype for name, dtype in dtypes.items() if name.endswith("qkv.weight")}
    assert running == {"torch.float32"}
    assert weights == {"torch.bfloat16" if name.startswith("bf16") else "torch.float32"}


@pytest.mark.parametrize("name", PRECISION_CASES)
def test_training_begins_from_unrounded_weights(runs: Runs, name: str) -> None:
    assert json.loads((runs.folder / name / "masters.json").read_text()) == 0.0


def test_a_checkpoint_of_another_model_is_refused(runs: Runs) -> None:
    error = runs.error("other-model")
    assert f"step-{HALF:08d}" in error
    assert "image_size: 16 then, 8 now" in error
    assert "\n" not in error


def test_a_checkpoint_of_another_seed_is_refused(runs: Runs) -> None:
    assert "run.seed differs (3 then, 4 now)" in runs.error("other-seed")


def test_another_batch_is_refused_with_a_way_to_go_on(runs: Runs) -> None:
    error = runs.error("other-batch")
    assert "train.global_batch differs (16 then, 32 now)" in error
    assert "add checkpoint.accept=[train.global_batch] to continue anyway" in error


def test_an_accepted_batch_goes_on_at_the_same_sample(runs: Runs) -> None:
    assert runs.samples("accepted", HALF) == list(range(16 * HALF - 16, 16 * HALF))
    assert runs.samples("accepted", HALF + 1) == list(range(16 * HALF, 16 * HALF + 32))
    assert len(runs.losses("accepted")) == HALF + 2


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(runs: Runs) -> None:
    assert f"saved at step {HALF}, but its checkpoints folder is empty on " in runs.error("emptied")


def test_a_resume_that_was_asked_for_does_not_begin_anew(runs: Runs) -> None:
    assert "key 'checkpoint.resume': must, but" in runs.error("must")


def test_the_schedule_of_learning_rates_goes_on(runs: Runs) -> None:
    assert runs.records("resumed-2-3", "lr") == runs.records("whole-2-3", "lr")
    assert len(set(runs.records("whole-2-3", "lr"))) > HALF


# ---- begun from a file, and changed on the way ----


@pytest.mark.parametrize("name", ["init-1-0", "init-2-2", "init-2-3"])
def test_a_run_from_a_file_is_the_same_under_any_stage_and_number_of_processes(runs: Runs, name: str) -> None:
    """``init-2-3`` is resumed on the way by other ranks, when its file is gone."""
    losses = runs.losses(name)
    assert len(losses) == BEYOND
    assert losses == pytest.approx(runs.losses("init-1-0"), rel=1e-5, abs=0)
    assert losses[0] < 0.9 * runs.losses("whole-2-3")[0]  # it knows what was learned before


def test_what_a_run_began_from_stays_with_it(runs: Runs) -> None:
    step = runs.folder / "init-2-3" / "checkpoints" / f"step-{BEYOND:08d}"
    told = json.loads((step / "state.json").read_text())["init"]
    seal = (runs.folder / "start" / "checkpoint.json").read_bytes()
    assert told["sha256"] == hashlib.sha256(seal).hexdigest()
    assert (told["file"], told["objective"], told["samples_seen"]) == ("start-gone", "mae", 16 * HALF)


def test_a_run_from_another_file_is_another_run(runs: Runs) -> None:
    assert "start-gone then, None now" in runs.error("init-other")
    assert "model.patch_size is 4 there, but 8 in this run" in runs.error("init-patch")


def test_another_image_size_goes_on_with_interpolated_positions(runs: Runs) -> None:
    """The weights that the engine holds are compared with those in the file at the load."""
    losses = runs.losses("resized")[HALF:]
    assert len(losses) == 2
    assert runs.losses("resized-2")[HALF:] == pytest.approx(losses, rel=1e-5, abs=0)


def test_another_optimizer_goes_on_with_fresh_moments(runs: Runs) -> None:
    assert len(runs.losses("sgd")) == HALF + 2
    assert runs.losses("sgd")[HALF] == pytest.approx(runs.losses("whole-2-3")[HALF], rel=1e-5)  # the same weights


@pytest.mark.parametrize("kind", HALVED)
def test_half_precision_goes_on_with_another_number_of_processes(runs: Runs, kind: str) -> None:
    assert len(runs.losses(f"{kind}-half")) == SHORT // 2
    assert runs.losses(f"{kind}-continued") == pytest.approx(runs.losses(f"{kind}-3"), rel=5e-3, abs=0)


def test_the_samples_of_a_step_do_not_depend_on_processes(runs: Runs) -> None:
    for step in range(1, STEPS + 1):
        assert runs.samples("whole-2-3", step) == list(range(16 * (step - 1), 16 * step))
    for step in range(1, HALF + 1):
        assert runs.samples("whole-1-0", step) == runs.samples("whole-2-3", step)


@pytest.mark.nightly
def test_two_processes_are_continued_by_four(tmp_path: Path) -> None:
    runs = Runs(tmp_path, base_config(tmp_path))
    halves = [runs.job("whole"), runs.job("half", stop_at=HALF)]
    runs.launch(2, halves, "--shallow")
    stages = [
        runs.job(f"four-{stage}", "train.micro_batch=4", f"engine.zero_stage={stage}", copy_from="half")
        for stage in STAGES
    ]
    runs.launch(4, stages, "--shallow")
    for stage in STAGES:
        assert runs.losses(f"four-{stage}") == pytest.approx(runs.losses("whole"), rel=1e-5, abs=0)
        assert [runs.samples(f"four-{stage}", step) for step in (1, HALF + 1, STEPS)] == [
            runs.samples("whole", step) for step in (1, HALF + 1, STEPS)
        ]


@pytest.mark.nightly
def test_all_sixty_four_loads(tmp_path: Path) -> None:
    runs = Runs(tmp_path, base_config(tmp_path))
    for world in (1, 2):
        runs.launch(world, base_jobs(runs, world, SAVED_ALL), timeout=3600)
    for world in (1, 2):
        runs.launch(world, load_jobs(runs, world, SAVED_ALL), timeout=3600)
    reference = runs.losses("whole-2-3")[: HALF + BEYOND]
    for was_world, was_stage in SAVED_ALL:
        assert runs.losses(f"resumed-{was_world}-{was_stage}") == runs.losses(f"whole-{was_world}-{was_stage}")
        for world, stage in SAVED_ALL:
            losses = runs.losses(f"load-{was_world}-{was_stage}-into-{world}-{stage}")
            assert losses == pytest.approx(reference, rel=1e-5, abs=0)

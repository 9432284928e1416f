"""Losses agree for any number of processes, ZeRO stage, micro batch and accumulation; resumes are exact.

All jobs run in three process groups: two processes, then one, then two again.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.processes import run_ranks
from support.tiles import write_tile

from shards.build import PackConfig, pack

WORKER = Path(__file__).resolve().parent.parent / "support" / "zero_runs.py"
STEPS, HALF, BEYOND = 20, 10, 3
STAGES = (0, 1, 2, 3)
PRECISIONS = [("autocast", 0), ("autocast", 1), ("autocast", 2), ("autocast", 3), ("bf16", 2), ("bf16", 3)]
RESUMED = [(2, 0), (2, 1), (2, 2), (2, 3), (1, 1), (1, 3)]
SAVED = [(2, 3), (1, 1)]
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


def config_file(folder: Path) -> Path:
    write_landscapes(folder / "tiles")
    pack(folder / "tiles", folder / "shards", PackConfig(tiles_per_shard=4))
    config = {
        "run": {"dir": "set by each job", "seed": 3},
        "data": {"shards": str(folder / "shards"), "holdout": 0.2, "read_threads": 1},
        "augment": {"crop_scale": None},
        "model": {"name": "spec_vit_tiny", "image_size": 16, "patch_size": 4, "bn_group": 4},
        "objective": {"mask_ratio": 0.75, "norm_pix": False, "decoder": {"width": 64, "depth": 1, "heads": 2}},
        "optim": {"lr": 5e-4, "warmup_steps": 4, "clip": 0.1},
        "train": {"steps": STEPS, "global_batch": 16, "micro_batch": 8},
        # nothing persistent: every weight is really partitioned at stage 3
        "engine": {"zero_stage": 3, "precision": "fp32", "param_persistence_threshold": 0},
        "checkpoint": {"every": 1000},
        "log": {"every": 1, "validate_every": 0},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


class Runs:
    """Where jobs leave their folders, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = config_file(folder)

    def job(self, name: str, *overrides: str, **rest: object) -> dict:
        copy_from = rest.pop("copy_from", None)
        source = str(self.folder / str(copy_from)) if copy_from else None
        where = {"dir": str(self.folder / name), "config": str(self.config)}
        return {**where, "overrides": list(overrides), "copy_from": source, **rest}

    def launch(self, world_size: int, jobs: list[dict], timeout: float = 900, shallow: bool = True) -> None:
        path = self.folder / f"jobs-{world_size}-{jobs[0]['dir'].rsplit('/', 1)[-1]}.json"
        path.write_text(json.dumps(jobs))
        run_ranks(WORKER, world_size, str(path), *(["--shallow"] if shallow else []), timeout=timeout)

    def losses(self, name: str) -> list[float]:
        lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        return [record["loss"] for record in records if "loss" in record]

    def error(self, name: str) -> str:
        return (self.folder / name / "error.txt").read_text()


def base_jobs(runs: Runs, world: int, resumed: list[tuple[int, int]]) -> list[dict]:
    jobs = []
    for stage in STAGES:
        set_stage = f"engine.zero_stage={stage}"
        jobs.append(runs.job(f"whole-{world}-{stage}", set_stage))
        if (world, stage) not in resumed:
            continue
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
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("zero"))
    precision = [
        runs.job(
            f"{kind}-{stage}",
            f"engine.precision={kind}",
            f"engine.zero_stage={stage}",
            f"train.steps={HALF}",
            "optim.warmup_steps=0",
            probe=True,
        )
        for kind, stage in [("fp32", 3), *PRECISIONS]
    ]
    runs.launch(2, [*base_jobs(runs, 2, RESUMED), runs.job("micro-4-of-2", "train.micro_batch=4"), *precision])
    cuts = [runs.job(f"micro-{micro}-of-1", f"train.micro_batch={micro}") for micro in (16, 8, 4)]
    other_model = runs.job("other-model", "model.image_size=8", copy_from="half-2-3")
    other_seed = runs.job("other-seed", "run.seed=4", copy_from="half-2-3")
    persistent = runs.job("persistent", "engine.param_persistence_threshold=100000", copy_from="half-2-3")
    runs.launch(
        1, [*base_jobs(runs, 1, RESUMED), *cuts, other_model, other_seed, persistent, *load_jobs(runs, 1, SAVED)]
    )
    runs.launch(2, load_jobs(runs, 2, SAVED))
    return runs


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_losses_agree_for_processes_and_stages(runs: Runs, world: int, stage: int) -> None:
    reference = runs.losses("whole-2-3")
    assert len(reference) == STEPS
    assert reference[-1] < 0.8 * reference[0]  # it learns: agreement is not that of weights that never move
    assert runs.losses(f"whole-{world}-{stage}") == pytest.approx(reference, rel=1e-5, abs=0)


@pytest.mark.parametrize("name", ["micro-16-of-1", "micro-8-of-1", "micro-4-of-1", "micro-4-of-2"])
def test_losses_agree_for_micro_batches_and_accumulation(runs: Runs, name: str) -> None:
    assert runs.losses(name) == pytest.approx(runs.losses("whole-2-3"), rel=1e-5, abs=0)


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
    assert runs.losses("persistent") == pytest.approx(runs.losses("whole-2-3"), rel=1e-5, abs=0)


@pytest.mark.parametrize(("kind", "stage"), PRECISIONS)
def test_half_precision_follows_fp32(runs: Runs, kind: str, stage: int) -> None:
    bound = {"autocast": 5e-3, "bf16": 2e-2}[kind]
    assert runs.losses(f"{kind}-{stage}") == pytest.approx(runs.losses("fp32-3"), rel=bound, abs=0)


@pytest.mark.parametrize(("kind", "stage"), PRECISIONS)
def test_buffers_stay_fp32(runs: Runs, kind: str, stage: int) -> None:
    dtypes = json.loads((runs.folder / f"{kind}-{stage}" / "dtypes.json").read_text())
    running = {dtype for name, dtype in dtypes.items() if "running" in name or "pos_embed" in name}
    weights = {dtype for name, dtype in dtypes.items() if name.endswith("qkv.weight")}
    assert running == {"torch.float32"}
    assert weights == {"torch.bfloat16" if kind == "bf16" else "torch.float32"}


@pytest.mark.parametrize(("kind", "stage"), PRECISIONS)
def test_training_begins_from_unrounded_weights(runs: Runs, kind: str, stage: int) -> None:
    assert json.loads((runs.folder / f"{kind}-{stage}" / "masters.json").read_text()) == 0.0


def test_a_checkpoint_of_another_model_is_refused(runs: Runs) -> None:
    error = runs.error("other-model")
    assert "step-00000010" in error
    assert "image_size: 16 then, 8 now" in error
    assert "\n" not in error


def test_a_checkpoint_of_another_seed_is_refused(runs: Runs) -> None:
    assert "run.seed differs (3 then, 4 now)" in runs.error("other-seed")


@pytest.mark.nightly
def test_all_sixty_four_loads(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    for world in (1, 2):
        runs.launch(world, base_jobs(runs, world, SAVED_ALL), timeout=3600, shallow=False)
    for world in (1, 2):
        runs.launch(world, load_jobs(runs, world, SAVED_ALL), timeout=3600, shallow=False)
    reference = runs.losses("whole-2-3")[: HALF + BEYOND]
    for was_world, was_stage in SAVED_ALL:
        for world, stage in SAVED_ALL:
            losses = runs.losses(f"load-{was_world}-{was_stage}-into-{world}-{stage}")
            assert losses == pytest.approx(reference, rel=1e-5, abs=0)

"""Every objective learns on real tiles: two processes, ZeRO-3, Spec. ViT tiny and Spec. ResNet-50."""

import json
import statistics
from pathlib import Path

import pytest
import yaml
from support.processes import run_ranks

from shards.pack.build import PackConfig, pack

WORKER = Path(__file__).resolve().parent.parent / "support" / "zero_runs.py"
STEPS = 40
OBJECTIVES = {
    "mae": {"name": "mae", "mask_ratio": 0.75, "ignore_nodata": True, "decoder": {"width": 64, "heads": 2}},
    "moco": {"name": "moco", "queue": 32, "hidden": 256, "dim": 64, "momentum": 0.9},
    "dino": {"name": "dino", "hidden": 256, "bottleneck": 64, "prototypes": 64, "momentum": 0.9},
}
CASES = [
    ("mae", "spec_vit_tiny"),
    *((name, model) for name in ("moco", "dino") for model in ("spec_vit_tiny", "spec_resnet50")),
]

pytestmark = [pytest.mark.distributed, pytest.mark.nightly]


@pytest.fixture(scope="module")
def losses(spectral_earth_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[dict]]:
    folder = tmp_path_factory.mktemp("real")
    pack(spectral_earth_sample, folder / "shards", PackConfig())
    jobs = []
    for name, model in CASES:
        config = {
            "run": {"dir": "set by each job"},
            "data": {"shards": str(folder / "shards"), "holdout": 0.0, "read_threads": 1},
            "augment": {"crop_scale": [0.05, 0.3]},
            "model": {"name": model, "image_size": 16, "bn_group": 8},
            "objective": OBJECTIVES[name],
            "optim": {"lr": 1e-3, "warmup_steps": 5},
            "train": {"steps": STEPS, "global_batch": 32, "micro_batch": 16},
            "engine": {"zero_stage": 3, "precision": "fp32", "param_persistence_threshold": 0},
            "log": {"every": 1, "validate_every": 0},
        }
        path = folder / f"{name}-{model}.yaml"
        path.write_text(yaml.safe_dump(config))
        jobs.append({"dir": str(folder / f"{name}-{model}-run"), "config": str(path)})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    run_ranks(WORKER, 2, str(folder / "jobs.json"), timeout=3600)
    return {
        case: [json.loads(line) for line in (Path(job["dir"]) / "metrics.jsonl").read_text().splitlines()]
        for case, job in zip(CASES, jobs, strict=True)
    }


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_loss_falls_without_collapse(losses: dict[tuple[str, str], list[dict]], case: tuple[str, str]) -> None:
    records = [record for record in losses[case] if "loss" in record]
    assert len(records) == STEPS
    first, last = (statistics.mean(record["loss"] for record in part) for part in (records[3:8], records[-5:]))
    print(f"{case}: {first:.4f} -> {last:.4f}, feature_std {records[-1]['feature_std']:.3f}")
    assert last < 0.98 * first
    assert records[-1]["feature_std"] > 0.01

"""Runs that several tests of the report read."""

from pathlib import Path

import pytest
from support.evaluation_runs import make_result, write_run

from finetune.tasks import get_task


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks; segmentation's seeds in folders of their own, as an array job leaves them."""
    folder = tmp_path_factory.mktemp("runs")
    cdl, corine, soil = (get_task(name) for name in ("enmap_cdl", "enmap_corine", "hyperview"))
    for seed in (0, 1, 2):
        results = [make_result(cdl, "pretrained", seed, 0.8), make_result(cdl, "random", seed, 0.6)]
        results.append(make_result(cdl, "pretrained", seed, 0.7, fraction=0.1))
        results.append(make_result(cdl, "pretrained", seed, 0.5, "full"))
        write_run(folder / "cdl" / f"seed-{seed}", "enmap_cdl", results, seen=True)
    for name, task, scores in (("corine", corine, (0.7, 0.7)), ("soil", soil, (0.9, 0.2))):
        results = [
            make_result(task, encoder, 0, one) for encoder, one in zip(("pretrained", "random"), scores, strict=True)
        ]
        write_run(folder / name, task.name, results)
    return folder

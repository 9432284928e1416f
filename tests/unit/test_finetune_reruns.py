"""A second start: what has changed is evaluated again and said, and nothing else is."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from support.small_encoder import small_description, small_encoder

from finetune import code_version, protocols
from finetune.config import FinetuneConfig
from finetune.evaluate import Evaluator
from finetune.model_file import load_task_model
from finetune.results import RunResults, read_results
from finetune.tasks import dump_task, get_task
from pretrain.models import save_encoder
from pretrain.stop import StopRequest
from pretrain.watchdog import Watchdog
from shards.config import load_config
from tools.sample_tasks import make_task_sample

Start = Callable[..., tuple[RunResults, str]]
SMALL = {
    "run.threads": 1,
    "protocol": "[knn,frozen]",
    "seeds": "[0]",
    "frozen.epochs": 1,
    "frozen.views": 1,
    "frozen.batch": 4,
    "frozen.lrs": "[1e-3]",
    "frozen.heads": "[linear]",
    "compare_random": "false",
    "data.bands": "native",
}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten tiles of a task of one's own, and two encoders."""
    folder = tmp_path_factory.mktemp("sample")
    task = get_task("enmap_nlcd")
    make_task_sample(folder, task, tiles=10, size=8)
    (folder / "task.yaml").write_text(dump_task(task))
    for seed in (1, 2):
        (folder / str(seed)).mkdir()
        save_encoder(folder / str(seed) / "encoder.safetensors", small_encoder(seed).state_dict(), small_description())
    return folder


@pytest.fixture
def start(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Start:
    """Starts an evaluation of a copy of the sample in one run folder; gives its results and what it said."""
    data = tmp_path / "data"
    shutil.copytree(sample, data)

    def run(folder: Path = data, **changes: object) -> tuple[RunResults, str]:
        paths = {"run.dir": tmp_path / "run", "data.root": folder, "data.splits": folder / "splits" / "enmap_nlcd"}
        task = {"task": folder / "task.yaml", "checkpoint": folder / "1" / "encoder.safetensors"}
        values = SMALL | paths | task | {key.replace("__", "."): value for key, value in changes.items()}
        base = tmp_path / "base.yaml"
        base.write_text("{}")
        config = load_config(base, [f"{key}={value}" for key, value in values.items()], FinetuneConfig)
        watchdog = Watchdog(config.watchdog, tmp_path / "run", StopRequest())
        capsys.readouterr()
        evaluator = Evaluator(config, watchdog)
        assert evaluator.evaluate()
        evaluator.run = None  # leaves the folder's lock to the next start
        return read_results(tmp_path / "run"), capsys.readouterr().out

    run.data = data  # type: ignore[attr-defined]
    return run

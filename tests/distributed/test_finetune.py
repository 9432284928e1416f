"""Evaluations on real process groups: every task from its own config, equal on one and two processes, resumable."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.processes import REPOSITORY, run_ranks
from support.rank_cases import selected, shortened

from finetune.encoders.model_file import load_task_model
from finetune.evaluation.head_files import load_head
from finetune.evaluation.results import Result, RunResults, read_results
from finetune.tasks import dump_task, get_task, task_names
from finetune.tasks.kinds.kind import kind_of
from pretrain.models.initialize import initialize
from pretrain.models.published import SPEC_VITS
from pretrain.models.registry import build_encoder
from pretrain.weights.description import EncoderDescription
from pretrain.weights.files import save_encoder
from shards.sensors.sensor import get_sensor
from shards.sources.geotiff import read_tile
from tools.sample_tasks import make_task_sample

pytestmark = pytest.mark.distributed

RUNS = REPOSITORY / "tests" / "support" / "finetune_runs.py"
CONFIGS = REPOSITORY / "configs" / "finetune"
TASKS = {name: get_task(name) for name in task_names() if get_task(name).layout}
NIGHTLY = {"bdforet", "bnetd", "eurocrops", "nlcd", "treemap", "desis_cdl", "eo1_cdl"}
"""Tasks of the same kind as ``cdl``. How the files of every task are read: tests/unit/finetune/data/test_layouts.py."""

SMALL = [
    "run.threads=1",
    "compare_random=false",
    "seeds=[0]",
    "engine.precision=fp32",
    "frozen.epochs=2",
    "frozen.views=2",
    "frozen.lrs=[1e-3]",
    "frozen.batch=8",
    "full.batch=8",
    "full.epochs=1",
    "full.warmup_epochs=0",
]


class Lab:
    """Downloads of all tasks, a small encoder, and what runs leave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for task in TASKS.values():
            make_task_sample(folder / "data", task, tiles=10, size=16)
        enmap = get_sensor("enmap")
        told = [list(enmap.wavelength_nm), list(enmap.fwhm_nm), [2000.0] * 202, [1400.0] * 202]
        self.description = EncoderDescription("spec_vit_tiny", 32, 4, "enmap", *told, "mae", 0, "x", "t")
        self.write_encoder("encoder.safetensors")

    def write_encoder(self, name: str) -> Path:
        encoder = build_encoder("spec_vit_tiny", 32, 4)
        initialize(encoder, "pretrain.encoder", 3)
        save_encoder(self.folder / name, encoder.state_dict(), self.description)
        return self.folder / name

    def job(self, config: str, name: str, *overrides: str, **rest: object) -> dict:
        paths = [f"run.dir={self.folder / name}", f"checkpoint={self.folder / 'encoder.safetensors'}"]
        return {"config": str(CONFIGS / config), "overrides": [*SMALL, *paths, *overrides], **rest}

    def launch(self, world_size: int, jobs: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SPECTRAL_EARTH", str(self.folder / "data"))
        monkeypatch.setenv("SPECTRAL_EARTH_SPLITS", str(self.folder / "data" / "splits"))
        path = self.folder / f"jobs-{world_size}-{len(jobs)}.json"
        path.write_text(json.dumps(jobs))
        run_ranks(RUNS, world_size, str(path), timeout=600)

    def results(self, name: str) -> RunResults:
        return read_results(self.folder / name)

    def outcome(self, name: str) -> str:
        return (self.folder / name / "outcome.txt").read_text()


SEGMENTED = (
    "cdl.yaml",
    "protocol=[frozen,full]",
    "seeds=[0,1]",
    "full.epochs=3",
    "full.drop_path=0.2",
    "full.bn=adapt",
    "full.save_every=2",
)
"""What is run in several ways that must give the same."""

DICE = ("protocol=[frozen,full]", "full.micro_batch=4", "loss={name: dice, class_weights: balanced}")
"""A loss whose parts must add up over ranks and micro batches."""


LAYERED = (
    "protocol=[full]",
    "full.start=random",
    "full.epochs=2",
    "full.head={name: upernet, hidden: 8, layers: [0, -1]}",
    "engine.zero_stage=3",
    "engine.param_persistence_threshold=0",
)
"""A head on two layers, with all weights divided among the processes (ZeRO-3)."""

START = (
    "protocol=[full]",
    "frozen.heads=[linear]",
    "full.head=linear",
    "full.lrs=[1e-12]",
    "frozen.lrs=[1e-2]",
    "full.epochs=4",
    "full.patience=2",
)
"""A full fine-tuning that stays where it starts, and ends early."""

PARTS = ("protocol=[adapter,blocks]", "full.start=random", "full.epochs=2", "full.first_blocks=1")
"""Trainings of which no start can be the best."""

LORA = (
    "protocol=lora",
    "lora.rank=2",
    "lora.lrs=[3e-3]",
    "frozen.heads=[linear]",
    "full.head=linear",
    "full.epochs=4",
    "select=loss",
)
"""Updates of low rank from the probe on."""

LONGER = {"sample_greenness": ("frozen.epochs=8",)}
"""Until values are near their targets."""


@pytest.fixture(scope="module", autouse=True)
def shallow() -> Iterator[None]:
    """Give the encoder two blocks, here and in finetune_runs.py: no result depends on their number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPEC_VITS, "spec_vit_tiny", replace(SPEC_VITS["spec_vit_tiny"], depth=2))
        yield


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """All runs: the tasks and the uninterrupted one on one process; the others on two."""
    lab = Lab(tmp_path_factory.mktemp("finetune"))
    config, *options = SEGMENTED
    short = lab.folder / "short.yaml"  # the task, but for its published number of epochs
    short.write_text(dump_task(TASKS["enmap_cdl"]).replace("epochs: 100", "epochs: 2"))
    recipe = [f"task={short}", "recipe=published", "protocol=[frozen]", "full.bn_group=2"]
    published = lab.job(config, "published", *recipe)
    tasks = [
        lab.job(f"{name}.yaml", name, "protocol=[knn,frozen,full]", *LONGER.get(name, ()))
        for name in sorted({"cdl", "sample_greenness", *selected(request, test_every_task_runs_from_its_own_config)})
    ]
    with pytest.MonkeyPatch.context() as patch:
        lab.launch(
            1,
            [
                *tasks,
                lab.job(config, "whole", *options),
                lab.job(config, "dice", *DICE),
                lab.job(config, "stopped", *options, stop_at_epoch=2),
                lab.job(config, "stopped", *options, stop_at=0),
                lab.job(config, "stopped", *options, stop_at=1),
                published,
                lab.job(config, "parts", *PARTS),
                lab.job(config, "fewer", "protocol=[knn,frozen]", "fractions=[0.2,1.0]", "data.group=scene"),
                lab.job(
                    config, "diverged", "protocol=full", "full.lrs=[1e30]", "full.epochs=8", "full.evaluate_every=8"
                ),
                lab.job(config, "start", *START, stop_at=1),
                lab.job(config, "start", *START),
                lab.job(config, "layered", *LAYERED),
                lab.job(config, "drawn", *START, "full.start=random"),
                lab.job(config, "lora", *LORA, "engine.zero_stage=0"),
                lab.job(config, "lora-stopped", *LORA, "engine.zero_stage=0", stop_at=2),
                lab.job("desis_cdl.yaml", "bad-bands", "data.bands=same"),
                lab.job("desis_cdl.yaml", "resampled", "data.bands=resample", "protocol=[knn]"),
            ],
            patch,
        )
        lab.launch(
            2,
            [
                lab.job(config, "two", *options),
                lab.job(config, "dice-two", *DICE),
                lab.job(config, "layered-two", *LAYERED),
                lab.job(
                    "sample_greenness.yaml", "greenness-two", "protocol=[frozen,full]", *LONGER["sample_greenness"]
                ),
                lab.job(config, "stopped", *options),
                lab.job(config, "lora-stopped", *LORA, "engine.zero_stage=3"),
                published,
                lab.job(config, "bad-batch", "protocol=full", "full.batch=4", "full.bn_group=4"),
            ],
            patch,
        )
    return lab


@pytest.mark.parametrize("name", shortened([name.removeprefix("enmap_") for name in TASKS], NIGHTLY))
def test_every_task_runs_from_its_own_config(lab: Lab, name: str) -> None:
    run = lab.results(name)
    assert run.task == (TASKS.get(name) or TASKS[f"enmap_{name}"]).model_copy(update={"notes": None})
    assert [one.protocol for one in run.results] == ["knn", "frozen", "full"]
    outputs, tiles = len(run.task.outputs), len(run.tiles)
    for one in run.results:
        assert one.statistics.shape == (tiles, *kind_of(run.task).statistics_shape)
        assert all(np.isfinite(value) for value in one.test.values())
        assert all(len(values) == outputs for values in one.by_output.values())
    assert run.rgb.dtype == np.uint8
    assert run.rgb.any()


def _same(one: Result, two: Result, tolerance: float) -> None:
    assert (one.encoder, one.protocol, one.head, one.seed, one.lr, one.epoch) == (
        two.encoder,
        two.protocol,
        two.head,
        two.seed,
        two.lr,
        two.epoch,
    )
    for before, after in zip(one.curve, two.curve, strict=True):
        assert after == pytest.approx(before, rel=tolerance, abs=tolerance)
    assert two.test["loss"] == pytest.approx(one.test["loss"], rel=tolerance)


def test_two_processes_give_what_one_gives(lab: Lab) -> None:
    for one, two in zip(lab.results("whole").results, lab.results("two").results, strict=True):
        _same(one, two, 1e-5)


@pytest.mark.parametrize(
    ("name", "two"), [("dice", "dice-two"), ("sample_greenness", "greenness-two"), ("layered", "layered-two")]
)
def test_weighted_losses_values_of_pixels_and_heads_on_layers_are_those_of_one_process(
    lab: Lab, name: str, two: str
) -> None:
    trained = [one for one in lab.results(name).results if one.protocol != "knn"]
    for one, other in zip(trained, lab.results(two).results, strict=True):
        _same(one, other, 1e-4)


def test_values_of_pixels_are_in_the_unit_of_the_targets(lab: Lab) -> None:
    run = lab.results("sample_greenness")
    (frozen,) = [one for one in run.results if one.protocol == "frozen"]
    assert run.baseline is not None
    assert frozen.test["RMSE"] < 60  # of values between 0 and 100, in eight epochs
    labels = run.labels[np.isfinite(run.labels)]
    assert 20 < labels.mean() < 90
    assert abs(frozen.maps.mean() - labels.mean()) < 40
    model = load_task_model(lab.folder / "sample_greenness" / "model.safetensors")
    assert model.head is not None
    assert float(model.head.mean) == pytest.approx(run.baseline[0], rel=1e-3)


def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_been(lab: Lab) -> None:
    """Stopped among the heads and twice in one training, then gone on with by two processes."""
    assert lab.outcome("stopped") == "complete"
    for one, two in zip(lab.results("whole").results, lab.results("stopped").results, strict=True):
        _same(one, two, 1e-5)
    assert not (lab.folder / "stopped" / "work").exists()


def test_what_is_complete_is_not_done_again(lab: Lab) -> None:
    """The second launch found the results of the first."""
    assert lab.outcome("published") == "complete"
    assert len(list((lab.folder / "published" / "parts").glob("pretrained-frozen-*"))) == 1


def test_the_published_recipe_lets_batch_norms_adapt_and_nothing_else(lab: Lab) -> None:
    (one,) = lab.results("published").results
    assert (one.head, one.lr) == ("conv", 1e-3)
    assert len(one.curve) == 2
    tuned = load_task_model(lab.folder / "published" / "model.safetensors").encoder.state_dict()
    before = load_task_model(lab.folder / "encoder.safetensors").encoder.state_dict()
    changed = {name for name in before if not np.array_equal(before[name], tuned[name])}
    assert changed
    moved = ("running_mean", "running_var", "num_batches_tracked", "pos_embed")  # positions are interpolated to 16 px
    assert all(name.rsplit(".", 1)[-1] in moved for name in changed)


def test_full_fine_tuning_begins_from_the_head_of_the_frozen_protocol_or_from_a_drawn_one(lab: Lab) -> None:
    """The head is trained first, though the frozen protocol isn't asked for."""
    (path,) = (lab.folder / "start" / "parts").glob("pretrained-frozen-*.heads.safetensors")
    frozen = load_head(path, "linear", 0)
    start, drawn = (load_task_model(lab.folder / name / "model.safetensors").head for name in ("start", "drawn"))
    assert frozen is not None and start is not None and drawn is not None
    for name, weight in start.state_dict().items():
        torch.testing.assert_close(weight, frozen[name], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(drawn.state_dict()["linear.weight"], frozen["linear.weight"], atol=1e-3)
    assert not list((lab.folder / "drawn" / "parts").glob("*frozen*"))


def test_a_training_that_gets_no_better_ends_early_also_after_a_stop(lab: Lab) -> None:
    for name, epochs in (("start", [0, 1, 2]), ("drawn", [1, 2, 3])):
        assert lab.outcome(name) == "complete"
        (one,) = lab.results(name).results
        assert [point["epoch"] for point in one.curve] == epochs
        assert one.epoch == epochs[0]


def test_only_what_a_protocol_names_learns(lab: Lab) -> None:
    for protocol in ("adapter", "blocks"):
        assert [one.protocol for one in lab.results("parts").results].count(protocol) == 1
    tuned = load_task_model(lab.folder / "parts" / "model.safetensors").encoder.state_dict()
    before = load_task_model(lab.folder / "encoder.safetensors").encoder.state_dict()
    changed = {name for name in before if not np.array_equal(before[name], tuned[name])}
    assert any(name.startswith("spectral_adapter.0") for name in changed)
    assert not any("blocks.1." in name or name.startswith("vit_core.norm") for name in changed)


def test_updates_of_low_rank_go_on_at_another_stage_on_another_number_of_processes(lab: Lab) -> None:
    assert lab.outcome("lora-stopped") == "complete"
    (one,), (two,) = lab.results("lora").results, lab.results("lora-stopped").results
    _same(one, two, 1e-5)
    assert one.curve[0]["epoch"] == 0  # the probe
    assert one.curve[-1]["validation_loss"] < one.curve[0]["validation_loss"]
    width, depth, rank = 192, 2, 2
    head = load_task_model(lab.folder / "lora" / "model.safetensors").head
    assert head is not None
    updates = depth * rank * (width + 3 * width + width + width)  # A and B of qkv and of proj
    assert one.size == two.size
    assert one.size["trained"] == updates + sum(weight.numel() for weight in head.parameters())
    assert one.size["state_bytes"] == 12 * one.size["trained"]  # fp32 gradient and two moments


def test_updates_of_low_rank_are_merged_into_the_weights_of_attention(lab: Lab) -> None:
    tuned = load_task_model(lab.folder / "lora" / "model.safetensors").encoder.state_dict()
    before = load_task_model(lab.folder / "encoder.safetensors").encoder.state_dict()
    changed = {name for name in before if not np.array_equal(before[name], tuned[name])}
    fitted = {name for name in before if name.endswith(("pos_embed", "num_batches_tracked"))}  # to 16 px; a count
    assert changed - fitted == {name for name in before if name.endswith(("attn.qkv.weight", "attn.proj.weight"))}


@pytest.mark.parametrize("name", ["cdl", "lora"])
def test_the_model_file_predicts_what_the_run_reports(lab: Lab, name: str) -> None:
    run = lab.results(name)
    best = max((one for one in run.results if one.protocol != "knn"), key=lambda one: one.validation["mIoU"])
    model = load_task_model(lab.folder / name / "model.safetensors")
    images = [
        read_tile(lab.folder / "data" / "enmap_cdl" / "enmap" / tile, get_sensor("enmap")).values for tile in run.tiles
    ]
    with torch.no_grad():
        predicted = model(torch.from_numpy(np.stack(images))).numpy()
    shown = np.unique(np.linspace(0, len(images) - 1, 8)[1:-1].round().astype(int))
    assert (predicted[shown] == best.maps).mean() > 0.999


def test_shares_of_the_tiles_and_scene_splits(lab: Lab) -> None:
    run = lab.results("fewer")
    assert sorted((one.protocol, one.fraction) for one in run.results) == [
        ("frozen", 0.2),
        ("frozen", 1.0),
        ("knn", 0.2),
        ("knn", 1.0),
    ]
    assert run.data["split"] == "scene"


def test_what_does_not_go_together_is_one_line(lab: Lab) -> None:
    assert lab.outcome("bad-bands").startswith(
        "2 the encoder takes 202 bands of enmap, but the tiles have 235 of desis"
    )
    assert lab.outcome("bad-batch").startswith("2 ")
    assert "full.bn_group" in lab.outcome("bad-batch")
    assert lab.outcome("resampled") == "complete"
    assert lab.outcome("diverged").startswith("76 pretrained-full-1-seed0-lr1e+30")
    assert "5 steps in a row were skipped (loss is non-finite): lower full.lrs" in lab.outcome("diverged")


@pytest.mark.nightly
def test_a_signal_to_one_process_saves_and_the_same_command_goes_on(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECTRAL_EARTH", str(lab.folder / "data"))
    monkeypatch.setenv("SPECTRAL_EARTH_SPLITS", str(lab.folder / "data" / "splits"))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setitem(SPEC_VITS, "spec_vit_tiny", replace(SPEC_VITS["spec_vit_tiny"], depth=12))
    torchrun = Path(sys.executable).with_name("torchrun")
    options = [
        "protocol=full",
        "full.epochs=30",
        "full.evaluate_every=5",
        f"checkpoint={lab.write_encoder('deep.safetensors')}",
    ]
    program = [
        torchrun,
        "--nproc_per_node",
        "2",
        REPOSITORY / "launch" / "finetune.py",
        "--config",
        CONFIGS / "cdl.yaml",
    ]
    command = [*map(str, program), *SMALL, *options]
    whole = subprocess.run([*command, f"run.dir={tmp_path / 'whole'}"], capture_output=True, text=True, timeout=300)
    assert whole.returncode == 0, whole.stderr
    stopped = tmp_path / "stopped"
    process = subprocess.Popen([*command, f"run.dir={stopped}"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 10/30" in line:
            os.kill(int((stopped / "rank0.pid").read_text()), signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    assert json.loads((stopped / "status.json").read_text())["status"] == "stopped"
    assert not (stopped / "results.json").exists()
    again = subprocess.run([*command, f"run.dir={stopped}"], capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "resumed at step" in again.stdout
    (one,), (two,) = read_results(tmp_path / "whole").results, read_results(stopped).results
    assert (two.curve, two.test) == (one.curve, one.test)

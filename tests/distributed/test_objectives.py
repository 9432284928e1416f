"""Every objective trains under ZeRO, alike on one and two processes, under any stage, and across a resume."""

from pathlib import Path

import numpy as np
import pytest
from support.mixture_jobs import mixture_jobs, samples_read
from support.rank_cases import selected, shortened
from support.tiles import write_tile
from support.zero_jobs import Runs

from shards.pack.build import PackConfig, pack
from shards.sensors.sensor import NODATA

STEPS, HALF = 4, 2

OBJECTIVES = {
    "mae": ["objective.mask_ratio=0.75", "objective.ignore_nodata=true"],
    "share": ["objective.mask_ratio=0.75", "objective.ignore_nodata=true", "objective.decode_share=0.5"],
    "angle": ["objective.mask_ratio=0.75", "objective.norm_pix=false", "objective.spectral_angle=0.5"],
    "moco": [
        "objective={name: moco, queue: 64, hidden: 64, dim: 32, momentum: 0.9, head_norm: true}",
        "augment.blur=0.5",
    ],
    "dino": [
        "objective={name: dino, hidden: 64, bottleneck: 32, prototypes: 64, momentum: 0.9, "
        "final_teacher_temperature: 0.07, warmup_temperature_steps: 3, freeze_last_layer_steps: 1, "
        "local_crops: {count: 2, size: 4, scale: [0.1, 0.4]}}",
        "augment.blur=0.5",
    ],
}
WAVE = ["model.stem=wave", "augment.sensors={}"]
OBJECTIVES |= {
    "wave": [*OBJECTIVES["mae"], *WAVE, "objective.masking=decoupled"],
    "wave-moco": [*OBJECTIVES["moco"], *WAVE],
    "wave-dino": [*OBJECTIVES["dino"], *WAVE],
}
RESUMED = ["moco", "dino"]
CUT = ["mae", "share", "wave"]
NIGHTLY = {"share", "angle", "wave-moco", "wave-dino"}

pytestmark = pytest.mark.distributed


def write_landscapes(folder: Path) -> None:
    """Ten locations, six of two dates, each nearly of one spectrum; some pixels are missing."""
    nm = np.linspace(0, 1, 202)[:, None, None]
    for number in range(10):
        rng = np.random.default_rng(number)
        shares = rng.dirichlet((0.5, 0.5, 0.5))
        mixture = shares[0] * 4000 * nm + shares[1] * 3000 * np.sin(3 * nm) + shares[2] * 2500 * np.cos(5 * nm) ** 2
        for date in range(1 + (number < 6)):
            values = np.rint(mixture * rng.uniform(0.8, 1.2, (1, 32, 32)) + rng.normal(0, 20, (202, 32, 32)))
            values[:, : 3 * (number % 3), :5] = NODATA
            write_tile(folder / "enmap" / f"{number:07d}" / f"{date + 1:05d}.tif", values.astype(np.int16))


def base_config(folder: Path) -> dict:
    write_landscapes(folder / "tiles")
    pack(folder / "tiles", folder / "shards", PackConfig(tiles_per_shard=6))
    return {
        "run": {"dir": "set by each job", "seed": 3},
        "data": {
            "shards": str(folder / "shards"),
            "holdout": 0.0,
            "read_threads": 1,
            "order": {"sampling": "location"},
        },
        "augment": {"crop_scale": [0.4, 1.0]},
        "model": {"name": "spec_vit_tiny", "image_size": 8, "patch_size": 4, "bn_group": 4},
        "objective": {"decoder": {"width": 64, "depth": 1, "heads": 2}},
        "optim": {"lr": 5e-4, "warmup_steps": 2, "clip": 0.3, "layer_decay": 0.8},
        "train": {"steps": STEPS, "global_batch": 16, "micro_batch": 8},
        "engine": {"zero_stage": 3, "precision": "fp32", "param_persistence_threshold": 0},
        "checkpoint": {"every": 1000},
        "log": {"every": 1, "validate_every": 0},
    }


def two_steps(name: str) -> list[str]:
    warmup = ["objective.warmup_temperature_steps=2"] if name.endswith("dino") else []
    return [*OBJECTIVES[name], "train.steps=2", *warmup]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All runs; those of a test that has nightly cases only for the cases of this session."""
    folder = tmp_path_factory.mktemp("objectives")
    runs = Runs(folder, base_config(folder))
    two, one = [], []
    chosen = set(OBJECTIVES) - NIGHTLY | set(selected(request, test_one_process_and_two_agree))
    for name in sorted(chosen):
        two.append(runs.job(f"{name}-2", *OBJECTIVES[name]))
        one.append(runs.job(f"{name}-1", *OBJECTIVES[name]))
    for name in RESUMED:
        two.append(runs.job(f"{name}-half", *OBJECTIVES[name], stop_at=HALF))
        one.append(runs.job(f"{name}-resumed", *OBJECTIVES[name], "engine.zero_stage=2", copy_from=f"{name}-half"))
    for name in selected(request, test_a_run_from_a_checkpoint_is_the_same_on_one_process_and_two):
        begun = [*two_steps(name), f"init={folder / f'{name}-half'}", "run.seed=4"]
        two.append(runs.job(f"{name}-begun-2", *begun))
        one.append(runs.job(f"{name}-begun-1", *begun, "engine.zero_stage=0"))
    for name in selected(request, test_learned_positions_and_their_average_go_on_at_another_image_size):
        larger = [*OBJECTIVES[name], "model.image_size=16", "checkpoint.accept=[model]"]
        one.append(runs.job(f"{name}-larger", *larger, copy_from=f"{name}-half"))
    for name in selected(request, test_recomputed_activations_change_nothing):
        recompute = ["engine.activation_checkpointing=true", "engine.zero_stage=0"]
        one.append(runs.job(f"{name}-recomputed", *OBJECTIVES[name], *recompute))
    for name in selected(request, test_a_resnet_agrees_on_one_process_and_two):
        group = 8 if name == "dino" else 4  # DINO's crops of 8 samples in one call take half as long
        resnet = [*two_steps(name), "model.name=spec_resnet50", "model.image_size=16", f"model.bn_group={group}"]
        two.append(runs.job(f"{name}-resnet-2", *resnet))
        one.append(runs.job(f"{name}-resnet-1", *resnet))
    sgd = [
        *OBJECTIVES["moco"],
        "optim.name=sgd",
        "optim.lr=0.05",
        "optim.schedule=milestones",
        "optim.milestones=[0.5]",
    ]
    two.append(runs.job("sgd-half", *sgd, stop_at=HALF))
    one.append(runs.job("sgd-1", *sgd))
    one.append(runs.job("sgd-resumed", *sgd, copy_from="sgd-half"))
    one.append(runs.job("wave-half-precision", *two_steps("wave"), "engine={zero_stage: 2, precision: bf16}"))
    one += [runs.job(f"{name}-cut", *OBJECTIVES[name], "train.micro_batch=4") for name in CUT if name in chosen]
    for jobs, mixtures in zip((two, one), mixture_jobs(runs), strict=True):
        jobs += mixtures
    runs.launch(2, two, "--shallow")
    runs.launch(1, one, "--shallow")
    return runs


@pytest.mark.parametrize("name", shortened(list(OBJECTIVES), NIGHTLY))
def test_one_process_and_two_agree(runs: Runs, name: str) -> None:
    losses = runs.records(f"{name}-2", "loss")
    assert len(losses) == STEPS
    assert len(set(losses)) == STEPS
    assert runs.records(f"{name}-1", "loss") == pytest.approx(losses, rel=1e-4, abs=0)


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_goes_on_with_another_number_of_processes_and_stage(runs: Runs, name: str) -> None:
    """The momentum network, the queue and the center are in the checkpoint, or later losses would differ."""
    assert runs.records(f"{name}-resumed", "loss") == pytest.approx(runs.records(f"{name}-2", "loss"), rel=1e-4, abs=0)


@pytest.mark.parametrize("name", shortened(RESUMED, nightly={"moco"}))
def test_a_run_from_a_checkpoint_is_the_same_on_one_process_and_two(runs: Runs, name: str) -> None:
    """Its momentum network is the same, too: later losses would differ."""
    losses = runs.records(f"{name}-begun-2", "loss")
    assert len(losses) == 2
    assert runs.records(f"{name}-begun-1", "loss") == pytest.approx(losses, rel=1e-4, abs=0)


@pytest.mark.parametrize("name", shortened(RESUMED, nightly={"moco"}))
def test_learned_positions_and_their_average_go_on_at_another_image_size(runs: Runs, name: str) -> None:
    assert len(runs.records(f"{name}-larger", "loss")) == STEPS


@pytest.mark.parametrize("name", shortened(["mae", "dino", "wave"], nightly={"mae"}))
def test_recomputed_activations_change_nothing(runs: Runs, name: str) -> None:
    assert runs.records(f"{name}-recomputed", "loss") == pytest.approx(
        runs.records(f"{name}-1", "loss"), rel=1e-4, abs=0
    )


@pytest.mark.parametrize("name", shortened(["moco", "dino"], nightly={"moco", "dino"}))
def test_a_resnet_agrees_on_one_process_and_two(runs: Runs, name: str) -> None:
    losses = runs.records(f"{name}-resnet-2", "loss")
    assert len(losses) == 2
    assert runs.records(f"{name}-resnet-1", "loss") == pytest.approx(losses, rel=1e-3, abs=0)


def test_sgd_resumes_with_its_momentum(runs: Runs) -> None:
    assert runs.records("sgd-resumed", "loss") == pytest.approx(runs.records("sgd-1", "loss"), rel=1e-4, abs=0)
    rates = runs.records("sgd-1", "lr")
    assert rates == pytest.approx([0.025, 0.05, 0.005, 0.005])


@pytest.mark.parametrize("name", shortened(CUT, NIGHTLY))
def test_missing_pixels_count_the_same_however_the_batch_is_cut(runs: Runs, name: str) -> None:
    assert runs.records(f"{name}-cut", "loss") == pytest.approx(runs.records(f"{name}-1", "loss"), rel=1e-4, abs=0)


def test_an_encoder_by_wavelength_trains_in_half_precision(runs: Runs) -> None:
    losses = runs.records("wave-half-precision", "loss")
    assert losses == pytest.approx(runs.records("wave-1", "loss")[:2], rel=0.02)


@pytest.mark.parametrize("name", shortened(list(OBJECTIVES), NIGHTLY))
def test_features_have_not_collapsed(runs: Runs, name: str) -> None:
    assert min(runs.records(f"{name}-2", "feature_std")) > 1e-3


# ---- several sources, of tiles of two sizes and two sensors ----


def test_several_sources_agree_on_one_process_and_two(runs: Runs) -> None:
    losses = runs.losses("mixture-2")
    assert len(set(losses)) == 2
    assert runs.losses("mixture-1") == pytest.approx(losses, rel=1e-4, abs=0)
    assert samples_read(runs, "mixture-1") == samples_read(runs, "mixture-2")


@pytest.mark.parametrize("name", ["sensors-1", "sensors-resumed"])
def test_several_sensors_agree_on_one_process_and_two_and_across_a_resume(runs: Runs, name: str) -> None:
    losses, read = runs.losses("sensors-2"), samples_read(runs, "sensors-2")
    assert len(set(losses)) == 4
    assert runs.losses(name) == pytest.approx(losses, rel=1e-4, abs=0)
    assert samples_read(runs, name) == read
    for source in ("small", "camera"):
        expected = runs.records("sensors-2", f"source/{source}/validation_loss")
        assert runs.records(name, f"source/{source}/validation_loss") == pytest.approx(expected, rel=1e-4)


def test_every_cycle_of_blocks_has_the_shares_and_no_source_repeats_a_tile_early(runs: Runs) -> None:
    read = samples_read(runs, "sensors-2")
    names = [read[number][1] for number in range(64)]
    for begin in range(0, 64, 16):  # four blocks of four samples
        assert [names[begin : begin + 16].count(name) for name in ("large", "small", "camera")] == [8, 4, 4]
    tiles = [read[number][0] for number in range(64) if names[number] == "large"]
    assert len(set(tiles[:10])) == 10  # ten locations


def test_held_out_tiles_of_a_source_have_a_loss_of_their_own(runs: Runs) -> None:
    small, camera = (runs.records("sensors-2", f"source/{name}/validation_loss")[0] for name in ("small", "camera"))
    assert small != camera
    assert runs.records("sensors-2", "source/large/validation_loss") == []  # it holds out none
    assert runs.records("sensors-2", "validation_loss") == pytest.approx([(small + camera) / 2])


def test_each_source_has_a_loss_and_its_samples_counted(runs: Runs) -> None:
    large, small = (runs.records("mixture-2", f"source/{source}/loss") for source in ("large", "small"))
    assert runs.records("mixture-1", "source/small/loss") == pytest.approx(small, rel=1e-4)
    share = runs.records("mixture-2", "source/small/samples")[0] / 16
    assert runs.losses("mixture-2")[0] == pytest.approx((1 - share) * large[0] + share * small[0], rel=1e-5)
    assert runs.records("sensors-2", "source/small/samples") == [4, 8, 12, 16]
    assert runs.records("sensors-2", "source/large/epochs") == [0.8, 1.6, 2.4, 3.2]


def test_a_stem_that_reads_bands_by_position_refuses_several_sensors(runs: Runs) -> None:
    error = runs.error("sensors-conv")
    assert "key 'data.sources.2' (camera): 80 bands of camera, but large has 202 of enmap" in error
    assert "set model.stem=wave" in error


def test_other_sources_are_refused_with_what_changed(runs: Runs) -> None:
    error = runs.error("sensors-other")
    assert "data.sources differs ('camera' was removed); choose another run.dir, or add" in error
    assert "checkpoint.accept=[data.sources] to continue anyway" in error
    assert "data.sources differs ('large' has weight 2, it had 1, 'small' was added)" in runs.error("mixture-added")


def test_accepted_sources_begin_their_order_where_the_checkpoint_was_saved(runs: Runs) -> None:
    later, from_the_start = samples_read(runs, "mixture-begun-again"), samples_read(runs, "mixture-2")
    assert sorted(later) == list(range(16 * (HALF + 2)))
    assert [later[number + 16 * HALF] for number in range(32)] == [from_the_start[number] for number in range(32)]

"""One run over real scenes of five spectrometers and five made sensors is killed, and resumed on fewer processes."""

import json
import signal
from pathlib import Path

import pytest
import yaml
from support.fault_kinds import Signal
from support.faults import Training
from support.real_sensors import pack_made_sensors, pack_scenes

from shards.format.manifest import read_manifest
from shards.pack.build import pack
from shards.pack.scan import PackConfig

STEPS, BATCH, GROUP = 18, 16, 4
LARGER = ("potsdam", "indian_pines")  # have two blocks of samples where others have one
CUTS = ("aviris_ng", "emit")  # of one or two tiles: all are trained on

pytestmark = [pytest.mark.distributed, pytest.mark.nightly]


def config_file(folder: Path, names: list[str]) -> Path:
    sources = [
        {"shards": str(folder / name), "weight": 1 + (name in LARGER), "holdout": 0.0 if name in CUTS else 0.2}
        for name in names
    ]
    config = {
        "run": {"dir": "set by each training", "seed": 7},
        "data": {"sources": sources, "read_threads": 1},
        "model": {"name": "spec_vit_tiny", "image_size": 16, "patch_size": 4, "bn_group": GROUP, "stem": "wave"},
        "objective": {"mask_ratio": 0.75, "ignore_nodata": True, "decoder": {"width": 64, "depth": 1, "heads": 2}},
        "optim": {"lr": 5e-4, "warmup_steps": 4},
        "train": {"steps": STEPS, "global_batch": BATCH, "micro_batch": 8},
        "engine": {"zero_stage": 3, "precision": "fp32", "param_persistence_threshold": 0},
        "checkpoint": {"every": 5},
        "log": {"every": 1, "validate_every": STEPS, "samples": True},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def records(training: Training, name: str) -> list[float]:
    lines = map(json.loads, (training.folder / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def test_a_run_over_ten_sensors_is_killed_and_resumed_on_one_process(
    tmp_path: Path, enmap_potsdam: Path, spectral_earth_sample: Path, scenes: Path, emit: Path
) -> None:
    pack(enmap_potsdam / "images", tmp_path / "potsdam", PackConfig())
    names = ["potsdam", *pack_scenes(tmp_path, scenes, emit), *pack_made_sensors(tmp_path, spectral_earth_sample)]
    config = config_file(tmp_path, names)
    whole = Training(tmp_path / "whole", config)
    assert whole.launch(2).codes == [0, 0]
    killed = Training(tmp_path / "killed", config)
    ended = killed.launch(2, Signal(step=13, number=signal.SIGKILL, ranks=[0, 1]))
    assert set(ended.codes) == {-signal.SIGKILL}
    resumed = killed.launch(1)
    assert resumed.codes == [0], resumed.output
    assert "resumed from" in resumed.output and "step-00000010" in resumed.output
    assert killed.ledger() == whole.ledger()
    assert killed.losses() == pytest.approx(whole.losses(), rel=1e-4, abs=0)
    check_shares(whole, names)
    for name in names:
        losses = records(whole, f"source/{name}/loss")
        assert records(killed, f"source/{name}/loss") == pytest.approx(losses, rel=1e-4)
        print_source(tmp_path / name, whole)
    ratios = [abs(killed.losses()[step] / loss - 1) for step, loss in whole.losses().items()]
    print(f"{STEPS} steps, losses equal to {max(ratios):.1e}: {list(whole.losses().values())}")


def check_shares(training: Training, names: list[str]) -> None:
    """In every cycle of blocks each source has exactly its share of the samples."""
    drawn: dict[int, str] = {}
    for path in training.folder.glob("samples-*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            drawn |= dict(zip(line["samples"], line["sources"], strict=True))
    assert sorted(drawn) == list(range(STEPS * BATCH))
    weights = {name: 1 + (name in LARGER) for name in names}
    cycle = GROUP * sum(weights.values())
    for begin in range(0, STEPS * BATCH - cycle + 1, cycle):
        sources = [drawn[number] for number in range(begin, begin + cycle)]
        assert {name: sources.count(name) for name in names} == {name: GROUP * weights[name] for name in names}


def print_source(folder: Path, training: Training) -> None:
    name, manifest = folder.name, read_manifest(folder)
    losses = records(training, f"source/{name}/loss")
    bands, height, width = manifest.tile_shape
    print(
        f"{name}: {sum(shard.tiles for shard in manifest.shards)} tiles of {bands} x {height} x {width}, "
        f"{min(manifest.wavelength_nm):.0f} to {max(manifest.wavelength_nm):.0f} nm, "
        f"{records(training, f'source/{name}/samples')[-1]:g} samples, loss {losses[0]:.3f} to {losses[-1]:.3f}"
    )

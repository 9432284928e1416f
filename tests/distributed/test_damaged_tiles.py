"""Runs on shards with a really flipped byte, in one process and in two: trained, saved, resumed, and told."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from support.faults import Training
from support.processes import SHALLOW
from support.tiles import write_archive

from pretrain.checkpointing.checkpoint import read_state
from shards.order.plan import train_val_split
from shards.pack.build import PackConfig, pack
from shards.read.reader import ShardReader

pytestmark = pytest.mark.distributed
SEED, HOLDOUT = 7, 0.4


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config file and the folder of its shards."""
    folder = tmp_path_factory.mktemp("damaged")
    write_archive(folder / "tiles", size=16, scenes={f"{place:07d}": ("00001", "00002") for place in range(8)})
    pack(folder / "tiles", folder / "shards", PackConfig(tiles_per_shard=4))
    config = {
        "plugins": [SHALLOW],
        "run": {"dir": "set by each training", "seed": SEED},
        "data": {"shards": str(folder / "shards"), "holdout": HOLDOUT, "read_threads": 1},
        "model": {"name": "spec_vit_tiny", "image_size": 8, "patch_size": 4, "bn_group": 2},
        "objective": {"mask_ratio": 0.5, "decoder": {"width": 64, "depth": 1, "heads": 2}},
        "train": {"steps": 2, "global_batch": 4, "micro_batch": 2},
        "engine": {"zero_stage": 2, "precision": "fp32"},
        "checkpoint": {"every": 1, "keep": 3},
        "log": {"every": 1, "validate_every": 1, "samples": True},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path, folder / "shards"


def flip_a_byte(shards: Path, row: int) -> None:
    reader = ShardReader(shards)
    with open(shards / reader.manifest.shards[reader.table["shard"][row]].name, "r+b") as file:
        file.seek(int(reader.table["offset"][row]) + 60)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 16]))


def test_a_damaged_held_out_tile_ends_no_run(setup, tmp_path):
    config, packed = setup
    shards = Path(shutil.copytree(packed, tmp_path / "shards"))
    train, held_out = train_val_split(ShardReader(shards).table, HOLDOUT, SEED)
    flip_a_byte(shards, int(held_out[0]))
    training = Training(tmp_path / "run", config, f"data.shards={shards}")
    begun = training.launch(1)
    assert begun.codes == [0], begun.output
    assert "WARNING: 1 damaged tiles so far, replaced by others of their set" in begun.output
    rows = read_state(training.whole()[-1])["fixed_rows"]
    assert set(rows) <= set(held_out.tolist()) - {int(held_out[0])}

    flip_a_byte(shards, rows[0])  # one that the fixed loss of the checkpoint was computed from
    training.overrides = (f"data.shards={shards}", "data.decode=device", "train.steps=4")
    resumed = training.launch(2)
    assert resumed.codes == [0, 0], resumed.output
    assert "their loss can't be compared" in resumed.output
    training.overrides = (f"data.shards={shards}", "train.steps=5")
    again = training.launch(1)
    assert again.codes == [0] and "can't be compared" not in again.output, again.output
    seen = {tile for samples in training.ledger().values() for _, tile in samples}
    assert seen <= set(train.tolist())
    listed = [json.loads(line) for path in training.folder.glob("quarantine-*") for line in path.open()]
    assert {line["row"] for line in listed} == {int(held_out[0]), rows[0]}


def test_above_the_budget_a_run_ends_in_one_line(setup, tmp_path):
    config, packed = setup
    shards = Path(shutil.copytree(packed, tmp_path / "shards"))
    _, held_out = train_val_split(ShardReader(shards).table, HOLDOUT, SEED)
    flip_a_byte(shards, int(held_out[0]))
    ended = Training(tmp_path / "run", config, f"data.shards={shards}", "data.max_bad_tiles=0").launch(1)
    assert ended.codes == [1]
    lines = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "'data.max_bad_tiles' allows 0" in lines[0], ended.output
    assert "Traceback" not in ended.output

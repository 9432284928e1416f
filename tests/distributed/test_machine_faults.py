"""Disks that are really full, broken, read-only or gone, and memory that has run out, in the middle of training runs.

Each run ends with one line that names the place and what to do, or goes on; the same command then completes it with
the samples and losses of a run without faults.
"""

import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
from support.faults import Training
from support.machine import BrokenDisk, MemoryLimit, SmallDisk
from support.machine_runs import (
    EVERY,
    HANG,
    HOST,
    BreakdownOfOwn,
    at_step,
    check_failed,
    check_goes_on,
    check_same,
    errors,
    write_config,
)
from support.tiles import write_archive

from pretrain.checkpointing.checkpoint import read_state
from shards.pack.build import PackConfig, pack

pytestmark = [pytest.mark.distributed, pytest.mark.nightly]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Training]:
    """The config of the runs, and a run of it on one process that nothing happened to."""
    folder = tmp_path_factory.mktemp("machine")
    write_archive(folder / "tiles", size=24)
    pack(folder / "tiles", folder / "shards", PackConfig(tiles_per_shard=4))
    path = write_config(folder / "config.yaml", folder / "shards")
    reference = Training(folder / "whole", path)
    ended = reference.launch(1)
    assert ended.codes == [0], ended.output
    return path, reference


def test_a_disk_that_is_full_during_a_save(setup, tmp_path):
    config, reference = setup
    with SmallDisk(tmp_path / "run", megabytes=400) as disk:
        training = Training(disk.folder, config)
        ended = training.launch(1, at_step(EVERY + 2, disk.fill))
        place = f"step-{2 * EVERY:08d}: can't be written: rank 0 on {HOST}: "
        check_failed(ended, place, "No space left on device", f"step-{EVERY:08d}, is untouched; free some space")
        disk.mend()
        check_goes_on(training, reference)


def test_a_file_system_without_inodes(setup, tmp_path):
    config, reference = setup
    with SmallDisk(tmp_path / "run", megabytes=400, inodes=400) as disk:
        training = Training(disk.folder, config)
        ended = training.launch(1, at_step(EVERY + 2, disk.use_up_inodes))
        check_failed(ended, f"rank 0 on {HOST}: ", "No space left on device", "has no inodes left (df -i)")
        disk.mend()
        check_goes_on(training, reference)


def test_logs_on_a_full_disk_cost_lines_and_no_training(setup, tmp_path):
    """Checkpoints are on another disk, as a link; the export at the end needs the full one."""
    config, reference = setup
    with SmallDisk(tmp_path / "run", megabytes=400) as disk:
        training = Training(disk.folder, config)
        (tmp_path / "checkpoints").mkdir()
        (training.folder / "checkpoints").symlink_to(tmp_path / "checkpoints")
        ended = training.launch(1, at_step(EVERY + 2, disk.fill))
        check_failed(ended, "encoder.safetensors: can't be written", "No space left on device", "free some space")
        warned = [line for line in ended.output.splitlines() if ": not written: " in line]
        assert all(f"No space left on device on {HOST}: free some space; the run continues" in line for line in warned)
        names = [line.removeprefix("warning: ").split(":")[0] for line in warned]
        assert len(set(names)) == len(names) >= 2, ended.output
        hashes = [read_state(run.whole()[-1])["weights_hash"] for run in (training, reference)]
        assert hashes[0] == hashes[1]
        disk.mend()
        again = training.launch(1)
        assert again.codes == [0] and (training.folder / "encoder.safetensors").exists(), again.output
        written = training.losses()
        assert written == {step: reference.losses()[step] for step in written}


def test_a_file_system_that_turns_read_only(setup, tmp_path):
    config, reference = setup
    with BrokenDisk(tmp_path / "run", megabytes=400) as disk:
        training = Training(disk.folder, config)
        ended = training.launch(1, at_step(EVERY + 2, disk.turn_read_only))
        check_failed(ended, f"rank 0 on {HOST}: ", "Read-only file system", "mount it writable again")
        disk.mend()
        check_goes_on(training, reference)


def test_a_disk_that_fails_to_write_a_checkpoint(setup, tmp_path):
    config, reference = setup
    with BrokenDisk(tmp_path / "run", megabytes=400, stacked=True) as disk:
        training = Training(disk.folder, config)
        ended = training.launch(1, at_step(EVERY + 2, disk.refuse_writes))
        check_failed(ended, f"rank 0 on {HOST}: ", "dmesg")
        disk.mend()
        check_goes_on(training, reference)


def test_a_disk_that_fails_to_read_a_shard_for_a_while(setup, tmp_path):
    config, reference = setup
    with BrokenDisk(tmp_path / "disk") as disk:
        shards = Path(shutil.copytree(config.parent / "shards", disk.folder / "shards"))
        training = Training(tmp_path / "run", config, f"data.shards={shards}")

        def break_for_a_while() -> None:
            disk.lose_data(max(shards.glob("*.tar"), key=lambda path: path.stat().st_size))
            threading.Timer(8, disk.give_back).start()

        ended = training.launch(1, at_step(3, break_for_a_while))
        assert ended.codes == [0], ended.output
        assert not list(training.folder.glob("quarantine-*")), ended.output
        check_same(training, reference)


def test_a_run_folder_that_vanishes(setup, tmp_path):
    config, reference = setup
    training = Training(tmp_path / "run", config)
    aside = tmp_path / "aside"
    ended = training.launch(1, at_step(EVERY + 2, lambda: os.rename(training.folder, aside)))
    if training.folder.exists():  # what was logged meanwhile
        shutil.rmtree(training.folder)
    check_failed(ended, f"{training.folder}", "gone", HOST, "put it back")
    os.rename(aside, training.folder)
    check_goes_on(training, reference)


def test_shards_that_vanish_are_read_on_while_they_are_open(setup, tmp_path):
    config, reference = setup
    shards = Path(shutil.copytree(config.parent / "shards", tmp_path / "shards"))
    training = Training(tmp_path / "run", config, f"data.shards={shards}")
    ended = training.launch(1, at_step(EVERY + 2, lambda: shutil.rmtree(shards)))
    assert ended.codes == [0], ended.output
    check_same(training, reference)


def test_a_staging_folder_that_vanishes_costs_time_alone(setup, tmp_path):
    config, reference = setup
    stage = tmp_path / "stage"
    training = Training(tmp_path / "run", config, f"data.stage={stage}")
    ended = training.launch(1, at_step(EVERY + 2, lambda: [shutil.rmtree(copies) for copies in stage.iterdir()]))
    assert ended.codes == [0] and not errors(ended), ended.output
    check_same(training, reference)


def test_staging_on_a_full_disk_costs_time_alone(setup, tmp_path):
    config, reference = setup
    with SmallDisk(tmp_path / "disk", megabytes=1) as disk:
        disk.fill(leave=40_000)
        training = Training(tmp_path / "run", config, f"data.stage={disk.folder}/stage")
        ended = training.launch(1)
        assert ended.codes == [0] and not errors(ended), ended.output
        warned = [line for line in ended.output.splitlines() if "staging stopped" in line]
        assert len(warned) == 1 and f"No space left on device on {HOST}: free some space" in warned[0], ended.output
        check_same(training, reference)


def test_a_rank_that_is_killed_at_the_limit_of_memory(setup, tmp_path):
    config, reference = setup
    training = Training(tmp_path / "run", config)
    with MemoryLimit(f"spectralforge-{os.getpid()}", megabytes=2500) as limit, limit.entered():
        fault = BreakdownOfOwn(step=EVERY + 2, action=lambda ranks: limit.run_out(ranks[1].pid))
        ended = training.launch(2, fault)
        assert limit.kills == 1
    assert ended.codes == [1, -signal.SIGKILL] and not ended.killed and ended.seconds < HANG, ended.output
    line = f"error: rank 0 on {HOST}: lost another rank"
    assert [one.startswith(line) for one in errors(ended)] == [True], ended.output
    assert f"killed a process on {HOST} at the memory limit of this job: ask for more memory" in errors(ended)[0]
    check_goes_on(training, reference, exact=False)

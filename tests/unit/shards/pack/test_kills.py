"""A pack that is killed, shared out in parts, or grows: the same bytes in the end, and one line where it fails."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import error_lines
from support.datasets import assert_reads, stamps
from support.tiles import folder_bytes, write_archive

from shards.__main__ import main
from shards.config import REPOSITORY
from shards.errors import ShardError
from shards.format.manifest import MANIFEST, read_manifest
from shards.pack.build import Part, pack, pack_part
from shards.pack.scan import PackConfig
from shards.read.reader import ShardReader

CONFIG = PackConfig(tiles_per_shard=3)


@pytest.fixture(scope="module")
def slow_archive(tmp_path_factory):
    """Enough tiles of 64 px that a pack can be interrupted in the middle."""
    source = tmp_path_factory.mktemp("slow")
    write_archive(source, 64, {f"{i:07d}": ("00001", "00002") for i in range(9)})
    return source


def _start(source, dest):
    options = ["--tiles-per-shard", "2", "--workers", "2"]
    return subprocess.Popen(
        [sys.executable, "-m", "shards", "pack", str(source), str(dest), *options],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.005)
    return found


def _end_group(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _running_in_group(group):
    """Processes of a group that are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state != "Z":
                found.append(int(path.parent.name))
    return found


def test_kill_9_at_any_moment_and_a_rerun_give_the_bytes_of_an_uninterrupted_run(slow_archive, tmp_path):
    dest, rng, unfinished = tmp_path / "killed", random.Random(0), 0
    for finished in (0, 1, 4):
        process = _start(slow_archive, dest)
        try:
            assert _wait_for(lambda dest=dest: any(dest.glob("*.tar*")), 20)
            _wait_for(lambda want=finished: len(list(dest.glob("*.index.json"))) >= want, 20)
            time.sleep(rng.uniform(0, 0.1))
        finally:
            _end_group(process)
        unfinished += not (dest / MANIFEST).exists()
    assert unfinished
    for folder in (dest, tmp_path / "whole"):
        pack(slow_archive, folder, PackConfig(tiles_per_shard=2))
    assert folder_bytes(dest) == folder_bytes(tmp_path / "whole")


@pytest.mark.nightly
def test_kill_9_at_fifty_random_moments_gives_the_bytes_of_an_uninterrupted_run(slow_archive, tmp_path):
    """A third of the kills come while pack is starting or scanning, the others at any time of a whole run."""
    rng, unfinished, kills = random.Random(1), 0, 0
    pack(slow_archive, tmp_path / "whole", PackConfig(tiles_per_shard=2))
    while kills < 50:
        dest = tmp_path / f"killed-{kills}"
        for _ in range(rng.randint(1, 4)):
            process = _start(slow_archive, dest)
            try:
                if rng.random() < 0.67:
                    _wait_for(lambda dest=dest: any(dest.glob("*.tar*")), 20)
                time.sleep(rng.uniform(0, 1.2))
            finally:
                _end_group(process)
            kills += 1
            unfinished += not (dest / MANIFEST).exists()
        pack(slow_archive, dest, PackConfig(tiles_per_shard=2), workers=2)
        assert folder_bytes(dest) == folder_bytes(tmp_path / "whole")
        shutil.rmtree(dest)
    assert unfinished > 25


def test_a_full_disk_is_one_line_and_the_next_run_finishes(slow_archive, tmp_path):
    """A limit on file sizes stands for the full disk: writing ends in an OSError in the middle of a shard."""
    dest = tmp_path / "shards"
    command = [sys.executable, "-m", "shards", "pack", str(slow_archive), str(dest), "--tiles-per-shard", "2"]
    limited = f"ulimit -f 1000; exec {' '.join(command)} --workers 1"
    done = subprocess.run(["bash", "-c", limited], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = error_lines(done.stderr)
    assert "File too large" in line and "finished shards are kept" in line
    assert "Traceback" not in done.stderr
    assert not list(dest.glob("*.tar")) and not list(dest.glob("*.tmp"))
    for folder in (dest, tmp_path / "whole"):
        pack(slow_archive, folder, PackConfig(tiles_per_shard=2))
    assert folder_bytes(dest) == folder_bytes(tmp_path / "whole")


@pytest.mark.parametrize("parts", [3, *(pytest.param(parts, marks=pytest.mark.nightly) for parts in (2, 7))])
def test_parts_at_the_same_time_and_a_merge_make_the_same_bytes(archive, packed, tmp_path, parts):
    dest = tmp_path / "shards"
    command = [sys.executable, "-m", "shards", "pack", str(archive[0]), str(dest), "--tiles-per-shard", "3"]
    running = [
        subprocess.Popen([*command, "--part", f"{number + 1}/{parts}", "--workers", "1"], cwd=REPOSITORY)
        for number in range(min(parts, 3))
    ]
    assert [process.wait() for process in running] == [0] * len(running)
    for number in range(3, parts):
        assert main([*command[3:], "--part", f"{number + 1}/{parts}", "--workers", "1"]) == 0
    assert not (dest / MANIFEST).exists()
    assert main(["merge", str(dest), "--workers", "1"]) == 0
    assert folder_bytes(dest) == folder_bytes(packed)


def test_a_merge_before_all_parts_are_done_names_what_is_missing(archive, tmp_path, capfd):
    pack_part(archive[0], tmp_path / "shards", CONFIG, Part(1, 2))
    assert main(["merge", str(tmp_path / "shards"), "--workers", "1"]) == 2
    (line,) = error_lines(capfd.readouterr().err)
    assert "1 shards are missing, e.g. shard-000001.tar" in line


def test_append_adds_new_shards_and_leaves_the_old_ones_alone(archive, copy, tmp_path):
    before, old = stamps(copy), read_manifest(copy)
    more = write_archive(tmp_path / "more", scenes={"0000017": ("09999",), "7777777": ("00001", "00002")})
    write_archive(tmp_path / "more", scenes={"0000231": ("00003",)})  # is there already
    result = pack(tmp_path / "more", copy, CONFIG, append=True)
    assert (result.written, result.manifest.tiles, result.manifest.generations) == (1, 13, 2)
    assert result.manifest.content_hash != old.content_hash
    assert {name: stamp for name, stamp in stamps(copy).items() if name.startswith("shard-00000[012]")} == {
        name: stamp for name, stamp in before.items() if name.startswith("shard-00000[012]")
    }
    reader = ShardReader(copy)
    assert_reads(reader, archive[1] | more)
    grown = reader.table[reader.table["location"] == b"0000017"]
    assert len(set(grown["location_id"])) == 1 and len(grown) == 3
    assert pack(tmp_path / "more", copy, CONFIG, append=True).written == 0
    with pytest.raises(ShardError, match="nothing to append to"):
        pack(tmp_path / "more", tmp_path / "new", CONFIG, append=True)


def test_an_append_that_was_killed_is_finished_by_the_same_command(copy, tmp_path):
    write_archive(tmp_path / "more", scenes={f"{i:07d}": ("00001",) for i in range(8)})
    whole = Path(shutil.copytree(copy, tmp_path / "whole"))
    pack(tmp_path / "more", whole, CONFIG, append=True)
    pack_part(tmp_path / "more", copy, CONFIG, Part(1, 2), append=True)  # killed before the other half
    assert len(ShardReader(copy)) == 10  # readers still see what was there before
    pack(tmp_path / "more", copy, CONFIG, append=True)
    assert folder_bytes(copy) == folder_bytes(whole)


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(archive, tmp_path, capsys):
    assert main(["pack", str(archive[0]), str(tmp_path / "shards"), "--dry-run", "--tiles-per-shard", "3"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("10 tiles of 6 locations -> 3 shards, 0.00 GB")
    assert "compact" in text
    assert not (tmp_path / "shards").exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see other processes")
def test_workers_end_with_the_process_that_started_them(slow_archive, tmp_path):
    process = _start(slow_archive, tmp_path / "shards")
    try:
        assert _wait_for(lambda: any((tmp_path / "shards").glob("*.tar*")), 60)
        process.kill()
        process.wait()
        _wait_for(lambda: not _running_in_group(process.pid), 2)
        assert _running_in_group(process.pid) == []
    finally:
        _end_group(process)


def test_a_killed_worker_is_one_line_and_exit_code_1(slow_archive, tmp_path):
    dest = tmp_path / "shards"
    process = _start(slow_archive, dest)
    try:
        unfinished = _wait_for(lambda: list(dest.glob("*.tar.*.tmp")), 60)
        os.kill(int(unfinished[0].name.split(".")[-3]), signal.SIGKILL)
        stderr = process.communicate(timeout=120)[1]
    finally:
        _end_group(process)
    assert process.returncode == 1
    assert len(error_lines(stderr)) == 1
    assert "Traceback" not in stderr

"""Files to stage, processes that stage them, and checks of the copies."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
from support.processes import REPOSITORY

from shards.files.stage import LOCK

SIZE = 300_000
STORED = [f"shard-{number:06d}.tar" for number in range(12)]
NAMES = STORED[:6]

PROCESS = """
import json, resource, sys
from pathlib import Path
from shards.files import stage
from shards.files.storage import open_storage

url, folder, files, names, quota, limit = json.loads(sys.argv[1])
stage.CHUNK, stage.POLL_S = 1 << 16, 0.05
files = [stage.StagedFile(*file) for file in files]
storage = stage.StagedStorage(open_storage(url), Path(folder), files, quota)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
storage.prefetch(names)
print("started", flush=True)
for line in sys.stdin:
    name, offset, length = json.loads(line)
    data = bytearray(length)
    storage.read_into(name, offset, memoryview(data))
    print(data.hex(), flush=True)
storage.close()
print(json.dumps([storage.staged, storage.read_through, storage.evicted, storage.downloaded_bytes]))
"""


class Process:
    """Another process of the node with its own StagedStorage; it reads on request and returns counts at the end."""

    def __init__(self, url, folder, files, names=NAMES, quota=None, limit=None):
        files = [(file.name, file.size, file.sha256) for file in files]
        asked = json.dumps([url, str(folder), files, list(names), quota, limit])
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-c", PROCESS, asked], cwd=REPOSITORY, text=True, **pipes)
        assert self.process.stdout.readline() == "started\n"

    def read(self, name, offset, length):
        self.process.stdin.write(json.dumps([name, offset, length]) + "\n")
        self.process.stdin.flush()
        return bytes.fromhex(self.process.stdout.readline())

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def end(self):
        """Return (staged, read_through, evicted, downloaded_bytes) and the output on stderr."""
        out, err = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, err
        return tuple(json.loads(out)), err


def until(condition, seconds=20):
    """Wait until a condition holds; fails after some seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.002)


def whole(folder):
    """Return the names without a temporary or lock suffix, sorted."""
    return sorted(name for name in os.listdir(folder) if not name.endswith((".tmp", LOCK)))


def staged(folder, names):
    """Return a condition that holds when the files are complete and no transfer is in progress."""
    return lambda: sorted(os.listdir(folder)) == sorted(names)


def read_range(storage, name, offset, length):
    data = bytearray(length)
    storage.read_into(name, offset, memoryview(data))
    return bytes(data)


def check_reads(storage, origin, count=60, names=NAMES):
    """Compare random ranges with the files of ``origin``."""
    rng = np.random.default_rng(2)
    for _ in range(count):
        name, offset = names[rng.integers(len(names))], int(rng.integers(0, SIZE))
        data = bytearray(int(rng.integers(0, SIZE - offset + 1)))
        storage.read_into(name, offset, memoryview(data))
        assert data == (origin / name).read_bytes()[offset : offset + len(data)]

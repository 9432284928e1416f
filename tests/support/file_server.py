"""A range server in a separate process, for clients that hold the GIL while they wait (GDAL)."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CODE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.range_server import RangeServer
with RangeServer(Path(sys.argv[2])) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder; yield its URL."""
    command = [sys.executable, "-c", _CODE, str(Path(__file__).resolve().parent.parent), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()

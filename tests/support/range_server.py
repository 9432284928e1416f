"""A local HTTP server with byte ranges that fails on demand."""

import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PIECE = 1 << 16


class RangeServer:
    """A context manager that serves a folder; the faults are attributes that can be set at any time.

    Attributes:
        url: URL of the folder.
        requests: number of GET requests for each file, including failed ones.
        sent: number of body bytes sent for each file.
        fail: number of following GET requests to answer with ``status``.
        drop: number of following responses to interrupt by closing the connection.
        short: number of following range responses to send with one byte missing but no error.
        ranges: whether the server supports ranges.
        hold_after: total number of body bytes after which sending waits until ``go`` is set.
        held: set once a request waits.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.fail = self.drop = self.short = 0
        self.status = 503
        self.ranges = True
        self.hold_after: int | None = None
        self.held, self.go = threading.Event(), threading.Event()
        self.lock = threading.Lock()

    def __enter__(self) -> "RangeServer":
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"faults": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self._server.shutdown()
        self._server.server_close()

    def take(self, fault: str) -> bool:
        """Return whether to inject the fault now, and decrement its counter."""
        with self.lock:
            left = getattr(self, fault)
            setattr(self, fault, max(left - 1, 0))
            return left > 0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request, client_address):
        pass  # tests kill clients during responses


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: RangeServer

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        faults, name = self.faults, self.path.lstrip("/")
        if body:
            with faults.lock:
                faults.requests[name] += 1
            if faults.take("fail"):
                return self._refuse(faults.status)
        path = faults.folder / name
        if not path.is_file():
            return self._refuse(404)
        data = path.read_bytes()
        begin, end, status = 0, len(data), 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and faults.ranges:
            begin, end, status = int(wanted[1]), min(int(wanted[2]) + 1, len(data)), 206
            if begin >= len(data):
                return self._refuse(416)
            if faults.take("short"):
                end -= 1
        self.send_response(status)
        self.send_header("Content-Length", str(end - begin))
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        self.end_headers()
        if body:
            self._send(name, data[begin:end])

    def _send(self, name, data):
        faults = self.faults
        stop = len(data) // 2 if faults.take("drop") else len(data)
        for begin in range(0, stop, PIECE):
            if faults.hold_after is not None and faults.sent.total() >= faults.hold_after:
                faults.held.set()
                faults.go.wait()
            piece = data[begin : min(begin + PIECE, stop)]
            self.wfile.write(piece)
            with faults.lock:
                faults.sent[name] += len(piece)
        if stop < len(data):
            self.close_connection = True

    def _refuse(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

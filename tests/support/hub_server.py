"""A local server for the Hugging Face Hub requests that list and read a repository."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


def set_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Set the endpoint as ``HF_ENDPOINT`` does, which is read when huggingface_hub is imported."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


class HubServer:
    """A context manager that serves a folder as one repository.

    Attributes:
        url: value for ``HF_ENDPOINT``.
        requests: number of requests for each path.
        refusal: error code of every response about the repository, such as ``GatedRepo``; "" for none.
    """

    def __init__(self, repository: str, folder: Path) -> None:
        self.repository, self.folder = repository, folder
        self.requests: Counter[str] = Counter()
        self.refusal = ""

    def __enter__(self) -> "HubServer":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests[path] += 1
        about, file = f"/api/models/{self.hub.repository}", f"/{self.hub.repository}/resolve/"
        if path.startswith((about, file)) and self.hub.refusal:
            self._answer(403, b"{}", self.hub.refusal)
        elif path.startswith(file):
            self._send_file(*path.removeprefix(file).split("/", 1))
        elif path in (about, f"{about}/revision/main"):
            self._answer(200, json.dumps({"id": self.hub.repository, "sha": "a" * 40, "siblings": []}).encode())
        elif path.startswith(f"{about}/revision/"):
            self._answer(404, b"{}", "RevisionNotFound")
        elif path == f"{about}/tree/main":
            self._answer(200, json.dumps([self._entry(one) for one in sorted(self.hub.folder.iterdir())]).encode())
        else:
            self._answer(404, b"{}", "RepoNotFound")

    def do_HEAD(self):
        self.do_GET()

    def _entry(self, path):
        return {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "b" * 40}

    def _send_file(self, revision, name):
        path = self.hub.folder / name
        if revision == "main" and path.is_file():
            self._answer(200, path.read_bytes())
        else:
            self._answer(404, b"", "EntryNotFound")

    def _answer(self, status, body, error=""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

"""Commands and webhooks that are told of a run's events."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pretrain.resilience import notify as module
from pretrain.resilience.notify import notify
from pretrain.resilience.run_folder import RunFolder
from pretrain.resilience.status import RunRecord

RECORD = RunRecord("failed", step=400, steps=1000, host="n01", job="7")


def test_a_command_gets_every_event_of_a_run_as_json(tmp_path: Path) -> None:
    run = RunFolder(
        tmp_path / "vit l", notify_target=f"tee -a '{tmp_path}/events' >/dev/null; echo >> '{tmp_path}/events'"
    )
    run.write_status("running", 3, 10, 24)
    run.record_restarts(1, "n02: task 5: killed; 7 steps lost")
    RunFolder(run.path, leader=run.record, notify_target=f"cat >> '{tmp_path}/events'").end("failed", "disk full")
    run.end("failed", "lost another rank")  # its end is recorded already
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [event["event"] for event in events] == ["restarted", "failed"]
    assert events[0]["text"] == "vit l restarted at step 3 of 10: n02: task 5: killed; 7 steps lost"
    assert events[1] | {"host": ""} == {
        "event": "failed",
        "text": "vit l failed at step 3 of 10: disk full",
        "run": str(tmp_path / "vit l"),
        "step": 3,
        "steps": 10,
        "host": "",
        "job": "",
    }


def test_a_webhook_gets_a_post(tmp_path: Path) -> None:
    bodies: list[dict] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/json"
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.handle_request).start()
        notify(f"http://127.0.0.1:{server.server_port}/hook", "complete", tmp_path, RECORD)
    assert [body["text"] for body in bodies] == [f"{tmp_path.name} complete at step 400 of 1000"]


@pytest.mark.parametrize("target", ["exit 3", "sleep 5", "http://127.0.0.1:1/hook?secret", "http://"])
def test_a_notification_that_fails_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    monkeypatch.setattr(module, "LIMIT_S", 0.2)
    notify(target, "failed", tmp_path, RECORD)
    error = capsys.readouterr().err
    assert error.startswith(f"warning: run.notify: {target.split('?')[0]}: ") and error.count("\n") == 1
    assert "secret" not in error

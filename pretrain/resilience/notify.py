"""Notifications of a run's events to a command or webhook of the user's: ``run.notify``.

A command gets the event as JSON on standard input, and a webhook in the body of a POST request::

    {"event": "failed", "text": "vit-l failed at step 400 of 10000: n03: task 5: killed", "run": "/lustre/runs/vit-l",
     "step": 400, "steps": 10000, "host": "n01", "job": "1234"}
"""

import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Literal

from pretrain.resilience.status import RunRecord
from shards.console import get_logger

Event = Literal["restarted", "stopped", "interrupted", "complete", "failed"]
LIMIT_S = 5.0
"""Time limit of a notification, which a failing rank waits for."""

logger = get_logger(__name__)


def notify(target: str | None, event: Event, folder: Path, record: RunRecord, detail: str = "") -> None:
    """Notify the user of an event; errors are one warning.

    Args:
        target: shell command, or http(s) URL; None for nothing.
        detail: one line on the event, such as the reason of a failure.
    """
    if target is None:
        return
    text = f"{folder.name} {event} at step {record.step} of {record.steps}" + (f": {detail}" if detail else "")
    values = {"event": event, "text": text, "run": str(folder.absolute())}
    values |= {name: getattr(record, name) for name in ("step", "steps", "host", "job")}
    body = json.dumps(values).encode()
    try:
        if target.startswith(("http://", "https://")):
            request = urllib.request.Request(target, body, {"Content-Type": "application/json"})
            urllib.request.urlopen(request, timeout=LIMIT_S).close()
        else:
            subprocess.run(target, shell=True, input=body, timeout=LIMIT_S, check=True)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = str(error).removeprefix(f"Command '{target}' ")
        logger.warning(f"run.notify: {target.split('?')[0]}: {reason}; the user is not notified that the run {event}")

"""Storage that is away for a while: repeated reads, messages, and what is not tried again."""

import errno
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.staging import STORED, read_range

from shards.errors import ShardError, UnreachableError
from shards.files import patience
from shards.files.patience import LONGEST_PAUSE_S, PATIENCE_S, PAUSE_S
from shards.files.storage import LocalStorage


@pytest.mark.parametrize(("fault", "status"), [("fail", 503), ("fail", 429), ("fail", 500), ("drop", 0), ("short", 0)])
def test_what_may_pass_is_tried_again(origin, server, remote, pauses, fault, status):
    server.status = status
    setattr(server, fault, 3)
    assert read_range(remote, STORED[0], 1000, 5000) == (origin / STORED[0]).read_bytes()[1000:6000]
    assert server.requests[STORED[0]] == 4
    _check_pauses(pauses, 3)


def _check_pauses(pauses, count):
    """Full jitter: anywhere from nothing to a bound that doubles up to a cap."""
    assert len(pauses) == count
    assert all(0 <= pause <= min(PAUSE_S * 2**k, LONGEST_PAUSE_S) for k, pause in enumerate(pauses))


def test_after_minutes_the_error_says_what_happened(server, remote, pauses):
    server.fail = 1000
    with pytest.raises(UnreachableError) as raised:
        read_range(remote, STORED[0], 1234, 10)
    attempts = server.requests[STORED[0]]
    assert re.fullmatch(
        rf"{server.url}/{STORED[0]}: can't be read at offset 1234: {attempts} attempts in \d+ s, the last one: "
        "HTTP 503 Service Unavailable; check the network and the server, and run the command again",
        str(raised.value),
    )
    assert PATIENCE_S <= sum(pauses) < PATIENCE_S + LONGEST_PAUSE_S
    _check_pauses(pauses, attempts - 1)
    again = []
    remote._patience.sleep = again.append
    with pytest.raises(UnreachableError):
        read_range(remote, STORED[0], 1234, 10)
    assert again != pauses


def test_an_outage_is_told_once_and_its_end_once(origin, server, remote, capsys):
    """Eight threads wait for one server that is away for a while."""
    lock, slept = threading.Lock(), []

    def sleep(pause):
        with lock:
            slept.append(pause)
            if len(slept) > 120:
                server.fail = 0

    remote._patience.sleep, server.fail = sleep, 10**6
    with ThreadPoolExecutor(8) as pool:
        for data in pool.map(lambda number: read_range(remote, STORED[number], 0, 10), range(8)):
            assert len(data) == 10
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2, lines
    assert re.search(r"no answer for \d+ s \(HTTP 503 .*\); retrying for 600 s", lines[0])
    assert lines[1].startswith(f"warning: {server.url}: answers again")


PASSING = [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN]


@pytest.mark.parametrize("number", PASSING)
def test_a_file_system_that_is_away_for_a_while_is_asked_again(origin, monkeypatch, number):
    source, preadv, failures = LocalStorage(origin), os.preadv, iter(range(6))

    def failing(*arguments):
        if next(failures, None) is not None:
            raise OSError(number, os.strerror(number))
        return preadv(*arguments)

    monkeypatch.setattr(source._patience, "sleep", lambda pause: None)
    monkeypatch.setattr(os, "preadv", failing)
    assert read_range(source, STORED[0], 3, 100) == (origin / STORED[0]).read_bytes()[3:103]


@pytest.mark.parametrize(
    ("number", "kind"), [*((one, UnreachableError) for one in PASSING), (errno.EACCES, UnreachableError)]
)
def test_a_file_system_that_stays_away_says_nothing_of_the_file(origin, monkeypatch, number, kind):
    source = LocalStorage(origin)

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(source._patience, "sleep", lambda pause: None)
    monkeypatch.setattr(patience, "PAUSE_S", 1e3)
    monkeypatch.setattr(patience, "LONGEST_PAUSE_S", 1e3)
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(kind, match=re.escape(f"{origin / STORED[0]}: can't be read: ")):
        read_range(source, STORED[0], 3, 100)


@pytest.mark.parametrize("status", [400, 401, 403])
def test_what_will_not_pass_is_not_tried_again(server, remote, pauses, status):
    server.fail, server.status = 1000, status
    with pytest.raises(ShardError, match=f"can't be read at offset 5: HTTP {status} .*; check the URL and the cred"):
        read_range(remote, STORED[0], 5, 10)
    assert server.requests[STORED[0]] == 1 and not pauses

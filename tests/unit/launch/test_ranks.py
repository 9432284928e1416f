"""The interface of a rank's network."""

import socket
from types import SimpleNamespace

import psutil
import pytest

from launch.ranks import interface_towards


def test_a_rank_listens_on_the_interface_towards_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = {"lo": "127.0.0.1", "ib0": "10.99.0.2", "eth0": "192.0.2.7"}
    found = {name: [SimpleNamespace(address=address)] for name, address in addresses.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: None)
    for name, own in addresses.items():
        monkeypatch.setattr(socket.socket, "getsockname", lambda _, own=own: (own, 1))
        assert interface_towards("192.0.2.1") == ("" if name == "lo" else name)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "no-such-host.invalid"])
def test_without_a_way_to_another_machine_no_interface_is_chosen(host: str) -> None:
    assert interface_towards(host) == ""

"""Hosts on this machine: network namespaces on a bridge, each with its own address, host name, /etc/hosts and /tmp.

The file system is the same on all hosts otherwise, as on a cluster. Links can be cut: packets are then lost without an
error, as behind a failed switch. Clocks, interfaces and mounts of a host can differ from the others'.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

ENTER = """\
hostname "$1"; mount --make-rprivate /; mount --bind "$2" /etc/hosts
shift 2
mount -t tmpfs tmpfs /mnt # keeps the shared folders of /tmp at hand
number=0; folders=()
while [ "$1" != -- ]; do
    mkdir "/mnt/$number"; mount --bind "$1" "/mnt/$number"
    folders+=("$1"); number=$((number + 1)); shift
done
shift
mount -t tmpfs -o "size=$1" tmpfs /tmp
shift
for number in "${!folders[@]}"; do
    mkdir -p "${folders[number]}"; mount --bind "/mnt/$number" "${folders[number]}"
done
while [ "$1" != -- ]; do mount -t tmpfs tmpfs "$1"; shift; done # hides a folder
shift
cd /
exec "$@"
"""
CLOCK = Path(__file__).with_name("clock.c")


class Hosts:
    """Some hosts named h1, h2, ... in a network with this machine.

    Args:
        folder: folder for their files.
        count: number of hosts.
        shared: folders of /tmp that all hosts see.

    Attributes:
        names: of the hosts.
        gateway: address of this machine.
        folder: of their files.
    """

    def __init__(self, folder: Path, count: int, shared: Iterable[Path]) -> None:
        for program in ("ip", "unshare", "nsenter", "mount"):
            if shutil.which(program) is None:
                pytest.skip(f"{program} is not installed (apt install iproute2 util-linux)")
        if os.geteuid() != 0:
            pytest.skip("network namespaces need root")
        self.names = [f"h{number}" for number in range(1, count + 1)]
        self._id, self._net = f"sf{os.getpid() % 100000}", f"10.231.{os.getpid() % 256}"
        self.gateway = f"{self._net}.254"
        self._shared = [str(path) for path in shared if path.is_relative_to("/tmp")]
        self.folder = folder
        self._processes: list[subprocess.Popen] = []

    def __enter__(self) -> "Hosts":
        done = subprocess.run(["ip", "link", "add", self._id, "type", "bridge"], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"network namespaces are not allowed here: {done.stderr.strip()}")
        ip("address", "add", f"{self.gateway}/24", "dev", self._id)
        ip("link", "set", self._id, "up")
        for name in self.names:
            space, link = self._space(name), self._link(name)
            ip("netns", "add", space)
            ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", link, "master", self._id, "up")
            ip("-n", space, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            with suppress(psutil.Error):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()
            process.wait()
        for name in self.names:  # namespaces are taken down later, with the ends of links in them
            for words in (["link", "delete", self._link(name)], ["netns", "delete", self._space(name)]):
                subprocess.run(["ip", *words], capture_output=True)
        subprocess.run(["ip", "link", "delete", self._id], capture_output=True)

    def address(self, name: str) -> str:
        return f"{self._net}.{name[1:]}"

    def name_addresses(self, **others: str) -> Path:
        """Write an /etc/hosts with the address of every host, but other ones for some; return its path."""
        addresses = {name: self.address(name) for name in self.names} | others
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in addresses.items())]
        path = self.folder / "-".join(["hosts", *others])
        path.write_text("\n".join(lines) + "\n")
        return path

    def start(
        self,
        name: str,
        command: Sequence[object],
        log: Path,
        environment: Mapping[str, str],
        names: Path | None = None,
        ahead: int = 0,
        hidden: Sequence[Path] = (),
        disk: str = "50%",
    ) -> subprocess.Popen:
        """Start a command on a host, with its output in a file.

        Args:
            names: its /etc/hosts; by default every host has its own address.
            ahead: seconds that its wall clock is ahead of the file system's; the monotonic clock is right.
            hidden: folders that are empty there: their file system is not mounted.
            disk: size of its /tmp, for tmpfs.
        """
        if ahead:
            command = ["env", f"LD_PRELOAD={self._clock()}", f"CLOCK_AHEAD={ahead}", *command]
        space = f"--net=/var/run/netns/{self._space(name)}"
        enter = ["nsenter", space, "unshare", "--uts", "--mount", "bash", "-c", ENTER, "bash", name]
        words = [*enter, names or self.name_addresses(), *self._shared, "--", disk, *hidden, "--", *command]
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [str(word) for word in words], env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT
            )
        self._processes.append(process)
        return process

    def cut(self, name: str) -> None:
        """Cut the link of a host: its packets, and those to it, are lost."""
        ip("link", "set", self._link(name), "nomaster")

    def mend(self, name: str) -> None:
        ip("link", "set", self._link(name), "master", self._id)

    def add_interface(self, name: str, address: str) -> None:
        """Give a host another interface, first in its routing table, which leads nowhere."""
        space, link = self._space(name), f"{self._link(name)}x"
        ip("link", "add", link, "type", "veth", "peer", "name", "ib0", "netns", space)
        ip("link", "set", link, "up")
        ip("-n", space, "address", "add", f"{address}/24", "dev", "ib0")
        ip("-n", space, "link", "set", "ib0", "up")
        ip("-n", space, "route", "add", "default", "dev", "ib0")

    def _clock(self) -> Path:
        """Return the library that moves the wall clock of a process."""
        library = self.folder / "clock.so"
        if not library.exists():
            if shutil.which("cc") is None:
                pytest.skip("another clock needs a C compiler (apt install gcc)")
            subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-o", library, CLOCK, "-ldl"], check=True)
        return library

    def _space(self, name: str) -> str:
        return f"{self._id}{name}"

    def _link(self, name: str) -> str:
        return f"{self._id}{name}"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)

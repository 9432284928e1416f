"""A real Slurm cluster on one machine: munged, slurmctld and a slurmd for each node, with a separate configuration.

Its nodes share this machine's name, address and /tmp, or are `Hosts` with their own.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from support.hosts import Hosts
from support.processes import free_port

CONFIG = """\
ClusterName=test
SlurmctldHost={host}({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmctldPort={control}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdTimeout={timeout}
KillWait=10
MinJobAge=600
JobRequeue=1
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
PreemptMode=REQUEUE
PreemptType=preempt/partition_prio
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr={address} Port={port} CPUs=8 RealMemory=4000 Feature=cpu"


class SlurmCluster:
    """A cluster of nodes n1, n2, ... with eight CPUs each and the partitions low (default, preemptible) and high.

    Args:
        folder: folder for all files of the daemons; its path must be short enough for a socket.
        nodes: number of nodes.
        timeout: seconds after which a node that does not answer is down.
        hosts: the nodes, instead of n1, n2, ...; they see ``folder``.
    """

    def __init__(self, folder: Path, nodes: int = 2, timeout: int = 60, hosts: Hosts | None = None) -> None:
        for name in ("slurmctld", "slurmd", "munged", "mungekey", "sbatch"):
            if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None:
                pytest.skip(f"Slurm is not installed: {name} is missing (apt install slurm-wlm munge)")
        if os.geteuid() != 0:
            pytest.skip("Slurm's daemons need root")
        self.folder, self._daemons = folder, []
        self.nodes = hosts.names if hosts else [f"n{number}" for number in range(1, nodes + 1)]
        self._slurmd: dict[str, subprocess.Popen] = {}
        self._hosts = hosts
        host, address = socket.gethostname().split(".")[0], hosts.gateway if hosts else "127.0.0.1"
        places = [(name, hosts.address(name)) if hosts else (host, address) for name in self.nodes]
        lines = [
            NODE.format(name=name, host=host, address=address, port=free_port())
            for name, (host, address) in zip(self.nodes, places, strict=True)
        ]
        (folder / "state").mkdir()
        self.config = folder / "slurm.conf"
        self.config.write_text(
            CONFIG.format(
                host=host,
                address=address,
                folder=folder,
                control=free_port(),
                timeout=timeout,
                nodes="\n".join(lines),
            )
        )
        self.environment = os.environ | {"SLURM_CONF": str(self.config), "PATH": f"{os.environ['PATH']}:/usr/sbin"}

    def __enter__(self) -> "SlurmCluster":
        self._start_munge()
        self._start("slurmctld", "-D", "-f", str(self.config))
        for node in self.nodes:
            self.start_node(node)
        self.wait_until(lambda: set(self.run("sinfo", "-h", "-o", "%T").split()) == {"idle"}, 60)
        return self

    def start_node(self, node: str) -> None:
        """Start a node's slurmd, also after `kill_node`."""
        command = ["slurmd", "-D", "-N", node, "-f", str(self.config)]
        if self._hosts is None:
            self._slurmd[node] = self._start(*command)
        else:
            log = self.folder / f"slurmd-{node}.out"
            self._slurmd[node] = self._hosts.start(node, command, log, self.environment, disk="64m")
            self._daemons.append(self._slurmd[node])

    def kill_node(self, node: str) -> None:
        """Kill a node as a power failure does: its slurmd and everything that it has started."""
        slurmd = psutil.Process(self._slurmd[node].pid)
        victims = [slurmd, *slurmd.children(recursive=True)]
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SLURMD_NODENAME") == node and self._is_mine(process):
                    victims += [process, *(parent for parent in process.parents() if parent.name() == "slurmstepd")]
        for process in victims:
            with suppress(psutil.Error):
                process.kill()

    def __exit__(self, *_: object) -> None:
        subprocess.run(["scancel", "--user=root"], env=self.environment, capture_output=True)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def _is_mine(self, process: psutil.Process) -> bool:
        return process.environ().get("SLURM_CONF") == str(self.config)

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout

    def state(self, job: str) -> str:
        """Return the state of a job or array element: PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, ..."""
        return self.field(job, "JobState")

    def field(self, job: str, name: str) -> str:
        words = self.run("scontrol", "show", "job", job, "-o").split()
        return next((word.removeprefix(f"{name}=") for word in words if word.startswith(f"{name}=")), "")

    def release(self, job: str) -> None:
        """Start a requeued job in two seconds instead of two minutes (nodes reject one that starts immediately)."""
        time.sleep(2)
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def wait_until(self, ready: Callable[[], bool], seconds: float, story: Callable[[], str] = str) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, f"{story()}\n{self.log()}"
            time.sleep(0.2)

    def wait_for(self, job: str, *states: str, seconds: float = 120, story: Callable[[], str] = str) -> None:
        """Wait until a job is in one of the states."""
        self.wait_until(
            lambda: self.state(job) in states, seconds, lambda: f"{job} is {self.state(job)}, not {states}\n{story()}"
        )

    def log(self) -> str:
        path = self.folder / "slurmctld.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-40:]) if path.exists() else "no slurmctld.log"

    def _start_munge(self) -> None:
        key, socket_path = self.folder / "munge.key", self.folder / "munge.socket"
        subprocess.run(["mungekey", "--create", f"--keyfile={key}"], env=self.environment, check=True)
        self._start(
            "munged",
            "--foreground",
            "--force",
            f"--key-file={key}",
            f"--socket={socket_path}",
            f"--pid-file={self.folder / 'munged.pid'}",
            f"--log-file={self.folder / 'munged.log'}",
            f"--seed-file={self.folder / 'munged.seed'}",
        )
        self.wait_until(socket_path.exists, 20)

    def _start(self, *command: str) -> subprocess.Popen:
        log = open(self.folder / f"{command[0]}-{len(self._daemons)}.out", "wb")
        self._daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT))
        return self._daemons[-1]

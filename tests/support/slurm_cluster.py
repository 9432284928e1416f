"""A real Slurm cluster on one machine: munged, slurmctld and two slurmd, with a separate configuration."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import free_port

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmctldPort={control}
SlurmdPort={node1}
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
SlurmdTimeout=60
KillWait=10
MinJobAge=600
JobRequeue=1
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
PreemptMode=REQUEUE
PreemptType=preempt/partition_prio
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node1} CPUs=8 RealMemory=4000 Feature=cpu State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={node2} CPUs=8 RealMemory=4000 Feature=cpu State=UNKNOWN
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


class SlurmCluster:
    """A cluster of two nodes with eight CPUs each and the partitions low (default, preemptible) and high.

    Args:
        folder: folder for all files of the daemons; its path must be short enough for a socket.
    """

    def __init__(self, folder: Path) -> None:
        for name in ("slurmctld", "slurmd", "munged", "mungekey", "sbatch"):
            if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None:
                pytest.skip(f"Slurm is not installed: {name} is missing (apt install slurm-wlm munge)")
        if os.geteuid() != 0:
            pytest.skip("Slurm's daemons need root")
        self.folder, self._daemons = folder, []
        host = socket.gethostname().split(".")[0]
        ports = {"control": free_port(), "node1": free_port(), "node2": free_port()}
        (folder / "state").mkdir()
        self.config = folder / "slurm.conf"
        self.config.write_text(CONFIG.format(host=host, folder=folder, **ports))
        self.environment = os.environ | {"SLURM_CONF": str(self.config), "PATH": f"{os.environ['PATH']}:/usr/sbin"}

    def __enter__(self) -> "SlurmCluster":
        self._start_munge()
        self._start("slurmctld", "-D", "-f", str(self.config))
        for node in ("n1", "n2"):
            self._start("slurmd", "-D", "-N", node, "-f", str(self.config))
        self.wait_until(lambda: self.run("sinfo", "-h", "-o", "%T").split() in (["idle"], ["idle", "idle"]), 60)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["scancel", "--user=root"], env=self.environment, capture_output=True)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()

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

    def _start(self, *command: str) -> None:
        log = open(self.folder / f"{command[0]}-{len(self._daemons)}.out", "wb")
        self._daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT))

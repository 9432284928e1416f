"""Doctor checks on two ranks, the second of which fails: run `python doctor_ranks.py` as each rank."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from datetime import timedelta

import torch.distributed as dist

from launch.doctor import network
from launch.doctor.__main__ import _report_late
from launch.doctor.cluster import Cluster
from launch.doctor.limit import time_limit
from launch.doctor.table import Printer


def fail_on_second(rank: int) -> int:
    if rank == 1:
        raise PermissionError(13, "Permission denied", "/data")
    return rank


def main() -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    cluster = Cluster(None)  # type: ignore[arg-type]  # the checks below need no config
    show = Printer(cluster.rank == 0, verbose=False)
    answers = cluster.everywhere(lambda: fail_on_second(cluster.rank))
    show.line(f"failure: {cluster.failure(answers)}")
    show("clocks", network.check_clocks(cluster))
    network.SIZES_MIB["cpu"] = (1, 2)
    show("bandwidth", network.check_bandwidth(cluster))
    with time_limit(1.5, lambda: _report_late(cluster, "shards", show)):
        cluster.everywhere(lambda: time.sleep(60 * cluster.rank))


if __name__ == "__main__":
    main()

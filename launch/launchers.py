"""How a job starts its ranks: plain srun, torchrun, or the deepspeed command.

With each launcher, a signal to the tasks reaches the ranks, which save; status.json in the run folder records the end.
"""

import argparse
import os
from dataclasses import dataclass

from shards.errors import ConfigError

EXPORTED = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")
"""Prefixes of the variables that DeepSpeed passes to `srun --export` as a comma-separated list."""

SRUN = """\
# Plain srun, one task per device: signals reach the tasks, and one that dies takes the others with it.
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \\
    "${python[@]}" @root/launch/@program.py --config "$config" "${words[@]}"
"""
TORCHRUN = """\
# One torchrun agent per node. launch/agent.py adds the node's own address, and has the agent pass signals on.
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \\
    "${python[@]}" @root/launch/agent.py torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node=@processes \\
    --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" --rdzv-id="$SLURM_JOB_ID" \\
    --max-restarts=@max_restarts --shutdown-timeout=@shutdown_seconds \\
    @root/launch/@program.py --config "$config" "${words[@]}"
"""
SUPERVISED = """\
# Ranks run on good nodes of the allocation, and start again there when a rank or a node fails: see docs/clusters.md.
"${python[@]}" @root/launch/supervise.py --run "$run" --nodes @counts --tasks-per-node @processes --gpus @gpus \\
    --signal-seconds @signal_seconds -- \\
    "${python[@]}" @root/launch/@program.py --config "$config" "${words[@]}"
"""
HOSTFILE = """\
hostfile=@folder/"hostfile-$job"
scontrol show hostnames "$SLURM_JOB_NODELIST" | sed 's/$/ slots=@processes/' >"$hostfile"
"""
DEEPSPEED = f"""\
# DeepSpeed has srun start one task per slot of the hostfile; nothing is reached by ssh.
if cut=$(env | grep -m 1 -E '^({"|".join(EXPORTED)})[^=]*=.*,'); then
    echo "error: --launcher deepspeed: srun --export would cut ${{cut%%=*}} at its comma: use another launcher" >&2
    exit 2
fi
{HOSTFILE}\
"${{python[@]}}" -m deepspeed.launcher.runner --launcher slurm --force_multi --no_ssh_check --log_level warning \\
    --hostfile "$hostfile" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" \\
    --launcher_args "--kill-on-bad-exit=1 --cpus-per-task=${{SLURM_CPUS_PER_TASK:-1}}" \\
    @root/launch/@program.py --config "$config" "${{words[@]}}"
"""
DEEPSPEED_HOSTFILE = f"""\
# One deepspeed command per node, without ssh. launch/agent.py adds the node's rank, and passes signals on to its ranks.
{HOSTFILE}\
srun --kill-on-bad-exit=1 --cpus-per-task="${{SLURM_CPUS_PER_TASK:-1}}" \\
    "${{python[@]}}" @root/launch/agent.py deepspeed --no_ssh --log_level warning \\
    --hostfile "$hostfile" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" \\
    @root/launch/@program.py --config "$config" "${{words[@]}}"
"""


@dataclass(frozen=True)
class Launcher:
    """A way to start the ranks of a job.

    Attributes:
        command: the part of the job script that starts the ranks.
        one_task_per_node: whether Slurm starts one task per node, which starts the ranks, or one task per rank.
    """

    command: str
    one_task_per_node: bool


LAUNCHERS = {
    "srun": Launcher(SRUN, one_task_per_node=False),
    "torchrun": Launcher(TORCHRUN, one_task_per_node=True),
    "deepspeed": Launcher(DEEPSPEED, one_task_per_node=False),
    "deepspeed-hostfile": Launcher(DEEPSPEED_HOSTFILE, one_task_per_node=True),
}


def check_launcher(arguments: argparse.Namespace, root: str, host: str) -> None:
    """Raise ConfigError, in one line, for options that the launcher does not support."""
    name = arguments.launcher
    if arguments.max_restarts and name != "torchrun":
        raise ConfigError(
            f"--max-restarts {arguments.max_restarts}: {name} restarts no ranks within a job: add --launcher torchrun, "
            "or use --retry-failures, which requeues the job"
        )
    if (arguments.spares or arguments.min_nodes) and name != "srun":
        option = "--spares" if arguments.spares else "--min-nodes"
        raise ConfigError(f"{option}: restarts within the job need --launcher srun, not {name}")
    if name == "deepspeed":
        exported = {key: value for key, value in os.environ.items() if key.startswith(EXPORTED)}
        for key, value in (exported | {"PYTHONPATH": f"{host}:{root}:{exported.get('PYTHONPATH', '')}"}).items():
            if "," in value:
                raise ConfigError(
                    f"--launcher deepspeed: {key}={value}: DeepSpeed hands it to srun --export, which cuts it at the "
                    "comma: use --launcher srun, torchrun or deepspeed-hostfile"
                )

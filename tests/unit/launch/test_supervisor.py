"""Restarts within a job, without Slurm: decisions, output of its commands, and whole jobs with stand-ins for them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.job_configs import refused
from support.processes import REPOSITORY

from launch.node_check import find_problem
from launch.slurm import main
from launch.supervisor import allocation
from launch.supervisor.allocation import Allocation, parse_nodes
from launch.supervisor.decide import StepEnd, TaskExit, choose_nodes, final_code, find_cause, parse_exit
from pretrain.resilience.restarts import Restart, append_restart, name_nodes, read_restarts
from pretrain.resilience.status import RunRecord
from shards.errors import ConfigError

NODES = ["n1", "n2", "n3", "n4"]
LOST = RunRecord("failed", reason="rank 0 on n1: lost another rank, or never connected to it: reset; see its output")


def failed(reason: str) -> RunRecord:
    return RunRecord("failed", reason=reason)


# ---- what ended an attempt ----


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("srun: error: n2: task 1: Killed\n", TaskExit("n2", "1", "Killed")),
        ("srun: error: gpu-07: tasks 8-11,14: Killed", TaskExit("gpu-07", "8-11,14", "Killed")),
        ("srun: error: Node failure on n2", None),
        ("error: rank 1: task 1: Killed", None),
    ],
)  # fmt: skip
def test_lines_of_srun_on_tasks_are_read(line: str, expected: TaskExit | None) -> None:
    assert parse_exit(line) == expected


def test_a_task_that_a_signal_ended_is_the_cause_and_not_those_that_lost_it() -> None:
    end = StepEnd(137, [TaskExit("n2", "5", "Killed"), TaskExit("n1", "0-3", "Exited with exit code 1")])
    cause = find_cause(end, LOST, NODES[:2], 4)
    assert (cause.hosts, cause.why) == (("n2",), "task 5: killed")


def test_a_node_that_slurm_lost_is_the_cause_whatever_the_ranks_say() -> None:
    end = StepEnd(1, [TaskExit("n1", "0", "Exited with exit code 1")], {"n2": "Slurm says DOWN (Not responding)"})
    assert str(find_cause(end, LOST, NODES[:2], 1)) == "n2: Slurm says DOWN (Not responding)"


def test_a_node_that_never_ended_while_the_others_lost_it_is_the_cause() -> None:
    end = StepEnd(1, [TaskExit(node, "0", "Exited with exit code 1") for node in ("n1", "n3")])
    assert find_cause(end, LOST, NODES[:3], 1).hosts == ("n2",)


@pytest.mark.parametrize("named", ["rank 5, 6", "rank 5 on n2, 6 on n2"])
@pytest.mark.parametrize("what", ["is late", "does not answer: stopped, dead or disconnected"])
def test_ranks_that_a_hung_run_waits_for_are_on_the_node_to_blame(named: str, what: str) -> None:
    reason = f"hung: no progress within watchdog.step = 900 s: {named} {what}; stacks in RUN"
    end = StepEnd(77, [TaskExit("n1", "0-3", "Exited with exit code 77")])
    assert find_cause(end, failed(reason), NODES[:2], 4).hosts == ("n2",)


def test_a_rank_that_says_why_it_failed_names_its_node() -> None:
    end = StepEnd(1, [TaskExit("n1", "0-3", "Exited with exit code 1")])
    cause = find_cause(end, failed("rank 4 on n2: /data: Input/output error"), NODES[:2], 4)
    assert cause.hosts == ("n2",)
    assert cause.why.endswith("Input/output error")


def test_srun_itself_may_fail() -> None:
    assert str(find_cause(StepEnd(1), None, NODES, 1)) == "srun ended with code 1"


@pytest.mark.parametrize(
    ("code", "status", "exits", "final"),
    [
        (0, "complete", [], 0),
        (137, "complete", [TaskExit("n1", "0", "Killed")], 0),
        (75, "stopped", [], 75),
        (137, "interrupted", [], 75),
        (137, "failed", [TaskExit("n1", "0", "Exited with exit code 76"), TaskExit("n2", "1", "Killed")], 76),
        (2, None, [], 2),
        (143, None, [], 143),
        (1, "failed", [], None),
        (77, "failed", [], None),
        (137, "running", [], None),
        (0, "running", [], None),
        (1, None, [], None),
    ],
)
def test_only_failures_that_may_be_a_nodes_are_tried_again(
    code: int, status: str | None, exits: list[TaskExit], final: int | None
) -> None:
    assert final_code(StepEnd(code, exits), RunRecord(status) if status else None) == final


# ---- nodes ----


@given(
    st.lists(st.sampled_from([f"n{number}" for number in range(12)]), unique=True),
    st.dictionaries(st.sampled_from([f"n{number}" for number in range(12)]), st.integers(0, 3)),
    st.lists(st.integers(1, 12), min_size=1, unique=True),
)
def test_the_most_nodes_that_fit_are_chosen_and_those_that_failed_least(
    good: list[str], failures: dict[str, int], counts: list[int]
) -> None:
    counts = sorted(counts, reverse=True)
    chosen = choose_nodes(good, failures, counts)
    assert len(chosen) == max((count for count in counts if count <= len(good)), default=0)
    assert chosen == [node for node in good if node in chosen]
    spare = [failures.get(node, 0) for node in good if node not in chosen]
    assert not chosen or not spare or max(failures.get(node, 0) for node in chosen) <= min(spare)


def test_states_and_addresses_of_nodes_are_read() -> None:
    text = (
        "NodeName=n1 Arch=x86_64 CPUAlloc=1 NodeAddr=10.0.0.1 NodeHostName=n1 State=MIXED ThreadsPerCore=1\n"
        "NodeName=n2 NodeAddr=10.0.0.2 State=DOWN*+DRAIN OS=Linux Reason=Not responding [slurm@2026-03-01T12:00:00]\n"
        "NodeName=n3 NodeAddr=10.0.0.3 State=MIXED+DRAIN Reason=fan\n"
        "NodeName=n4 NodeAddr=10.0.0.4 State=ALLOCATED+NOT_RESPONDING\n"
    )
    states = parse_nodes(text)
    assert [(state.is_dead, state.is_fit) for state in states.values()] == [
        (False, True),
        (True, False),
        (False, False),
        (False, False),
    ]
    assert states["n1"].address == "10.0.0.1"
    assert str(states["n2"]) == "Slurm says DOWN*+DRAIN (Not responding)"


def test_a_controller_that_restarts_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "PAUSES_S", (0, 0))
    (tmp_path / "squeue").write_text("#!/bin/sh\necho >> asked; [ $(wc -l < asked) = 3 ] && echo 1-02:00:00\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    assert allocation.ask("squeue") == "1-02:00:00\n"
    with pytest.raises(allocation.NoAnswer, match="squeue: code 1"):
        allocation.ask("squeue")


def test_a_supervisor_outside_of_a_job_is_refused() -> None:
    with pytest.raises(ConfigError, match="SLURM_JOB_ID is not set"):
        Allocation({})


def test_a_node_says_what_is_wrong_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert find_problem(tmp_path / "file", "127.0.0.1:1", 0).startswith(f"{tmp_path / 'file'} can't be written to: ")
    assert find_problem(tmp_path / "none", "127.0.0.1:1", 0).endswith(
        "does not exist there: is its file system mounted?"
    )
    assert not (tmp_path / "none").exists()
    problem = find_problem(tmp_path, "127.0.0.1:1", 0)
    assert problem == "127.0.0.1:1 on the job's first node is not reached: Connection refused"
    monkeypatch.setattr("launch.node_check.check_network", lambda meet: None)
    assert find_problem(tmp_path, "127.0.0.1:1", 0) == ""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert find_problem(tmp_path, "127.0.0.1:1", 4) == "GPU: 3 of 4 answer"


def test_a_gpu_that_fails_or_miscounts_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.node_check.check_network", lambda meet: None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    computed = []

    def ones(*shape: int, device: str) -> torch.Tensor:
        computed.append(device)
        if broken == "fails" and device == "cuda:1":
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nCompile with TORCH_USE_CUDA_DSA")
        return real(*shape) * (2 if broken == "miscounts" and device == "cuda:1" else 1)

    real = torch.ones
    monkeypatch.setattr("torch.ones", ones)
    problems = {"": "", "fails": "GPU: CUDA error: uncorrectable ECC error encountered"}
    for broken, problem in (problems | {"miscounts": "GPU: number 1 computes wrong sums"}).items():  # noqa: B007
        assert find_problem(tmp_path, "", 2) == problem
    assert computed == 3 * ["cuda:0", "cuda:1"]


# ---- records ----


def test_restarts_are_kept_in_the_run_folder_and_damaged_lines_are_skipped(tmp_path: Path) -> None:
    restarts = [Restart("t", "7", attempt, ("n2",), "task 5: killed", 40, "s", ("n1", "n3")) for attempt in (2, 3)]
    append_restart(tmp_path, restarts[0])
    with open(tmp_path / "restarts.jsonl", "a") as file:
        file.write('{"time": "t", "job"\n{"attempt": "x"}\n[]\n')
    append_restart(tmp_path, restarts[1])
    assert read_restarts(tmp_path) == restarts
    assert str(restarts[0]) == "n2: task 5: killed"
    assert name_nodes(["n1", "n3"]) == "n1, n3"
    assert name_nodes([f"n{number}" for number in range(1, 33)]) == "n1 to n32 (32 nodes)"


# ---- submissions ----


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--spares", "1", "--launcher", "torchrun"], "--spares: restarts within the job need --launcher srun"),
        (["--min-nodes", "5"], "--min-nodes 5: is more than --nodes 4"),
        (["--min-nodes", "3"], "--min-nodes 3: train.global_batch is a multiple of"),
    ],
)
def test_restarts_that_cannot_work_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    line = ["pretrain", "--config", "config.yaml", "--time", "1:00:00", "--dry-run"]
    assert message in refused(capsys, *line, "--nodes", "4", *words)


def test_a_job_asks_for_spares_and_knows_the_numbers_of_nodes_that_divide_its_batch(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--nodes", "4", "--spares", "1", "--min-nodes", "1", "--tasks-per-node", "2", "--time", "1:00:00"]
    main(["pretrain", "--config", "config.yaml", *words, "--dry-run", "--stage"])
    text = capsys.readouterr().out
    assert "#SBATCH --nodes=5\n" in text
    assert "#SBATCH --no-kill\n" in text
    assert "--nodes 4,2,1 --tasks-per-node 2 --gpus 0" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


# ---- whole jobs ----

SRUN = """\
import json, os, sys
from pathlib import Path
words = [word for word in sys.argv[1:] if word.startswith("--")]
nodes = next(word for word in words if word.startswith("--nodelist=")).partition("=")[2].split(",")
run = Path(os.environ["RUN"])
if any(word.endswith("node_check.py") for word in sys.argv):
    bad = (run / "bad").read_text().split() if (run / "bad").exists() else []
    print(json.dumps({"problem": "GPU: 3 of 4 answer" if nodes[0] in bad else "", "port": 20000}))
    sys.exit(0)
start = json.loads((run / "plan").read_text()).pop(0)
rest = json.loads((run / "plan").read_text())[1:]
(run / "plan").write_text(json.dumps(rest))
with open(run / "nodes", "a") as file:
    file.write(",".join(nodes) + " " + os.environ["MASTER_ADDR"] + "\\n")
number = len((run / "nodes").read_text().splitlines())
if start.get("saved"):
    (run / "checkpoints" / f"step-{number:08d}").mkdir(parents=True)
reason = start.get("reason", "")
record = {"status": start["status"], "step": 10 * number, "started": f"start {number}", "reason": reason}
(run / "status.json").write_text(json.dumps(record))
for line in start.get("lines", []):
    print(line, file=sys.stderr)
sys.exit(start["code"])
"""
SCONTROL = """\
import sys
if sys.argv[2] == "hostnames":
    print("n1\\nn2\\nn3")
else:
    for node in sys.argv[3].split(","):
        print(f"NodeName={node} NodeAddr=10.0.0.{node[1:]} State=MIXED")
"""
SQUEUE = "print('UNLIMITED')\n"
KILLED = {"status": "failed", "reason": "rank 0 on n1: lost another rank", "code": 137, "saved": True,
          "lines": ["srun: error: n2: task 1: Killed"]}  # fmt: skip
COMPLETE = {"status": "complete", "code": 0}


def supervised(folder: Path, *plan: dict, nodes: str = "2") -> subprocess.CompletedProcess[str]:
    """Run a supervisor whose attempts end as planned, on three nodes."""
    for name, program in (("srun", SRUN), ("scontrol", SCONTROL), ("squeue", SQUEUE)):
        (folder / name).write_text(f"#!{sys.executable} -S\n{program}")
        (folder / name).chmod(0o755)
    run = folder / "run"
    run.mkdir(exist_ok=True)
    (run / "plan").write_text(json.dumps(plan))
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3]", "RUN": str(run)}
    words = [REPOSITORY / "launch" / "supervise.py", "--run", run, "--nodes", nodes, "--tasks-per-node", 1]
    return subprocess.run(
        [sys.executable, *map(str, words), "--", "python", "launch/pretrain.py"],
        env=os.environ | job | {"PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_spare_takes_the_place_of_a_node_whose_rank_was_killed(tmp_path: Path) -> None:
    done = supervised(tmp_path, KILLED, COMPLETE)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "nodes").read_text() == "n1,n2 10.0.0.1\nn1,n3 10.0.0.1\n"
    (restart,) = read_restarts(tmp_path / "run")
    assert (restart.attempt, restart.hosts, restart.step, restart.failed) == (2, ("n2",), 10, "start 1")
    assert "error: attempt 1 failed: n2: task 1: killed" in done.stderr


def test_rank_0_moves_where_the_first_node_fails_its_checks(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "bad").write_text("n1")
    done = supervised(tmp_path, COMPLETE)
    assert (tmp_path / "run" / "nodes").read_text() == "n2,n3 10.0.0.2\n"
    assert "warning: n1 is left out: GPU: 3 of 4 answer" in done.stderr


def test_too_few_nodes_end_the_job_with_69_unless_fewer_are_enough(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "bad").write_text("n1 n3")
    done = supervised(tmp_path, COMPLETE)
    assert done.returncode == 69
    assert "1 good nodes are left, 2 are needed" in done.stderr
    assert supervised(tmp_path, COMPLETE, nodes="2,1").returncode == 0


def test_three_failures_without_a_new_checkpoint_are_not_a_nodes(tmp_path: Path) -> None:
    failing = {"status": "failed", "reason": "shards: no such folder", "code": 1}
    done = supervised(tmp_path, failing, failing, failing, COMPLETE)
    assert done.returncode == 1
    assert "3 failures in a row without a new checkpoint" in done.stderr
    assert len((tmp_path / "run" / "nodes").read_text().splitlines()) == 3

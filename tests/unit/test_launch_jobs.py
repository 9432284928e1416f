"""What job scripts say and do in bash, beside what sbatch makes of them: setup files, options, launchers, checks."""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import launch.local
import launch.slurm
from launch.directives import overridden
from launch.jobs import one_line
from launch.launchers import LAUNCHERS
from launch.ranks import free_job_port, step_port
from launch.slurm import main
from launch.sweeps import combination_name, combinations, split_values

CONFIG = """\
run: {dir: run}
data: {shards: shards}
train: {steps: 10, global_batch: 64, micro_batch: 8}
"""
EVALUATION = """\
run: {dir: scores/NAME}
task: enmap_cdl
data: {images: images, labels: labels}
checkpoint: encoder.safetensors
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    for name in ("cdl", "nlcd"):
        (tmp_path / f"{name}.yaml").write_text(EVALUATION.replace("NAME", name))
    return tmp_path


def dry(capsys: pytest.CaptureFixture[str], command: str, *words: str) -> str:
    main([command, *words, "--time", "2:00:00", "--dry-run"])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*words])
    assert ended.value.code in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def bash(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash"], input=script, text=True, capture_output=True, env=os.environ | environment, timeout=30
    )


# ---- options ----


def test_options_of_sbatch_become_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "config.yaml", "--mem", "64G", "--constraint", "ib&hbm", "--gpus-per-node", "a100:4"]
    text = dry(
        capsys, "pretrain", *words, "--sbatch", "--exclusive", "--sbatch=#SBATCH --mail-type=END", "--nodes", "2"
    )
    lines = text.splitlines()
    for line in ("mem=64G", "constraint='ib&hbm'", "gpus-per-node=a100:4", "exclusive", "mail-type=END"):
        assert f"#SBATCH --{line}" in lines
    assert "#SBATCH --ntasks-per-node=4" in lines


@pytest.mark.parametrize("gpus", ["a100:", "a100:0", "a 100:4", "four", ":"])
def test_gpus_are_a_number_or_a_type_and_a_number(folder: Path, capsys: pytest.CaptureFixture[str], gpus: str) -> None:
    with pytest.raises(SystemExit) as ended:
        dry(capsys, "pretrain", "--config", "config.yaml", "--gpus-per-node", gpus)
    assert ended.value.code == 2
    assert "--gpus-per-node" in capsys.readouterr().err


def test_the_environment_cannot_override_what_a_script_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = dry(capsys, "pretrain", "--config", "config.yaml", "--partition", "gpu", "--mem", "8G")
    hidden = overridden(text)
    assert {"SBATCH_PARTITION", "SBATCH_TIMELIMIT", "SBATCH_SIGNAL", "SBATCH_MEM_PER_NODE"} <= hidden
    assert {"SBATCH_REQUEUE", "SBATCH_NO_REQUEUE"} <= hidden
    assert "SBATCH_ACCOUNT" not in hidden  # a default of the user's, which nothing contradicts


def test_what_slurm_says_is_one_line() -> None:
    said = "sbatch: error: invalid partition specified: none\nsbatch: error: Batch job submission failed: Invalid\n"
    assert one_line(said) == "invalid partition specified: none; Batch job submission failed: Invalid"


def test_an_option_of_sbatch_has_its_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        dry(capsys, "pretrain", "--config", "config.yaml", "--begin", "now")
    assert ended.value.code == 2
    assert "unrecognized arguments: --begin" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        dry(capsys, "pretrain", "--config", "config.yaml", "--name", "two\nlines")
    assert "argument --name: 'two\\nlines': write one line of text" in capsys.readouterr().err


# ---- the script in bash ----


def preamble(text: str) -> str:
    """The script until it sets its own variables."""
    return text[text.index("#!/bin/bash") : text.index("set -u")]


def test_a_setup_file_chooses_the_environment_and_python(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "my setup.sh").write_text('export LOADED="$UNSET yes"\n[ -z "$LOADED" ] || python=(env python3)\n')
    text = dry(capsys, "pretrain", "--config", "config.yaml", "--setup", "my setup.sh")
    done = bash(preamble(text) + 'echo "$LOADED ${python[@]}"')
    assert (done.stdout, done.stderr) == (" yes env python3\n", "")


@pytest.mark.parametrize(
    ("content", "blamed"),
    [
        ("load_nothing cuda\necho on\n", "load_nothing cuda"),
        ("false\n", "false"),
        ("exit 0\n", "ended the job with code 0"),
        ("if broken\n", "setup.sh"),
        (None, "setup.sh"),
    ],
)
def test_a_setup_file_that_fails_ends_the_job_and_says_where(
    folder: Path, capsys: pytest.CaptureFixture[str], content: str | None, blamed: str
) -> None:
    (folder / "setup.sh").write_text(content or "")
    text = dry(capsys, "pretrain", "--config", "config.yaml", "--setup", "setup.sh")
    if content is None:
        (folder / "setup.sh").unlink()
    done = bash(preamble(text) + "echo on")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "error: --setup " in done.stderr and blamed in done.stderr.splitlines()[-1]


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT, min_size=1, max_size=3))
def test_any_value_reaches_the_command_as_it_was_given(
    folder: Path, capsys: pytest.CaptureFixture[str], values: list[str]
) -> None:
    overrides = [f"run.dir={value}" for value in [*values, "$HOME `date` \"a\" 'b', c\\ [x] {y: 1} *"]]
    quoted = ["run.dir=" + json.dumps(word.partition("=")[2]) for word in overrides]  # a string to YAML
    text = dry(capsys, "pretrain", "--config", "config.yaml", *quoted)
    words = text[text.index("words=(") : text.index("# Misuse")]
    done = bash(f'run=RUN\n{words}printf "%s\\0" "${{words[@]}}"')
    assert done.stdout.split("\0")[:-1] == [*quoted, "watchdog.grace=540", "run.dir=RUN"]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_is_sound_bash_and_starts_all_processes(
    folder: Path, capsys: pytest.CaptureFixture[str], launcher: str
) -> None:
    words = ["--config", "config.yaml", "--nodes", "2", "--tasks-per-node", "4", "--cpus-per-task", "3"]
    text = dry(capsys, "pretrain", *words, "--launcher", launcher, "run.dir=a b")
    assert bash("set -n\n" + text).returncode == 0
    per_node = LAUNCHERS[launcher].one_task_per_node
    assert f"#SBATCH --ntasks-per-node={1 if per_node else 4}" in text
    assert f"#SBATCH --cpus-per-task={12 if per_node else 3}" in text
    told = {"srun": "srun ", "torchrun": "--nproc-per-node=4", "deepspeed": "--launcher slurm"}
    assert told.get(launcher, "--no_ssh") in text
    assert ("slots=4" in text) is launcher.startswith("deepspeed")


def test_torchrun_has_as_long_as_a_save_may_take(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "config.yaml", "--launcher", "torchrun", "--max-restarts", "3", "watchdog.grace=200"]
    text = dry(capsys, "pretrain", *words)
    assert "--max-restarts=3 --shutdown-timeout=230" in text
    assert "watchdog.grace=540" not in text


@pytest.mark.parametrize("grace", [0, 600, 900])
def test_a_save_that_hangs_is_given_up_before_the_time_is_up(
    folder: Path, capsys: pytest.CaptureFixture[str], grace: int
) -> None:
    text = dry(capsys, "pretrain", "--config", "config.yaml", f"watchdog.grace={grace}")
    assert "#SBATCH --signal=USR1@600" in text
    lines = text.splitlines()
    assert lines.index("    watchdog.grace=540") == lines.index(f"    watchdog.grace={grace}") + 1


def test_deepspeed_is_refused_where_it_would_cut_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a,b").mkdir()
    monkeypatch.chdir(tmp_path / "a,b")
    Path("config.yaml").write_text(CONFIG)
    words = ["pretrain", "--config", "config.yaml", "--time", "2:00:00", "--launcher"]
    assert "PYTHONPATH" in refused(capsys, *words, "deepspeed")
    main([*words, "deepspeed-hostfile", "--dry-run"])
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(CONFIG)
    capsys.readouterr()
    main([*words, "deepspeed", "--dry-run"])
    text = capsys.readouterr().out
    check = text[text.index("if cut=") : text.index("hostfile=")]
    monkeypatch.setenv("NCCL_IB_HCA", "mlx5_0,mlx5_1")
    assert "NCCL_IB_HCA=mlx5_0,mlx5_1: DeepSpeed hands it to srun --export" in refused(capsys, *words, "deepspeed")
    done = bash(check + "echo on")  # a setup file may set it
    assert (done.returncode, done.stdout) == (2, "")
    assert "would cut NCCL_IB_HCA at its comma" in done.stderr
    assert bash(check + "echo on", NCCL_IB_HCA="mlx5_0", UCX="1;2").stdout == "on\n"


# ---- ports, sweeps ----


def test_a_port_that_is_taken_is_passed_over() -> None:
    import socket

    with socket.socket() as taken:
        first = free_job_port("123456")
        taken.bind(("", first))
        taken.listen()
        assert first >= step_port("123456", "0")
        assert free_job_port("123456") != first


def test_commas_within_quotes_lists_and_mappings_separate_nothing() -> None:
    assert split_values("""a,"b,c",[d,[e,f]],{g: 1, h: 2},'i,]'""") == [
        *("a", '"b,c"', "[d,[e,f]]", "{g: 1, h: 2}", "'i,]'")
    ]
    assert combinations(["a=1,2", "b=x"]) == [["a=1", "b=x"], ["a=2", "b=x"]]


def test_long_values_make_names_that_a_file_system_takes_and_that_differ() -> None:
    names = {combination_name([f"data.shards=/{'long/' * 80}{end}"]) for end in "ab"}
    assert len(names) == 2
    assert all(len(name) < 200 for name in names)


# ---- evaluations ----


def test_evaluations_go_where_their_configs_say(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = dry(capsys, "finetune", "--config", "cdl.yaml", "nlcd.yaml", "seeds=[4,7]", "--sweep", "full.clip=1,2")
    assert "#SBATCH --array=0-7" in text
    assert f"run={folder}/scores/nlcd/full.clip=2/seed-7 ;;" in text
    assert f"# {folder}/scores/slurm/finetune.sbatch" in text
    assert f"report {folder}/scores/cdl {folder}/scores/nlcd --output {folder}/scores/report" in text


def test_evaluations_go_below_the_folder_that_run_dir_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = dry(capsys, "finetune", "--config", "cdl.yaml", "run.dir=elsewhere", "--seeds", "1")
    assert f"run={folder}/elsewhere/cdl/seed-0 ;;" in text
    assert "run.dir=elsewhere" not in text


def test_evaluations_run_on_as_many_nodes_and_processes_as_are_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = dry(capsys, "finetune", "--config", "cdl.yaml", "--nodes", "2", "--tasks-per-node", "3")
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=3\n" in text


def test_what_would_be_ignored_or_shared_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "cdl.yaml").write_text(EVALUATION)
    words = ["finetune", "--time", "1:00:00", "--config", "cdl.yaml"]
    assert "would share the folder" in refused(capsys, *words, "other/cdl.yaml", "--output", "o")
    assert "would share the folder" in refused(capsys, *words, "cdl.yaml")
    assert "would share the folder" in refused(capsys, *words, "seeds=[1,1]")
    assert "--seeds: the seeds are also given" in refused(capsys, *words, "--seeds", "2", "seeds=[1]")
    assert "--sweep seeds" in refused(capsys, *words, "--sweep", "seeds=[1],[2]")
    with pytest.raises(SystemExit):
        main([*words, "--output", "o", "run.dir=p"])
    assert "--output and run.dir= both" in capsys.readouterr().err


# ---- before anything is queued ----


@pytest.fixture
def slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands that answer as Slurm's do: the queue is in a file, and what is submitted is noted in another."""
    commands = {
        "sbatch": 'echo "$@" >>submitted; [ -e full ] && [ "$(wc -l <submitted)" -gt 1 ] && '
        "{ echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1; }; wc -l <submitted",
        "squeue": "cat queue 2>/dev/null",
        "scontrol": "echo 'MaxArraySize            = 4'",
        "scancel": 'echo "scancel $@" >>submitted',
    }
    (folder / "bin").mkdir()
    for name, text in commands.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    for name in ("images", "labels"):
        (folder / name).mkdir()
    (folder / "encoder.safetensors").touch()
    return folder


def test_missing_inputs_are_told_before_anything_is_queued(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = ["finetune", "--time", "1:00:00", "--config", "cdl.yaml"]
    assert "key 'data.shards'" in refused(capsys, "pretrain", "--time", "1:00:00", "--config", "config.yaml")
    assert "'data.labels': nowhere: no such file" in refused(capsys, *evaluation, "data.labels=nowhere")
    assert "'checkpoint': gone.pt: no such file" in refused(capsys, *evaluation, "checkpoint=gone.pt")
    assert "--setup gone.sh: no such file" in refused(capsys, *evaluation, "--setup", "gone.sh")
    assert not (slurm / "submitted").exists()


def test_a_longer_array_than_slurm_takes_is_refused(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["finetune", "--time", "1:00:00", "--config", "cdl.yaml", "nlcd.yaml", "--seeds"]
    assert "an array of 6, and this Slurm takes 4 (MaxArraySize)" in refused(capsys, *words, "3")
    main([*words, "2"])
    assert len((slurm / "submitted").read_text().splitlines()) == 2


def test_a_folder_that_belongs_to_a_job_is_refused(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["finetune", "--time", "1:00:00", "--config", "cdl.yaml", "--seeds", "1"]
    (slurm / "queue").write_text(f"7|PENDING|{slurm}/scores/cdl/slurm/finetune.sbatch\n")
    assert "belongs to job 7, which is PENDING" in refused(capsys, *words)
    (slurm / "queue").write_text("8|RUNNING|/elsewhere/script\n")
    run = slurm / "scores" / "cdl" / "seed-0"
    run.mkdir(parents=True)
    (run / "status.json").write_text('{"status": "running", "job": "8"}')
    assert "belongs to job 8, which is RUNNING" in refused(capsys, *words)
    for said in ('{"status": "running", "job": "9"}', '{"status": "running"}', "[]", "not JSON"):
        (run / "status.json").write_text(said)
        (slurm / "submitted").unlink(missing_ok=True)
        main(words)


def test_a_folder_in_which_a_process_is_at_work_is_refused(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = slurm / "scores" / "cdl" / "seed-0"
    run.mkdir(parents=True)
    words = ["finetune", "--time", "1:00:00", "--config", "cdl.yaml", "--seeds", "1"]
    with open(run / "rank0.pid", "w") as held:
        held.write("4711")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another run is at work there (process 4711" in refused(capsys, *words)
    main(words)


def test_a_chain_that_is_refused_half_way_leaves_nothing_queued(
    slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (slurm / "full").touch()
    with pytest.raises(SystemExit) as ended:
        main(["finetune", "--time", "1:00:00", "--config", "cdl.yaml", "--seeds", "1"])
    assert ended.value.code == 1
    assert "QOSMaxSubmitJobPerUserLimit; cancelled what was queued before it: 1" in capsys.readouterr().err
    assert (slurm / "submitted").read_text().splitlines()[-1] == "scancel 1"


def test_a_folder_that_cannot_be_written_is_one_line(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (slurm / "file").touch()
    words = ["finetune", "--time", "1:00:00", "--config", "cdl.yaml", "--seeds", "1", "--output", "file/below"]
    assert "key 'run.dir'" in refused(capsys, *words) and not (slurm / "submitted").exists()


# ---- without Slurm ----


def test_commands_of_a_local_sweep_can_be_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["pretrain", "--config", "config.yaml", "--sweep", "run.seed=1,2", "--local", "--dry-run", "optim.lr=1e-4"])
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [command[-1] for command in commands] == [f"run.dir={folder}/run/run.seed={seed}" for seed in (1, 2)]
    assert commands[0][:2] == [sys.executable, str(Path(main.__code__.co_filename).parent / "pretrain.py")]
    main(["finetune", "--config", "cdl.yaml", "--seeds", "1", "--tasks-per-node", "2", "--local", "--dry-run"])
    evaluation, report = capsys.readouterr().out.splitlines()
    assert "torchrun --standalone --nproc-per-node=2" in evaluation
    assert "finetune report" in report


STAND_IN = """\
import json, os, signal, sys, time
from pathlib import Path
folder = Path([word for word in sys.argv if word.startswith("run.dir=")][-1].removeprefix("run.dir="))
folder.mkdir(parents=True)
def end(code, status):
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 0.25}\\n{"step": 1, "val": 2}\\n')
    (folder / "status.json").write_text(json.dumps({"status": status, "step": 1, "steps": 3}))
    os._exit(code)
signal.signal(signal.SIGTERM, lambda *_: end(75, "stopped"))
if "run.seed=1" in sys.argv:
    end(1, "running")
if "run.seed=3" in sys.argv:
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(20)
end(0, "complete")
"""


def local_table(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seeds: str) -> tuple:
    """Exit code, and the columns of the table, of a local sweep of programs that only say how they end."""
    (folder / "launch").mkdir()
    (folder / "launch" / "pretrain.py").write_text(STAND_IN)
    monkeypatch.setattr(launch.local, "ROOT", folder)
    monkeypatch.setattr(launch.slurm, "check_inputs", lambda *_: None)
    handlers = {number: signal.getsignal(number) for number in launch.local.SIGNALS}
    try:
        main(["pretrain", "--config", "config.yaml", "--local", "--sweep", f"run.seed={seeds}"])
        code = 0
    except SystemExit as ended:
        code = ended.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    begin = rows.index(["run", "ended", "code", "step", "loss"])
    return code, [[Path(row[0]).name, *row[1:]] for row in rows[begin + 1 :] if row and row[0][0] == "/"]


def test_a_local_sweep_ends_with_a_table_and_goes_on_after_a_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows = local_table(folder, monkeypatch, capsys, "0,1,2")
    assert code == 1
    assert rows == [
        ["run.seed=0", "complete", "0", "1/3", "0.2500"],
        ["run.seed=1", "failed", "1", "1/3", "0.2500"],
        ["run.seed=2", "complete", "0", "1/3", "0.2500"],
    ]


def test_a_signal_to_a_local_sweep_stops_its_run_and_begins_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows = local_table(folder, monkeypatch, capsys, "0,3,4")
    assert code == 75
    assert rows == [
        ["run.seed=0", "complete", "0", "1/3", "0.2500"],
        ["run.seed=3", "stopped", "75", "1/3", "0.2500"],
        ["run.seed=4", "not", "begun", "-", "-", "-"],
    ]

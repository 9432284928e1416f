"""What job scripts say and do in bash, beside what sbatch makes of them: setup files, options, launchers."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.job_configs import CONFIG, EVALUATION, refused

from launch.directives import overridden
from launch.jobs import one_line
from launch.launchers import LAUNCHERS
from launch.ranks import free_job_port, step_port
from launch.slurm import main
from launch.sweeps import combination_name, combinations, split_values


def dry(capsys: pytest.CaptureFixture[str], command: str, *words: str) -> str:
    main([command, *words, "--time", "2:00:00", "--dry-run"])
    return capsys.readouterr().out


def bash(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash"], input=script, text=True, capture_output=True, env=os.environ | environment, timeout=120
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
    assert "--name: 'two\\nlines': write one line of text" in capsys.readouterr().err


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
    assert "--seeds: the seeds are also given" in refused(capsys, *words, "--seeds", "2", "seeds=[1]")
    assert "--sweep seeds" in refused(capsys, *words, "--sweep", "seeds=[1],[2]")
    with pytest.raises(SystemExit):
        main([*words, "--output", "o", "run.dir=p"])
    assert "--output and run.dir= both" in capsys.readouterr().err

"""Ranks from Slurm's environment, time limits, sweeps, and scripts as bash reads them."""

import subprocess
from pathlib import Path

import pytest

from launch.directives import limit_seconds
from launch.ranks import first_node, slurm_ranks, step_port
from launch.slurm import main
from shards.errors import ConfigError

STEP = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}
CONFIG = """\
run: {dir: set below}
data: {shards: shards}
train: {steps: 10, global_batch: 64, micro_batch: 8}
"""


def test_a_task_of_a_step_has_its_ranks() -> None:
    assert slurm_ranks(STEP) == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}


def test_a_batch_script_is_no_task() -> None:
    assert slurm_ranks({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "3"}) == {}


def test_ports_are_in_range_and_differ_for_neighbours() -> None:
    ports = [step_port(str(job), str(step)) for job in range(100, 200) for step in range(3)]
    assert len(set(ports)) == len(ports)
    assert all(20000 <= port < 32000 for port in ports)


@pytest.mark.parametrize(
    ("nodes", "first"), [("n1", "n1"), ("n[03-05,9],m1", "n03"), ("a,b[1-2]", "a"), ("rack[1-2]n[07-08]", "rack1n07")]
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 1800), ("30:15", 1815), ("2:00:00", 7200), ("1-12", 129600), ("1-0:30", 88200), ("2-01:00:10", 176410)],
)
def test_limits_are_read_as_slurm_does(text: str, seconds: int) -> None:
    assert limit_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "2h", "1:2:3:4", "-1", "1-"])
def test_other_limits_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--time"):
        limit_seconds(text)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a config.yaml"  # with a space, as paths have
    path.write_text(CONFIG)
    return path


def script(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main([*words, "--time", "2:00:00", "--dry-run"])
    text = capsys.readouterr().out
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    return text


def test_a_run_is_one_task_for_each_device(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pretrain", "--config", str(config), "--nodes", "2", "--gpus-per-node", "4", "run.dir=my run"]
    text = script(capsys, *words, "optim.lr=1e-3")
    lines = text.splitlines()
    for line in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--signal=USR1@600", "--requeue"):
        assert f"#SBATCH {line}" in lines
    assert "srun --kill-on-bad-exit=1" in text
    assert f"config='{config}'" in lines
    assert '--config "$config"' in text
    assert "optim.lr=1e-3" in text
    assert f"run='{config.parent / 'my run'}'" in lines
    assert f"#SBATCH --output='{config.parent / 'my run'}/slurm/%j.out'" in lines
    assert not (config.parent / "my run").exists()


def test_every_template_is_sound_bash(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiles").mkdir()
    words = ["pipeline", "--config", str(config), "--tiles", "tiles", "--stage", "--parts", "3", "run.dir=r"]
    text = script(capsys, *words)
    assert "#SBATCH --array=1-3" in text
    assert '"data.stage=$SLURM_TMPDIR/shards"' in text
    assert "@" not in text.replace("USR1@600", "").replace("[@]", "")


def test_a_sweep_gives_every_pair_a_folder(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweeps = ["--sweep", "optim.lr=1e-3,3e-4", "--sweep", "run.seed=1,2"]
    text = script(capsys, "pretrain", "--config", str(config), *sweeps, "run.dir=s")
    assert "#SBATCH --array=0-3" in text
    assert (
        f"3) config='{config}' sweep=(optim.lr=3e-4 run.seed=2) run={config.parent}/s/optim.lr=3e-4_run.seed=2 ;;"
        in text
    )


def test_lists_can_be_swept(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(capsys, "pretrain", "--config", str(config), "--sweep", "optim.betas=[0.9,0.95],[0.9,0.99]")
    assert f"1) config='{config}' sweep=('optim.betas=[0.9,0.99]') " in text


def test_options_keep_values_that_look_like_overrides(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(capsys, "pretrain", "--name", "lr=1 50%", "--stage", "run.seed=3", "--config", str(config))
    assert "#SBATCH --job-name='lr=1 50%'" in text
    assert "    run.seed=3" in text.splitlines()
    assert text.count("lr=1") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sweep", "optim.lrr=1,2"], "did you mean 'optim.lr'"),
        (["--sweep", "optim.lr"], "write key=value,value"),
        (["--sweep", "run.dir=a,b"], "each combination gets its own folder"),
        (["--nodes", "3"], "must be a multiple of train.micro_batch 8 x 3 processes"),
        (["train.stepz=3"], "did you mean 'train.steps'"),
        (["--sweep", "optim.lr=1e-3,1e-3"], "two runs would share the folder optim.lr=1e-3"),
        (["--max-restarts", "2"], "srun restarts no ranks within a job: add --launcher torchrun"),
        (["--sbatch", "exclusive"], "write an option of sbatch such as --sbatch '--exclusive'"),
        (["--sbatch", "--time=3:00"], "the script already sets --time; use --time"),
        (["--sbatch", "#SBATCH -pgpu"], "the script already sets --partition; use --partition"),
        (["--sbatch", "--exclusive -N 4"], "the script already sets --nodes; use --nodes"),
        (["--local", "--nodes", "2", "train.micro_batch=4"], "--local runs only on this machine"),
        (["--local", "--launcher", "deepspeed"], "--local starts ranks with torchrun"),
        (["--local", "--setup", "modules.sh"], "--setup: only works in Slurm's job scripts"),
        (["--local", "--max-restarts", "1"], "srun restarts no ranks"),
        (["--local"], "key 'data.shards': shards: no such folder of shards"),
    ],
)
def test_misuse_is_one_line_before_anything_is_written(
    config: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "--config", str(config), "--time", "2:00:00", *words])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in config.parent.iterdir()] == [config.name]


@pytest.mark.parametrize("option", ["--nodes", "--gpus-per-node", "--tasks-per-node"])
def test_counts_are_above_0(config: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "--config", str(config), "--time", "2:00:00", option, "0"])
    assert ended.value.code == 2
    assert "'0' is not a whole number above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.shards=s3://bucket/shards", "s3://bucket/shards: a pipeline writes shards into a folder"),
        ("data={sources: [{shards: a}, {shards: b}]}", "key 'data.sources': a pipeline packs one dataset"),
    ],
)
def test_a_pipeline_that_could_not_write_its_shards_is_refused(
    config: Path, capsys: pytest.CaptureFixture[str], override: str, says: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["pipeline", "--config", str(config), "--tiles", ".", "--time", "2:00:00", override])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_without_slurm_one_line_says_so(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "--config", str(config), "--time", "2:00:00", "run.dir=r"])
    assert ended.value.code == 1
    assert "sbatch is missing" in capsys.readouterr().err


EVALUATION = """
run: {dir: unused}
task: enmap_cdl
data: {images: i, labels: l}
checkpoint: ${NO_SUCH_VARIABLE}
"""


def test_evaluations_are_an_array_of_configs_and_seeds_with_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "cdl.yaml", tmp_path / "my task.yaml"]
    for path in paths:
        path.write_text(EVALUATION)
    output = tmp_path / "scores"
    words = ["--config", *map(str, paths), "--seeds", "2", "--output", str(output), "checkpoint=e.safetensors"]
    text = script(capsys, "finetune", *words, "protocol=frozen")
    assert "#SBATCH --array=0-3" in text
    assert f"0) config={paths[0]} sweep=('seeds=[0]') run={output}/cdl/seed-0 ;;" in text
    assert f"3) config='{paths[1]}' sweep=('seeds=[1]') run='{output}/my task/seed-1' ;;" in text
    assert 'launch/finetune.py --config "$config"' in text
    assert "    protocol=frozen" in text.splitlines()
    assert f"-m finetune report {output} --output {output}/report" in text


def test_a_pipeline_ends_with_evaluations_of_its_encoder(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cdl.yaml"
    path.write_text(EVALUATION)
    words = ["--config", str(config), "--tiles", str(tmp_path), "--finetune", str(path), "--seeds", "1"]
    text = script(capsys, "pipeline", *words, "run.dir=r", "optim.lr=2e-3")
    folder = config.parent / "r"
    wanted = f"checkpoint={folder}/export/encoder.safetensors"
    assert f"0) config={path} sweep=({wanted} 'seeds=[0]') run={folder}/finetune/cdl/seed-0 ;;" in text
    stages = [line.rsplit("/", 1)[-1] for line in text.splitlines() if line.startswith("# /") and "sbatch" in line]
    assert stages == [f"{stage}.sbatch" for stage in ("shard", "merge", "pretrain", "export", "finetune", "report")]
    assert text.split("finetune.sbatch")[1].count("optim.lr=2e-3") == 0

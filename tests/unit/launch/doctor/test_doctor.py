"""The doctor's rows from what was found, without a cluster."""

from types import SimpleNamespace

import pytest
from support.processes import REPOSITORY

from launch.doctor import attention, compiler, data, disk, loader, machine, network, versions
from launch.doctor import deepspeed_config as resolved
from launch.doctor.__main__ import check_rows
from launch.doctor.table import Row
from pretrain.config import PretrainConfig
from pretrain.engine.zero import deepspeed_config
from shards.config import load_config

GOOD = {
    "python": "3.11.7",
    "torch": "2.13.0+cu128",
    "deepspeed": "0.19.8",
    "xformers": "0.0.35",
    "numcodecs": "0.16.6",
    "cudnn": "9.20.0",
}
NAMES = ["rank 0 (a)", "rank 1 (b)"]


def config(path: str = "mae/demo", *overrides: str) -> PretrainConfig:
    options = ["run.dir=run", "data.shards=shards", *overrides]
    return load_config(REPOSITORY / "configs" / "pretrain" / f"{path}.yaml", options, PretrainConfig)


# ---- versions ----


def test_versions_that_fit_are_green() -> None:
    row = versions.judge([GOOD, GOOD], ["torch>=2.10", "python>=3.11", 'xformers>=0.0.35; extra == "gpu"'], NAMES)
    assert row.state == "green" and not row.fix
    assert "torch 2.13.0+cu128" in row.found and "cudnn 9.20.0" in row.found


@pytest.mark.parametrize(
    ("changed", "state", "source"),
    [
        ({"torch": "2.9.0+cu128"}, "red", "#166643"),
        ({"cudnn": "9.10.2"}, "red", "#163539"),
        ({"cudnn": "9.8.0"}, "red", "#163539"),
        ({"cudnn": "9.11.0"}, "yellow", "#169849"),
        ({"cudnn": "9.15.0"}, "yellow", "#169849"),
        ({"torch": "2.5.0"}, "red", "#138522"),
        ({"torch": "2.9.1"}, "red", "xformers 0.0.34"),
        ({"xformers": "0.0.33.post1"}, "red", "xformers 0.0.33"),
        ({"zfpy": "1.0.1.post0"}, "red", "post0"),
        ({"deepspeed": "0.19.2"}, "red", "#8148"),
        ({"deepspeed": "0.18.7"}, "red", "#7898"),
    ],
)
def test_a_known_bad_pair_is_named_with_its_source_and_mend(changed: dict, state: str, source: str) -> None:
    row = versions.judge([GOOD | changed], [], NAMES[:1])
    assert row.state == state
    assert source in row.found
    assert row.fix


def test_no_row_of_the_table_fires_without_its_libraries_or_beside_its_range() -> None:
    assert not versions.known_bad({"torch": "2.9.0+cpu"})  # no cuDNN, no harm
    assert not versions.known_bad(GOOD | {"cudnn": "9.15.1"})
    assert not versions.known_bad(GOOD | {"deepspeed": "0.19.3"})
    assert all(bad.what and bad.fix and bad.source for bad in versions.KNOWN_BAD)


def test_what_is_missing_or_out_of_range_is_red() -> None:
    requirements = ["torch>=2.14", "zarr>=3.1", 'flash>=1; extra == "gpu"', "deepspeed<0.20,>=0.19.8"]
    assert versions.out_of_range(GOOD, requirements) == ["torch 2.13.0+cu128 is not >=2.14", "zarr is not installed"]
    row = versions.judge([GOOD], requirements, NAMES[:1])
    assert (row.state, row.fix) == ("red", "pip install 'torch>=2.14' 'zarr>=3.1'")


def test_another_version_on_one_rank_is_red_and_names_it() -> None:
    row = versions.judge([GOOD, GOOD | {"numcodecs": "0.16.5"}], [], NAMES)
    assert row.state == "red"
    assert "rank 1 (b) has numcodecs 0.16.5, but rank 0 (a) has 0.16.6" in row.found
    driver = versions.differences([GOOD, GOOD | {"driver": "570.1"}], NAMES)
    assert driver == ["rank 1 (b) has driver 570.1, but rank 0 (a) has none"]


def test_cudnn_numbers() -> None:
    assert [versions.cudnn_version(number) for number in (91002, 90800, 8902)] == ["9.10.2", "9.8.0", "8.9.2"]


def test_this_environment_is_inside_the_ranges_of_setup_cfg() -> None:
    found, requirements = versions.find_versions(), versions._requirements()
    assert {"torch", "deepspeed", "zarr", "python"} <= {*found}
    assert any(line.startswith("deepspeed") for line in requirements)
    assert not any("pytest" in line for line in requirements)
    assert versions.out_of_range(found, requirements) == []


# ---- DeepSpeed ----


@pytest.mark.parametrize("precision", ["fp32", "autocast", "bf16"])
@pytest.mark.parametrize("stage", [2, 3])
def test_the_resolved_config_leaves_nothing_that_matters_to_a_default(precision: str, stage: int) -> None:
    run = config("mae/demo", f"engine.precision={precision}", f"engine.zero_stage={stage}")
    row = resolved.check(SimpleNamespace(config=run, size=1))  # type: ignore[arg-type]
    assert row.state == "green", row
    assert f"ZeRO stage {stage}" in row.found and "clipping 1" in row.found
    assert '"gradient_clipping": 1.0' in row.details and "stage3_max_live_parameters" in row.details


@pytest.mark.parametrize("key", resolved.MUST_BE_SET)
def test_a_key_that_is_left_to_deepspeed_is_named(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*arguments: object) -> dict:
        given = deepspeed_config(*arguments)  # type: ignore[arg-type]
        *sections, last = key.split(".")
        part = given
        for section in sections:
            part = part[section]
        del part[last]
        return given

    monkeypatch.setattr(resolved, "deepspeed_config", without)
    row = resolved.check(SimpleNamespace(config=config("mae/demo", "engine.precision=bf16"), size=1))  # type: ignore[arg-type]
    assert row.state == "red"
    assert f"{key} is left to DeepSpeed's default" in row.found


def test_what_deepspeed_reads_otherwise_is_red() -> None:
    given = deepspeed_config(config().engine.sized(0), 16, 2, 1.0)
    parsed = resolved._parse(given)
    assert resolved.misread(given, parsed) == []
    assert resolved.misread(given, parsed | {"gradient_clipping": 0.0}) == [
        "gradient_clipping is set to 1.0, but DeepSpeed reads 0.0"
    ]


def test_a_batch_that_does_not_come_out_whole_is_red() -> None:
    row = resolved.check(SimpleNamespace(config=config(), size=3))  # type: ignore[arg-type]
    assert row.state == "red"
    assert "train.micro_batch 16 x 3 processes" in row.found


# ---- the hosts ----


def host(**changed: object) -> machine.Host:
    usual = {"cores": frozenset(range(8)), "threads": 2, "shm_bytes": 8 << 30, "open_files": 1 << 20, "slurm_tasks": 1}
    return machine.Host(**(usual | changed))  # type: ignore[arg-type]


def test_threads_are_counted_over_the_cores_that_a_hosts_processes_have_together() -> None:
    hosts = ["a", "a", "b"]
    assert machine.judge_hosts([host()] * 3, hosts, True).state == "green"
    bound = [host(cores=frozenset({2 * rank, 2 * rank + 1})) for rank in range(2)]
    assert machine.judge_hosts([*bound, host()], hosts, True).state == "green"
    row = machine.judge_hosts([host(threads=8)] * 3, hosts, True)
    assert row.state == "red"
    assert "a: 16 threads on 8 cores" in row.found and "run.threads=4" in row.fix


def test_little_shared_memory_and_few_files_are_warnings_and_lone_tasks_are_red() -> None:
    small = [host(shm_bytes=64 << 20)] * 2
    assert machine.judge_hosts(small, ["a", "a"], on_gpu=True).state == "yellow"
    assert machine.judge_hosts(small, ["a", "a"], on_gpu=False).state == "green"
    assert "1024 open files" in machine.judge_hosts([host(open_files=1024)], ["a"], False).found
    row = machine.judge_hosts([host(slurm_tasks=4)], ["a"], False)
    assert row.state == "red" and "srun started 4 tasks, but only 1 found each other" in row.found


def gpu(**changed: object) -> machine.Gpu:
    usual = {"name": "NVIDIA H200", "memory": 140 << 30, "free": 139 << 30, "number": "u"}
    return machine.Gpu(**(usual | changed))  # type: ignore[arg-type]


def test_gpus_are_equal_free_and_one_for_each_rank() -> None:
    other = gpu(number="v")
    assert machine.judge_gpus([gpu(), other], NAMES) == Row("green", "2 x NVIDIA H200 of 140 GiB")
    assert machine.judge_gpus([None, None], NAMES).state == "yellow"
    cases = {
        "rank 1 (b) and rank 0 (a) share one GPU": gpu(),
        "rank 1 (b) has no GPU, others have": None,
        "rank 1 (b) has A100 of 40 GiB, but rank 0 (a) has NVIDIA H200": gpu(name="A100", memory=40 << 30, number="v"),
    }
    for what, second in cases.items():
        row = machine.judge_gpus([gpu(), second], NAMES)
        assert row.state == "red" and what in row.found
    row = machine.judge_gpus([gpu(), gpu(number="v", free=100 << 30)], NAMES)
    assert row.state == "yellow" and "rank 1 (b): 40.0 GiB of its GPU are in use" in row.found
    assert "rank 0 (a) has no GPU" in machine.judge_gpus([None, gpu()], NAMES).found


# ---- attention ----

LOADS, BROKEN, ABSENT = (True, True, ""), (True, True, "does not load"), (True, False, "not installed")


@pytest.mark.parametrize(
    ("ranks", "backend", "machine", "state"),
    [
        ([LOADS, LOADS], "auto", "x86_64", "green"),
        ([LOADS, BROKEN], "auto", "x86_64", "red"),
        ([BROKEN, BROKEN], "xformers", "x86_64", "red"),
        ([BROKEN, BROKEN], "sdpa", "x86_64", "green"),
        ([ABSENT, ABSENT], "auto", "x86_64", "yellow"),
        ([ABSENT, ABSENT], "auto", "aarch64", "green"),
        ([ABSENT, ABSENT], "xformers", "aarch64", "red"),
        ([(False, False, "not installed")] * 2, "auto", "x86_64", "yellow"),
        ([(False, True, "does not load")] * 2, "xformers", "x86_64", "red"),
    ],
)
def test_an_extension_that_does_not_load_is_red_beside_a_gpu(
    ranks: list, backend: str, machine: str, state: str
) -> None:
    row = attention.judge(ranks, NAMES, backend, machine)  # type: ignore[arg-type]
    assert (row.state, bool(row.fix)) == (state, state != "green")
    if ranks == [LOADS, BROKEN]:
        assert row.found == "rank 1 (b): does not load" and "torch==2.10.0" in row.fix
    if not ranks[0][0] and state == "yellow":
        assert row.found.startswith("no GPU: torch's attention would be used")


def test_a_resnet_has_no_attention() -> None:
    run = config("moco/demo", "model.name=spec_resnet50")
    assert attention.check(SimpleNamespace(config=run)).state == "green"  # type: ignore[arg-type]


# ---- the compiler ----


@pytest.mark.parametrize(
    ("ranks", "setting", "state"),
    [
        ([(True, ""), (True, "")], "auto", "green"),
        ([(True, ""), (True, "no compiler")], "auto", "red"),
        ([(True, ""), (True, "no compiler")], False, "green"),
        ([(False, "no compiler"), (False, "")], "auto", "green"),
        ([(False, ""), (False, "no compiler")], True, "red"),
    ],
)
def test_a_compiler_that_is_missing_is_red_where_it_is_used(ranks: list, setting: bool | str, state: str) -> None:
    row = compiler.judge(ranks, NAMES, setting)  # type: ignore[arg-type]
    assert row.state == state
    assert row.found == "rank 1 (b): no compiler" if state == "red" else not row.fix


# ---- the network ----


@pytest.mark.parametrize(
    ("fastest", "on_gpu", "hosts", "state"),
    [
        (360, True, 1, "green"),
        (9, True, 1, "red"),
        (9, True, 2, "green"),
        (4, True, 2, "red"),
        (0.1, False, 2, "green"),
    ],
)
def test_bandwidth_has_a_floor_on_gpus_alone(fastest: float, on_gpu: bool, hosts: int, state: str) -> None:
    rates = {(name, mib): fastest * mib / 256 for name in ("all-reduce", "all-gather") for mib in (1, 32, 256)}
    row = network.judge_bandwidth(rates, on_gpu, hosts, "nccl")
    assert row.state == state
    assert "at 1/32/256 MiB" in row.found


def test_the_slower_collective_decides() -> None:
    rates = {("all-reduce", 1): 300.0, ("all-gather", 1): 3.0}
    assert network.judge_bandwidth(rates, True, 1, "nccl").state == "red"


def test_a_clock_that_is_off_names_its_rank() -> None:
    names = ["rank 0 (a)", "rank 1 (b)", "rank 2 (c)"]
    assert network.judge_clocks([(0.002, 1e-4), (-0.004, 1e-4)], names).state == "green"
    row = network.judge_clocks([(0.002, 1e-4), (-3.0, 1e-4)], names)
    assert row.state == "red"
    assert "rank 2 (c) is 3 s behind rank 0 (a)" in row.found


# ---- disks and data ----


def test_room_is_for_the_kept_checkpoints_and_one_more() -> None:
    run = config("mae/demo", "checkpoint.keep=3")
    need = 4 * 12 * 10**9
    assert disk.judge_room(10**9, need, 0, run).state == "green"
    assert disk.judge_room(10**9, need - 10**9, 2 * 10**9, run).state == "green"  # what lies there will be replaced
    row = disk.judge_room(10**9, need - 3 * 10**9, 0, run)
    assert row.state == "red" and row.fix == "free 3.0 GB, or lower checkpoint.keep"


def test_bytes_of_a_checkpoint_follow_optimizer_and_momentum_network() -> None:
    sizes = {
        name: disk.checkpoint_bytes(1, config(f"{name}/demo", "optim.name=adamw")) for name in ("mae", "moco", "dino")
    }
    assert sizes == {"mae": 12, "moco": 16, "dino": 16}
    assert disk.checkpoint_bytes(1, config("mae/demo", "optim.name=sgd")) == 8


@pytest.mark.parametrize("path", ["mae/demo", "moco/demo", "dino/demo"])
def test_weights_are_counted_without_building_them(path: str) -> None:
    from pretrain.models.normalize import Normalizer
    from pretrain.objectives import build_objective

    run, bands = config(path), 202
    columns = dict.fromkeys(("wavelength_nm", "fwhm_nm", "mean", "std"), [1.0] * bands)
    manifest = SimpleNamespace(tile_shape=(bands, 128, 128), **columns)
    module = build_objective(run, Normalizer([1.0] * bands, [1.0] * bands), [manifest]).module  # type: ignore[list-item]
    assert disk.count_weights(run, bands) == sum(weight.numel() for weight in module.parameters())


def test_the_nearest_folder_above_a_run_that_is_there(tmp_path) -> None:
    assert disk.nearest_existing(tmp_path / "runs" / "a") == tmp_path
    assert disk.nearest_existing(tmp_path) == tmp_path


def test_other_contents_on_one_rank_are_red() -> None:
    same = data.Opened("c" * 64, tiles=10, chosen=8, shards=3, size=10**9, read=8)
    row = data.judge_shards([same, same], NAMES, "/data")
    assert row.state == "green" and "8 of 10 tiles in the view" in row.found and "16 tiles read" in row.found
    other = data.Opened("d" * 64, tiles=10, chosen=8, shards=3, size=10**9, read=8)
    row = data.judge_shards([same, other], NAMES, "/data")
    assert row.state == "red" and "rank 1 (b) has content dddddddddddd, rank 0 (a) cccccccccccc" in row.found


def test_every_source_has_a_row_of_its_own() -> None:
    rows = {name: arguments for name, _, arguments in check_rows(config())}
    assert rows["shards"] == ()
    several = "data={sources: [{shards: a, weight: 2}, {shards: b/c, name: region}]}"
    rows = {name: arguments for name, _, arguments in check_rows(config("mae/demo", several))}
    assert "shards" not in rows
    assert [rows[f"shards {name}"][0].shards for name in ("a", "region")] == ["a", "b/c"]


def test_the_tightest_rank_decides_about_the_loader() -> None:
    tile = 2 * 202 * 128 * 128
    quick, slow = loader.Rates(2000, 324, 989e12), loader.Rates(200, 324, 989e12)
    assert loader.judge([quick, quick], NAMES, tile, config()).state == "green"
    row = loader.judge([quick, slow], NAMES, tile, config())
    assert row.state == "red"
    assert "200 samples/s (1.3 GB/s) with 1 threads on rank 1 (b)" in row.found
    assert "needs 324 samples/s (2.1 GB/s) at 40% of 989 TFLOP/s" in row.found
    staged = loader.judge([slow], NAMES[:1], tile, config("mae/demo", "data.stage=/scratch"))
    assert staged.state == "yellow"  # copies are read faster than what was measured

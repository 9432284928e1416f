"""The planner: NCCL's model by hand, activations affine in the micro batch, what fits and why, advice that loads."""

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

import pytest
from support.commands import refused
from support.tiles import write_archive
from torch._subclasses.fake_tensor import FakeTensorMode

from launch.plan import main
from launch.planner import activations, goodput
from launch.planner.activations import trace_activations
from launch.planner.host_time import REDUCED_SHARD
from launch.planner.loader import RATES, SIZES, Tiles, known_mixture, known_tiles, reading
from launch.planner.machines import MACHINES
from launch.planner.memory import Layout, peak_memory, snapshot_bytes, states
from launch.planner.network import Cluster, collective_seconds, step_rounds
from launch.planner.report import answers
from launch.planner.search import Problem, every_plan, micro_batches
from launch.planner.step_time import default_rates, step_time
from pretrain.config import PretrainConfig
from pretrain.config.data import DataConfig
from pretrain.models import published
from pretrain.registries import STEMS
from shards.config import dump_config, load_config
from shards.errors import ConfigError
from shards.format.codec_registry import PRESETS
from shards.pack.build import PackConfig, pack

TINY = {
    "run": {"dir": "runs/planned"},
    "data": {"shards": "nowhere"},
    "augment": {"crop_scale": None},
    "model": {"name": "spec_vit_tiny", "image_size": 32, "bn_group": 4},
    "objective": {"mask_ratio": 0.75, "decoder": {"width": 64, "depth": 2, "heads": 2}},
    "train": {"steps": 100, "global_batch": 64, "micro_batch": 8},
    "engine": {"precision": "fp32"},
}
NODE = Cluster(MACHINES["h100"], 1, 8)


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Iterator[None]:
    """Trace each model once, with few blocks: tracing takes seconds, and depends on no other part of a config."""
    kept: dict[str, activations.Activations] = {}

    def trace(config: PretrainConfig, *options: object) -> activations.Activations:
        key = f"{config.model} {config.objective} {config.augment} {config.engine} {options}"
        if key not in kept:
            kept[key] = trace_activations(config, *options)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "trace_activations", trace)
        for name, depth in {"spec_vit_tiny": 4, "spec_vit_base": 1}.items():
            patch.setitem(published.SPEC_VITS, name, replace(published.SPEC_VITS[name], depth=depth))
        yield


@pytest.fixture(scope="module")
def config() -> PretrainConfig:
    return PretrainConfig.model_validate(TINY)


@pytest.fixture(scope="module")
def problem(config) -> Problem:
    traces = {on: activations.trace_activations(config, 202, on, "cuda") for on in (False, True)}
    return Problem(config, NODE, default_rates(NODE, "fp32"), traces, 202)


@pytest.fixture
def written(tmp_path, config):
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config))
    return path


# ---- network ----


def test_collectives_take_what_nccls_model_says():
    """A gigabyte over NVLink is all bandwidth; a kilobyte is all latency, and by the protocol of least."""
    large = 8.4e-6 + 7 * 3.4e-6 + 1e9 * 7 / 8 / 361e9
    assert collective_seconds("all_gather", 1e9, NODE) == pytest.approx(large)
    small = 6.6e-6 + 7 * 0.6e-6 + 1e3 * 7 / 8 / (361e9 * 0.25)
    assert collective_seconds("reduce_scatter", 1e3, NODE) == pytest.approx(small)
    assert collective_seconds("all_reduce", 1e3, NODE) == pytest.approx(2 * small - 6.6e-6)
    assert collective_seconds("all_gather", 1e9, replace(NODE, gpus=1)) == 0.0
    nodes = Cluster(MACHINES["h100"], 4, 8, net=50e9)
    far = 8.4e-6 + 28 * 3.4e-6 + 3 * 14e-6 + 1e9 * 31 / 32 / 50e9
    assert collective_seconds("all_gather", 1e9, nodes) == pytest.approx(far)


def test_stage_three_gathers_in_each_micro_batch_what_it_has_not_kept():
    gathers, scatters = step_rounds(3, 2_000_000_000, 2, 2, 4, 50_000_000, 100_000_000)
    assert gathers.size == 4 * 2 * 2_000_000_000 * (2 - 0.25)
    assert gathers.count == 4 * (20 + 15)
    assert (scatters.count, scatters.size) == (4 * 40, 4 * 2 * 2_000_000_000)
    (reduces, once) = step_rounds(1, 2_000_000_000, 2, 2, 4, 50_000_000, 0)
    assert (reduces.kind, reduces.count) == ("all_reduce", 40)
    assert once.size == 2 * 2_000_000_000
    assert step_rounds(2, 2_000_000_000, 2, 2, 4, 50_000_000, 0)[0].count == 160


# ---- memory ----


@pytest.mark.nightly
def test_activations_are_affine_in_the_micro_batch(config, problem):
    predicted = problem.traces[False].phases(24)
    with activations._sizes_of_parts("cuda"), FakeTensorMode():
        measured = list(activations.trace_phases(activations.build_module(config, 202), config, 202, 24, "cuda"))
    for one, other in zip(predicted, measured, strict=True):
        assert one.peak == pytest.approx(other.peak, rel=0.01, abs=1e5)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton has no wheel for this platform")
@pytest.mark.nightly
def test_a_stem_that_is_recomputed_by_kernels_needs_less_memory():
    """Torch unfolds the spectra for it, in more memory than all that activation checkpointing keeps."""

    peaks = []
    for kernel in ("auto", "eager"):
        engine = {"precision": "autocast", "stem_kernel": kernel}
        config = PretrainConfig.model_validate(TINY | {"engine": engine})
        peaks.append(trace_activations(config, 202, True, "cuda").peak(32))
    assert peaks[0] < peaks[1]


def test_checkpointing_and_stages_save_what_they_promise(config, problem):
    plain, again = (problem.traces[on].phases(32)[0].peak for on in (False, True))  # of the forward pass
    assert again < 0.85 * plain  # of four blocks; the stem's share stays
    weights, parts = problem.traces[False].weights, {}
    for stage in (1, 2, 3):
        parts[stage] = states(weights, config.optim, config.engine, Layout(stage, "bf16", 8, "cuda"))
    assert parts[1]["optimizer"] == parts[3]["optimizer"] == 8 * -(-weights.total // 8)
    assert parts[1]["weights"] == 2 * weights.total
    assert parts[3]["weights"] == 2 * -(-weights.total // 8)
    held = snapshot_bytes(weights, config.optim, Layout(2, "bf16", 8, "cuda"))
    assert held == parts[2]["master"] + parts[2]["optimizer"] + weights.buffers
    layouts = [Layout(3, "fp32", world, "cuda") for world in (4, 8)]
    four, eight = (peak_memory(config, problem.traces[False], one, 8, 202).total for one in layouts)
    assert eight < four


def test_what_does_not_fit_says_what_is_in_the_way(problem):
    totals = sorted(plan.moment.total for plan in every_plan(problem))
    memory = totals[len(totals) // 2] / 0.94
    plans = every_plan(replace(problem, cluster=replace(NODE, machine=replace(NODE.machine, memory=memory))))
    missing = [plan for plan in plans if plan.reason]
    assert missing and not all(plan.reason for plan in plans)
    assert all(plan.moment.total > 0.94 * memory for plan in missing)
    assert "GB too much; the largest part is" in missing[0].reason
    fitting = [plan.time.tiles_per_s for plan in plans if not plan.reason]
    assert fitting == sorted(fitting, reverse=True)


def test_micro_batches_come_out_whole(config):
    assert micro_batches(config, 2) == [4, 8, 16, 32]
    with pytest.raises(ConfigError, match=r"a multiple of 32 GPUs x model.bn_group 4; the nearest above is 128"):
        micro_batches(config, 32)


# ---- time ----


def test_a_step_takes_the_longer_of_device_and_host(problem):
    small, large = problem.plan(1, False, 4).time, problem.plan(1, False, 8).time
    assert small.seconds == small.host > small.device  # a tiny model's kernels are shorter than their launches
    assert large.host == pytest.approx(small.host / 2, rel=0.05)  # half of the micro batches


def test_cutting_gradients_for_many_processes_ends_zero_3(problem):
    """The host's share grows with the processes at stage 3 alone."""
    few, many = (problem.plan(3, False, 8, world).time.host for world in (8, 1024))
    tensors = len(problem.traces[False].weights.elements)
    assert many - few == pytest.approx(REDUCED_SHARD * tensors * (1024 - 8))
    assert problem.plan(1, False, 8, 1024).time.host == problem.plan(1, False, 8, 8).time.host
    cluster = replace(NODE, nodes=32)
    config = problem.config.model_copy(update={"train": problem.config.train.model_copy(update={"global_batch": 2048})})
    wide = replace(problem, config=config, cluster=cluster)
    plans = every_plan(wide)
    assert plans[0].stage < 3
    tiles = Tiles("compact", 2.5e6, 200.0, "test")
    said = next(line for line in answers(plans, wide, tiles, 20e9) if line.startswith("Does the host keep up?"))
    assert "cutting gradients for 256 processes alone would take" in said and said.endswith("use stage 1 or 2.")


def test_kernels_of_our_own_move_less_than_the_traced_operations(config):
    half = config.model_copy(update={"engine": config.engine.model_copy(update={"precision": "autocast"})})
    trace = trace_activations(half, 202, False, "cuda")
    layout, rates = Layout(1, "autocast", 8, "cuda"), default_rates(NODE, "autocast")
    angled = half.model_copy(update={"objective": half.objective.model_copy(update={"spectral_angle": 0.1})})
    fused, traced = (step_time(one, 202, trace, layout, NODE, rates).parts["loss"] for one in (half, angled))
    assert 0 < fused < traced


def test_a_stem_by_wavelength_is_planned_and_takes_less_memory(config, problem):
    wave = config.model_copy(update={"model": config.model.model_copy(update={"stem": STEMS.validate("wave")})})
    trace = trace_activations(wave, 202, False, "cuda")
    moment = peak_memory(wave, trace, Layout(1, "fp32", 8, "cuda"), 8, 202)
    assert moment.total < problem.plan(1, False, 8).moment.total


# ---- reading ----


def test_cores_and_file_systems_are_divided_by_what_gpus_need():
    need = reading(Tiles("compact", 2.5e6, 200.0, "test"), 400.0, 8, 64, 20e9)
    assert (need.gpu, need.node) == (1e9, 8e9)
    assert (need.cores, need.fed) == (16.0, 32.0)
    assert need.nodes == 3  # two nodes ask for 16 GB/s, the third for more than there is


# ---- the command ----


def test_the_advice_answers_and_loads(written, tmp_path, capsys):
    dest = tmp_path / "planned.yaml"
    assert main(["--config", str(written), "--gpus", "1x8", "--gpu", "h100", "--write", str(dest)]) == 0
    said = capsys.readouterr().out
    for question in (
        "Does spec_vit_tiny fit on 8 x H100 80 GB? Yes",
        "Is ZeRO-3 worth it here?",
        "Does the host keep up?",
        "How many GPUs can a node's cores feed?",
        "From how many nodes does the file system limit?",
        "Where does ZeRO-3 stop scaling?",
    ):
        assert question in said
    advice = dict(one.split("=") for one in said.split("Use: ")[1].split("\n")[0].split())
    planned = load_config(dest, [], PretrainConfig)
    assert planned.engine.zero_stage == int(advice["engine.zero_stage"])
    assert planned.train.micro_batch == int(advice["train.micro_batch"])
    assert planned.engine.activation_checkpointing == advice["engine.activation_checkpointing"]
    assert planned.train.global_batch == 64


def test_a_year_compares_ways_to_save_and_to_restart(written, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(goodput, "REPETITIONS", 2)
    plot = tmp_path / "year.png"
    assert main(["--config", str(written), "--gpus", "2x8", "--simulate", "--spares", "2", "--plot", str(plot)]) == 0
    table = capsys.readouterr().out.split("A year on 2 x 8 H100 80 GB")[1].splitlines()
    assert [line.split("  ")[1] for line in table[2:5]] == [
        "synchronous saves",
        "asynchronous saves",
        "asynchronous saves, spares: 2",
    ]
    assert "Of synchronous saves by formula: Young" in table[5]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "add --simulate" in refused(main, capsys, "--config", str(written), "--plot", str(plot))
    elsewhere = str(tmp_path / "none" / "year.png")
    assert "create it first" in refused(main, capsys, "--config", str(written), "--simulate", "--plot", elsewhere)


def test_what_fits_on_no_gpu_is_an_error(written, capsys):
    large = ["model.name=spec_vit_base", "engine.precision=bf16", "engine.zero_stage=3", "train.global_batch=64"]
    custom = ["--gpu", "custom", "--gpu-memory", "1", "--gpu-tflops", "100", "--gpu-hbm", "1000"]
    rest = ["--gpu-nvlink", "50", "--gpu-nic", "10", "--gpus", "1x1"]
    assert main(["--config", str(written), *large, *custom, *rest]) == 1
    out = capsys.readouterr()
    assert "Does spec_vit_base fit on 1 x custom GPU? No" in out.out
    assert "error: no layout of spec_vit_base fits" in out.err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--gpu", "h10"], "--gpu h10: did you mean h100?"),
        (["--gpus", "8"], "--gpus 8: expected NODESxGPUS, such as 4x8"),
        (["--gpus", "0x8"], "--gpus 0x8: expected NODESxGPUS"),
        (["--gpu", "custom"], "--gpu custom needs --gpu-memory"),
        (["--gpu-memory", "80"], "--gpu-memory: it applies only to --gpu custom"),
        (["--gpus", "3x8"], "train.global_batch 64 must be a multiple of 24 GPUs x model.bn_group 4"),
        (["--stream", "absent.json"], "--stream absent.json: can't read it"),
    ],
)
def test_misuse_is_one_line(arguments, error, written, capsys):
    assert error in refused(main, capsys, "--config", str(written), *arguments)


def test_a_plan_needs_no_shards(config, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ARCHIVE_THAT_IS_ELSEWHERE", raising=False)
    path = tmp_path / "published.yaml"
    path.write_text(dump_config(config).replace("nowhere", "${ARCHIVE_THAT_IS_ELSEWHERE}"))
    assert main(["--config", str(path), "--gpus", "1x8"]) == 0
    assert "assumed: compact tiles of SpectralEarth" in capsys.readouterr().out
    unwritable = refused(main, capsys, "--config", str(path), "--write", str(tmp_path / "planned.yaml"))
    assert "--write needs a config whose data.shards is known" in unwritable
    with pytest.raises(ConfigError, match="ARCHIVE_THAT_IS_ELSEWHERE, which is not set"):
        load_config(path, [], PretrainConfig)


def test_sources_are_averaged_by_weight(tmp_path):
    for name, size in (("large", 24), ("small", 8)):
        write_archive(tmp_path / name / "tiles", size=size)
        pack(tmp_path / name / "tiles", tmp_path / name / "shards", PackConfig())
    folders = [str(tmp_path / name / "shards") for name in ("large", "small")]
    large, small = (known_tiles(folder, "fast", None)[0] for folder in folders)
    sources = [{"shards": folders[0], "weight": 3, "name": "a"}, {"shards": folders[1], "name": "b"}]
    found, bands = known_mixture(DataConfig.model_validate({"sources": sources}), "fast", None)
    assert found.size == pytest.approx((3 * large.size + small.size) / 4)
    assert (found.preset, bands) == ("compact", 202)
    assert all(folder in found.source for folder in folders)


def test_every_preset_has_a_size_and_a_rate(tmp_path):
    assert RATES.keys() == SIZES.keys() == PRESETS.keys()
    write_archive(tmp_path / "tiles")
    pack(tmp_path / "tiles", tmp_path / "shards", PackConfig(codec="smallest"))
    found = known_tiles(str(tmp_path / "shards"), "raw", None)[0]
    assert (found.preset, found.per_core) == ("smallest", RATES["smallest"])
    assert known_tiles("nowhere", "smallest", None, "device")[0].per_core == RATES["smallest"]  # decoded on the host


def test_a_plan_of_several_sources_needs_no_shards(config, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ARCHIVE_THAT_IS_ELSEWHERE", raising=False)
    path = tmp_path / "sources.yaml"
    sources = "sources: [{shards: '${ARCHIVE_THAT_IS_ELSEWHERE}/a'}, {shards: '${ARCHIVE_THAT_IS_ELSEWHERE}/b'}]"
    path.write_text(dump_config(config).replace("shards: nowhere", sources).replace("  sources: []\n", ""))
    assert main(["--config", str(path), "--gpus", "1x8"]) == 0
    unwritable = refused(main, capsys, "--config", str(path), "--write", str(tmp_path / "planned.yaml"))
    assert "--write needs a config whose data.sources.0.shards is known" in unwritable


def test_other_objectives_are_refused(config, tmp_path, capsys):
    path = tmp_path / "dino.yaml"
    path.write_text(dump_config(PretrainConfig.model_validate(TINY | {"objective": {"name": "dino"}})))
    assert "objective.name dino: the planner supports only mae" in refused(main, capsys, "--config", str(path))


def test_a_device_that_decodes_leaves_cores_free_and_takes_memory(config, problem, tmp_path):
    host, device = (known_tiles("nowhere", "compact", None, decode)[0] for decode in ("host", "device"))
    assert device.per_core > host.per_core
    assert known_tiles("nowhere", "raw", None, "device") == known_tiles("nowhere", "raw", None)
    stream = tmp_path / "stream.json"
    rows = [
        {"name": f"ours fast, 1 thread{planes}", "tiles_per_s": rate} for planes, rate in (("", 5), (", planes", 9))
    ]
    stream.write_text(json.dumps(rows))
    rates = [known_tiles("nowhere", "fast", stream, decode)[0].per_core for decode in ("host", "device")]
    assert rates == [5, 9]
    decoding = config.model_copy(update={"data": config.data.model_copy(update={"decode": "device"})})
    layout = Layout(1, "fp32", 8, "cuda")
    moments = [peak_memory(each, problem.traces[False], layout, 8, 202) for each in (config, decoding)]
    inputs = [moment.parts["inputs"] for moment in moments]
    assert inputs[1] - inputs[0] == 8 * 2 * 202 * 32**2

"""A second start: what has changed is evaluated again and said, and nothing else is."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from support.evaluation_runs import collect_reports
from support.hub_server import HubServer, set_endpoint
from support.small_encoder import SIZE, small_description, small_encoder

from finetune.config import FinetuneConfig
from finetune.data import code_version
from finetune.encoders.model_file import load_task_model
from finetune.evaluate import Evaluator
from finetune.evaluation.results import RunResults, read_part, read_results, write_part
from finetune.metrics.calibration import calibration_error
from finetune.report.page import page
from finetune.report.same_place import same_place_table
from finetune.report.shift import shift_table
from finetune.tasks import dump_task, get_task
from pretrain.models.initialize import initialize
from pretrain.models.registry import build_encoder
from pretrain.resilience.signals import StopRequest
from pretrain.resilience.watchdog import Watchdog
from pretrain.weights.files import save_encoder
from shards.config import load_config
from shards.errors import ConfigError
from tools.sample_tasks import make_task_sample

Start = Callable[..., tuple[RunResults, str]]
SMALL = {
    "run.threads": 1,
    "protocol": "[frozen]",
    "seeds": "[0]",
    "frozen.epochs": 1,
    "frozen.views": 1,
    "frozen.batch": 4,
    "frozen.lrs": "[1e-3]",
    "frozen.heads": "[linear]",
    "compare_random": "false",
    "data.bands": "native",
}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten tiles of a task of one's own, and two encoders."""
    folder = tmp_path_factory.mktemp("sample")
    task = get_task("enmap_nlcd")
    make_task_sample(folder, task, tiles=10, size=8)
    (folder / "task.yaml").write_text(dump_task(task))
    for seed in (1, 2):
        (folder / str(seed)).mkdir()
        save_encoder(folder / str(seed) / "encoder.safetensors", small_encoder(seed).state_dict(), small_description())
    return folder


@pytest.fixture
def start(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Start:
    """Starts an evaluation of a copy of the sample in one run folder; gives its results and what it said."""
    data = tmp_path / "data"
    shutil.copytree(sample, data)

    def run(folder: Path = data, **changes: object) -> tuple[RunResults, str]:
        paths = {"run.dir": tmp_path / "run", "data.root": folder, "data.splits": folder / "splits" / "enmap_nlcd"}
        task = {"task": folder / "task.yaml", "checkpoint": folder / "1" / "encoder.safetensors"}
        values = SMALL | paths | task | {key.replace("__", "."): value for key, value in changes.items()}
        base = tmp_path / "base.yaml"
        base.write_text("{}")
        config = load_config(base, [f"{key}={value}" for key, value in values.items()], FinetuneConfig)
        watchdog = Watchdog(config.watchdog, tmp_path / "run", StopRequest())
        capsys.readouterr()
        evaluator = Evaluator(config, watchdog)
        assert evaluator.evaluate()
        evaluator.run = None  # leaves the folder's lock to the next start
        return read_results(tmp_path / "run"), capsys.readouterr().out

    run.data = data  # type: ignore[attr-defined]
    return run


def _scores(run: RunResults) -> list[float]:
    return [one.test["mIoU"] for one in run.results]


def _weights(run: Path) -> dict[str, bytes]:
    weights = load_task_model(run / "model.safetensors").state_dict()
    return {name: one.numpy().tobytes() for name, one in weights.items()}


def _labels(folder: Path) -> list[Path]:
    task = get_task("enmap_nlcd")
    assert task.layout is not None and task.layout.labels is not None
    return sorted((folder / task.layout.folder / task.layout.labels).rglob("*.tif"))


def test_what_changed_is_evaluated_again_and_named_and_nothing_else(start, tmp_path):
    data: Path = start.data
    before, _ = start(protocol="[knn,frozen]")
    _, again = start(protocol="[knn,frozen]")
    assert "evaluated again" not in again
    assert "pretrained-" not in again

    for path in data.rglob("*.tif"):
        path.touch()
    (data / "1" / "encoder.safetensors").rename(data / "1" / "renamed.safetensors")
    moved = data.rename(tmp_path / "moved")
    shutil.copy(moved / "1" / "renamed.safetensors", moved / "1" / "encoder.safetensors")
    same, said = start(moved, protocol="[knn,frozen]")
    assert "pretrained-" not in said
    assert _scores(same) == _scores(before)

    for path in _labels(moved):
        with rasterio.open(path, "r+") as file:
            codes = file.read(1)
            file.write(np.roll(codes, 3, axis=0), 1)
    corrected, said = start(moved, protocol="[knn,frozen]")
    assert "\nlabels changed: pretrained-knn-1 is evaluated again\n" in said
    assert "\nlabels changed: pretrained-frozen-1 is evaluated again\n" in said
    assert _scores(corrected) != _scores(before)
    assert corrected.data["labels"] != before.data["labels"]
    assert corrected.data["images"] == before.data["images"]


def test_a_spectral_shift_is_a_part_for_each_band_set_beside_raw_spectra(start, tmp_path):
    shift = {"shift.test": "[vnir,even]", "protocol": "[knn,shift]", "compare_raw": "true"}
    run, _ = start(**shift)
    found = {(result.encoder, result.protocol): result for result in run.results}
    protocols = ["knn", "shift to all", "shift to vnir", "shift to even"]
    assert list(found) == [(encoder, protocol) for encoder in ("pretrained", "raw") for protocol in protocols]
    for encoder in ("pretrained", "raw"):
        unshifted = found[encoder, "shift to all"]
        assert unshifted.test == found[encoder, "knn"].test
        np.testing.assert_array_equal(unshifted.statistics, found[encoder, "knn"].statistics)
    assert found["pretrained", "shift to vnir"].provenance["test bands"] == "vnir"
    assert (found["pretrained", "shift to vnir"].statistics != found["pretrained", "knn"].statistics).any()
    assert run.encoders["raw"]["name"] == "raw spectra"
    assert run.encoders["pretrained"]["gflops"] > 0
    assert "gflops" not in run.encoders["raw"]
    assert run.distance_km.shape == (len(run.tiles),)
    assert (run.distance_km > 0).all()
    for result in run.results:
        assert 0 < result.test["ECE"] == pytest.approx(calibration_error(result.calibration.sum(0)))
        assert result.calibration[:, 0].sum() == result.statistics.sum()

    (table,) = [shift_table(report) for report in collect_reports(tmp_path / "run")]
    assert table[0] == ["checkpoint", "tiles", "all", "vnir", "even"]
    assert [line[0] for line in table[1:]] == ["1/encoder.safetensors", "raw spectra"]
    assert "%) [" in table[1][3]
    assert "Spectral shift" in page(collect_reports(tmp_path / "run"))

    assert not found["raw", "shift to all"].same_place.size
    assert found["raw", "shift to vnir"].same_place.shape == (len(run.tiles), 6)
    assert found["raw", "shift to even"].test["patch_top1"] > 10 * found["raw", "shift to even"].test["patch_chance"]
    (places,) = [same_place_table(report) for report in collect_reports(tmp_path / "run")]
    assert places[0] == ["checkpoint", "tiles", "measure", "vnir", "even"]
    measures = ["tiles: same place is nearest (by chance 10.0)", "tiles: cosine"]
    measures += ["patches: same place is nearest (by chance 2.5)", "patches: cosine"]
    assert [line[2] for line in places[1:]] == 2 * measures

    _, again = start(**shift | {"shift.test": "[vnir,even,swir]"})
    assert "pretrained-shift_to_swir-1" in again
    assert "pretrained-shift_to_vnir-1" not in again


def test_each_layer_is_a_part_and_heads_on_several_layers_are_trained_beside_others(start, tmp_path):
    heads = "[linear,{name: upernet, hidden: 8, layers: [3, -1]}]"
    probes = {"protocol": "[frozen,layers]", "layers.numbers": "[3,11]", "frozen.heads": heads, "seeds": "[0,1]"}
    run, _ = start(**probes)
    found = {(result.protocol, result.head, result.seed): result for result in run.results}
    names = [("frozen", "linear"), ("frozen", "upernet layers=[3, -1] hidden=8"), ("layer 3", "linear")]
    assert list(found)[:6] == [(names[0][0], head, seed) for seed in (0, 1) for _, head in names[:2]] + [
        (*names[2], seed) for seed in (0, 1)
    ]
    for seed in (0, 1):  # the last layer is the map
        assert found["layer 11", "linear", seed].validation == found["frozen", "linear", seed].validation
    assert found["layer 3", "linear", 0].statistics.sum() == found["layer 11", "linear", 0].statistics.sum()
    assert len(list((tmp_path / "run" / "features").iterdir())) == 3 * 4  # map, two layers, each and both
    model = load_task_model(tmp_path / "run" / "model.safetensors")
    assert model.head_config is not None
    assert model.head_config.name in ("linear", "upernet")
    assert "is best on the validation tiles" in page(collect_reports(tmp_path / "run"))

    _, said = start(**probes | {"layers.numbers": "[3,5,11]"})
    assert "pretrained-layer_5-1" in said
    assert "pretrained-layer_3-1" not in said


def test_baselines_are_one_part_without_an_encoder(start, tmp_path):
    """They learn from a drawn number of pixels, which the results say, and another encoder needs no new part."""
    pytest.importorskip("sklearn")
    models = "[linear,{name: extra_trees, trees: 5, pca: 3}]"
    options = {"protocol": "[baseline,knn]", "baseline.models": models, "baseline.samples": 100, "seeds": "[0,1]"}
    run, _ = start(**options)
    found = {(result.encoder, result.protocol, result.head, result.seed) for result in run.results}
    heads = ("linear", "extra_trees pca=3 trees=5")
    drawn = {("spectra", "baseline", head, seed) for head in heads for seed in (0, 1)}
    assert found == drawn | {("pretrained", "knn", "knn", 0)}
    used, labeled = run.data["baseline samples"]["1"]
    assert used == 100 < labeled
    first, second = (result for result in run.results if result.head == "linear")
    assert first.test != second.test  # of other pixels
    assert first.statistics.sum() == second.statistics.sum()  # on all of the test pixels
    assert all("ECE" in result.test and "ECE" not in result.validation for result in run.results)

    _, said = start(**options, checkpoint=start.data / "2" / "encoder.safetensors")
    assert "pretrained-knn-1 is evaluated again" in said
    assert "spectra-baseline" not in said
    _, said = start(**options | {"baseline.samples": 101})
    assert "samples changed: spectra-baseline-1 is evaluated again" in said


def test_a_python_file_that_encodes_runs_through_frozen_protocols_and_the_report(start, tmp_path):
    file = tmp_path / "foreign.py"
    file.write_text(
        "from torch import nn\n"
        "model = nn.Conv2d(4, 6, 4, 4)\n"
        "nn.init.constant_(model.weight, 0.1), nn.init.zeros_(model.bias)\n"
        "def encode(tiles, wavelengths):\n"
        "    return model(tiles[:, [abs(wavelengths - nm).argmin() for nm in (490, 665, 842, 1610)]])\n"
    )
    options = {"shift.test": "[odd]", "protocol": "[knn,shift,frozen,layers]", "data.bands": "same"}
    options |= {"compare_random": "true", "frozen.heads": "[linear,{name: upernet, hidden: 8}]"}
    run, said = start(**options, checkpoint=file)
    assert "foreign.py has no random-init baseline and no model.safetensors for maps" in said
    protocols = ["knn", "shift to all", "shift to odd", "frozen", "frozen", "layer 0"]  # it is a single layer
    assert [(result.encoder, result.protocol) for result in run.results] == [("pretrained", one) for one in protocols]
    assert run.encoders["pretrained"]["architecture"] == "foreign.py"
    assert run.results[0].test == run.results[1].test
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert "foreign.py" in page(collect_reports(tmp_path / "run"))
    _, said = start(**options, checkpoint=file)
    assert "pretrained-" not in said


def test_an_encoder_by_wavelength_takes_the_bands_of_a_shift_as_they_are(start, tmp_path):
    stem = {"stem": {"name": "wave"}}
    network = build_encoder("spec_vit_tiny", SIZE, 4, **stem)
    initialize(network, "small", 1)
    save_encoder(tmp_path / "wave.safetensors", network.state_dict(), small_description(config={"model": stem}))
    run, _ = start(
        **{"shift.test": "[vnir,random_40]", "protocol": "[knn,shift]", "compare_raw": "true"},
        checkpoint=tmp_path / "wave.safetensors",
    )
    found = {result.protocol: result for result in run.results if result.encoder == "pretrained"}
    np.testing.assert_array_equal(found["shift to all"].statistics, found["knn"].statistics)
    assert (found["shift to vnir"].statistics != found["knn"].statistics).any()
    assert (found["shift to random_40"].statistics != found["knn"].statistics).any()


def test_a_task_file_that_is_edited_in_place_is_another_task(start):
    file: Path = start.data / "task.yaml"
    first, _ = start()
    text = file.read_text()
    name = first.task.outputs[0]
    file.write_text(text.replace(f"name: {name}", "name: something else", 1))
    renamed, said = start()
    assert "task changed: pretrained-frozen-1 is evaluated again" in said
    assert load_task_model(start.data.parent / "run" / "model.safetensors").task == renamed.task
    color = first.task.classes[1].color
    file.write_text(file.read_text().replace(color, "#010203", 1))
    recolored, said = start()
    assert "evaluated again" not in said
    assert recolored.task.classes[1].color == "#010203"
    model = load_task_model(start.data.parent / "run" / "model.safetensors")
    assert model.task == recolored.task


def test_statistics_weights_and_recipe_count_by_their_content(start, tmp_path):
    start()
    statistics = tmp_path / "statistics"
    statistics.mkdir()
    for name, value in (("mu", 1000.0), ("sigma", 500.0)):
        np.save(statistics / f"{name}.npy", np.full(202, value))
    _, said = start(data__statistics=statistics)
    assert "statistics changed: pretrained-frozen-1 is evaluated again" in said
    np.save(statistics / "mu.npy", np.full(202, 1100.0))
    _, said = start(data__statistics=statistics)
    assert "statistics changed: pretrained-frozen-1 is evaluated again" in said
    _, said = start(frozen__epochs=2, data__statistics=statistics)
    assert "epochs changed: pretrained-frozen-1 is evaluated again" in said
    _, said = start(frozen__epochs=2, data__statistics=statistics, checkpoint=start.data / "2" / "encoder.safetensors")
    assert "encoder changed: pretrained-frozen-1 is evaluated again" in said


def test_changed_code_is_evaluated_again_and_a_docstring_is_not(start, tmp_path, monkeypatch):
    start()
    code = tmp_path / "code"
    for name in {*code_version.TUNING, *code_version.READING}:
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(code_version.REPOSITORY / name, code / name)
    monkeypatch.setattr(code_version, "REPOSITORY", code)
    heads = code / "finetune" / "heads" / "dense.py"
    heads.write_text(heads.read_text().replace('"""Heads on', '"""The heads on') + "\n# and no more\n")
    _, said = start()
    assert "evaluated again" not in said
    heads.write_text(heads.read_text() + "\nMORE = 1\n")
    code_version.source_hash.cache_clear()
    _, said = start()
    assert "code (finetune/heads/dense.py) changed: pretrained-frozen-1 is evaluated again" in said
    assert "features of" not in said  # of those, nothing has changed


def test_the_model_is_always_of_the_best_of_the_results(start):
    """Weights of an earlier setting are not kept for a model of this one, whatever they scored."""
    run = start.data.parent / "run"

    def of(number: int) -> dict[str, object]:
        return {"checkpoint": start.data / str(number) / "encoder.safetensors"}

    start(**of(1))
    first = _weights(run)
    start(**of(2))
    assert _weights(run) != first
    _, said = start(**of(1))
    assert (
        "model.safetensors doesn't hold the best result: pretrained-frozen-1 is evaluated again to get its weights"
        in said
    )
    assert _weights(run) == first
    _, said = start(protocol="[knn]", **of(1))
    assert "evaluated again" not in said
    _, said = start(**of(1))
    assert "evaluated again" not in said
    (run / "model.safetensors").unlink()
    start(**of(1))
    assert _weights(run) == first


def test_parts_of_an_earlier_version_are_done_again_and_said(start):
    start()
    run = start.data.parent / "run"
    for path in (run / "parts").glob("pretrained-*.npz"):
        found = read_part(path)
        assert found is not None
        path.unlink()
        old = path.with_name(f"{path.stem.rpartition('-')[0]}-9a95a32d.npz")
        write_part(old, [replace(one, provenance={}) for one in found])
    _, said = start()
    assert "version changed: pretrained-frozen-1 is evaluated again" in said


def test_an_encoder_of_the_hub_is_the_same_as_its_file(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECTRALFORGE_CACHE", str(tmp_path / "cache"))
    before, _ = start()
    with HubServer("lab/encoder", start.data / "1") as server:  # type: ignore[attr-defined]
        set_endpoint(monkeypatch, server.url)
        after, _ = start(checkpoint="hf://lab/encoder")
        assert server.requests["/lab/encoder/resolve/main/encoder.safetensors"] == 1
    assert after.encoders["pretrained"] == before.encoders["pretrained"] | {"name": "lab/encoder"}
    assert [one.test for one in after.results] == [one.test for one in before.results]


def test_each_seed_draws_few_shots_of_its_own(start):
    options = {"fractions": "[]", "shots": "[1]", "seeds": "[0,1,2]"}
    run, said = start(**options, protocol="[knn,frozen]")
    assert "shots: fewer than" not in said
    for protocol in ("knn", "frozen"):
        found = [one for one in run.results if one.protocol == protocol]
        assert [(one.seed, one.shots) for one in found] == [(0, 1), (1, 1), (2, 1)]
        assert len({one.fraction for one in found}) > 1
        assert min(one.fraction for one in found) < 1
        assert found[0].provenance == found[1].provenance == found[2].provenance
    more, again = start(**options | {"shots": "[1,2]"}, protocol="[knn]")
    assert "shots: fewer than 2 places have" in again
    assert "pretrained-knn-2-shot" in again
    assert "pretrained-knn-1-shot" not in again  # reused
    assert len({one.provenance["training windows"] for one in more.results}) == 2


def test_few_shots_of_targets_are_refused(start, sample):
    with pytest.raises(
        ConfigError, match="key 'shots': task sample_greenness has targets and no classes: use fractions"
    ):
        start(task="sample_greenness", shots="[1]")


def test_low_rank_updates_of_an_encoder_without_attention_are_refused(start, monkeypatch):
    monkeypatch.setattr("finetune.evaluate.has_attention", lambda encoder: False)
    with pytest.raises(ConfigError, match="key 'protocol': lora needs an encoder with attention"):
        start(protocol="[lora]")

"""Which checkpoints a run continues: none that was trained on other places."""

import hashlib

import pytest
from support.objectives import small_config

from pretrain.checkpointing.checkpoint import CheckpointError
from pretrain.checkpointing.mixture import Mixture, MixtureSource
from pretrain.checkpointing.resume import _announce_rates, _check_bands_fit, _check_same_run, _check_same_structure
from pretrain.config import PretrainConfig

CENTERS = [400.0 + 10 * band for band in range(80)]


def _state(config, **data):
    return {"config": config.model_dump(mode="json"), "step": 10, "data": {"content_hash": "d", **data}}


def _changed(config, **sections) -> PretrainConfig:
    """The config with other values in some sections, or of top-level keys."""
    values = config.model_dump()
    for name, change in sections.items():
        values[name] = values[name] | change if isinstance(change, dict) else change
    return PretrainConfig.model_validate(values)


@pytest.fixture
def config(tmp_path):
    config = small_config({"mask_ratio": 0.5})
    return config.model_copy(update={"data": config.data.model_copy(update={"holdout": 0.1})})


def test_the_same_places_are_continued(config, tmp_path):
    _check_same_run(_state(config, held_out="h"), config, "d", "h", tmp_path)


@pytest.mark.parametrize("told", [{}, {"held_out": "other"}])
def test_other_places_are_refused_until_they_are_accepted(config, tmp_path, capsys, told):
    """Earlier versions, which tell nothing, held out an exact number of places: other ones."""
    with pytest.raises(CheckpointError, match=r"data\.holdout differs .*add checkpoint\.accept=\[data\.holdout\]"):
        _check_same_run(_state(config, **told), config, "d", "h", tmp_path)
    accepting = config.model_copy(
        update={"checkpoint": config.checkpoint.model_copy(update={"accept": ("data.holdout",)})}
    )
    _check_same_run(_state(config, **told), accepting, "d", "h", tmp_path)
    assert "WARNING: data.holdout differs" in capsys.readouterr().out


def test_a_run_that_holds_nothing_out_continues_from_any_version(config, tmp_path):
    config = config.model_copy(update={"data": config.data.model_copy(update={"holdout": 0.0})})
    _check_same_run(_state(config), config, "d", "h", tmp_path)


# ---- what no checkpoint can follow ----

MOCO = {"name": "moco", "queue": 8}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {"patch_size": 2}}, "model.patch_size differs (4 then, 2 now)"),
        ({"model": {"name": "spec_vit_small"}}, "model.name differs (spec_vit_tiny then, spec_vit_small now)"),
        (
            {"objective": {"decoder": {"width": 64, "depth": 1, "heads": 2}}},
            "objective.decoder.width differs (512 then",
        ),
    ],
)
def test_other_weights_are_refused_with_a_way_that_works(config, tmp_path, change, says):
    """Accepting them would end in the same refusal."""
    accepting = _changed(config, checkpoint={"accept": ("model", "objective")}, **change)
    with pytest.raises(CheckpointError) as raised:
        _check_same_structure(_state(config), accepting, tmp_path)
    text = str(raised.value)
    assert says in text
    assert f"init={tmp_path}" in text if "objective" in change else "start over in another run.dir" in text
    assert "accept" not in text


def test_another_objective_begins_a_new_run_with_this_encoder(config, tmp_path):
    other = config.model_copy(update={"objective": small_config(MOCO).objective})
    with pytest.raises(
        CheckpointError, match=r"objective.name differs \(mae then, moco now\).*another run.dir and init="
    ):
        _check_same_structure(_state(config), other, tmp_path)


def _one(sensor, wavelength_nm) -> Mixture:
    return Mixture((MixtureSource("tiles", 1, "d", "h", sensor, wavelength_nm),), None)


def test_tiles_of_another_number_of_bands_are_refused_where_weights_are_for_one(config, tmp_path):
    state = _state(config, sensor="enmap", wavelength_nm=CENTERS)
    _check_bands_fit(state, config, _one("enmap", CENTERS), tmp_path)
    with pytest.raises(CheckpointError, match=r"78 bands \(prisma\), but the run has 80 \(enmap\).*accept=\[init\]"):
        _check_bands_fit(state, config, _one("prisma", CENTERS[2:]), tmp_path)
    moco = small_config(MOCO)
    _check_bands_fit(_state(moco, wavelength_nm=CENTERS), moco, _one("prisma", CENTERS[2:]), tmp_path)


def test_an_encoder_by_wavelength_goes_on_with_any_bands(config, tmp_path):
    wave = _changed(config, model={"stem": {"name": "wave"}})
    state = _state(wave, sensor="enmap", wavelength_nm=CENTERS)
    _check_bands_fit(state, wave, _one("prisma", CENTERS[2:]), tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"image_size": 16, "bn_group": 4, "attention": "math"}},
        {"optim": {"name": "sgd"}},
        {"engine": {"precision": "fp32", "zero_stage": 0}},
        {"objective": {"mask_ratio": 0.75, "norm_pix": False}},
    ],
)
def test_what_a_checkpoint_can_follow_is_not_refused(config, tmp_path, change):
    _check_same_structure(_state(config), _changed(config, **change), tmp_path)


# ---- the file that a run began from ----


def test_another_file_to_begin_from_is_another_run(config, tmp_path, capsys):
    begun = _changed(config, init="a.safetensors")
    state = _state(begun, held_out="h") | {"init": {"sha256": "0" * 64}}
    _check_same_run(state, begun, "d", "h", tmp_path)  # the file is neither read nor there
    for other, now in (("b.safetensors", "b.safetensors"), (None, "None")):
        with pytest.raises(CheckpointError, match=rf"init differs \(a.safetensors then, {now} now\)"):
            _check_same_run(state, _changed(config, init=other), "d", "h", tmp_path)
    with pytest.raises(CheckpointError, match=r"init differs \(None then, a.safetensors now\)"):
        _check_same_run(_state(config, held_out="h"), begun, "d", "h", tmp_path)
    accepting = _changed(config, init="b.safetensors", checkpoint={"accept": ("init",)})
    _check_same_run(state, accepting, "d", "h", tmp_path)


def test_a_file_that_was_moved_is_the_same(config, tmp_path):
    (tmp_path / "moved.safetensors").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    state = _state(_changed(config, init="a.safetensors"), held_out="h") | {"init": {"sha256": digest}}
    _check_same_run(state, _changed(config, init=str(tmp_path / "moved.safetensors")), "d", "h", tmp_path)


# ---- the schedule ----


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train": {"steps": 100}}, "9.01e-05 before, 9.75e-05 now: the schedule covers 100 steps (50 before)"),
        ({"optim": {"lr": 2e-4}}, "9.01e-05 before, 0.00018 now: the schedule covers 50 steps"),
        ({"optim": {"warmup_steps": 20}}, "9.01e-05 before, 5.5e-05 now"),
        ({"train": {"global_batch": 8}, "optim": {"reference_batch": 4}}, "9.01e-05 before, 0.00018 now"),
    ],
)
def test_a_schedule_that_changes_says_where_the_rate_goes_on(config, capsys, change, says):
    _announce_rates(_state(config), _changed(config, **change))
    assert f"learning rate at step 10: {says}" in capsys.readouterr().out


def test_a_finished_run_that_goes_on_says_what_its_last_rate_was(config, capsys):
    _announce_rates(_state(config) | {"step": 50}, _changed(config, train={"steps": 100}))
    assert "learning rate at step 50: 0 before, 4.92e-05 now" in capsys.readouterr().out


def test_an_unchanged_schedule_says_nothing(config, capsys):
    _announce_rates(_state(config), _changed(config, engine={"zero_stage": 0}))
    assert capsys.readouterr().out == ""

"""The config of a pretraining run: defaults, rules, and the configs that are shipped."""

import re

import pytest

from pretrain.config import PretrainConfig
from shards.config import REPOSITORY, dump_config, load_config
from shards.errors import ConfigError

RUN_CONFIGS = [path for path in sorted((REPOSITORY / "configs/pretrain").rglob("*.yaml")) if path.name != "base.yaml"]
MINIMAL = "run: {dir: out}\ndata: {shards: in}\ntrain: {steps: 5}\n"


def _write(path, text):
    path.write_text(text)
    return path


@pytest.fixture
def load(tmp_path):
    def _load(*overrides):
        return load_config(_write(tmp_path / "run.yaml", MINIMAL), overrides, PretrainConfig)

    return _load


@pytest.fixture
def refusal(load, tmp_path):
    """Return the one line that overrides are refused with."""

    def _refusal(*overrides):
        with pytest.raises(ConfigError) as caught:
            load(*overrides)
        message = str(caught.value)
        assert len(message.splitlines()) == 1
        return message.replace(f"{tmp_path}/", "")

    return _refusal


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("train.lr=1e-3", "optim.lr"),
        ("train.micro_batc=8", "train.micro_batch"),
        ("data.bn_group=8", "model.bn_group"),
        ("optim.mask_ratio=0.5", "objective.mask_ratio"),
        ("train.zero_stage=2", "engine.zero_stage"),
        ("objective.decoder.widht=64", "objective.decoder.width"),
    ],
)
def test_wrong_keys_of_a_pretraining_run_lead_to_the_right_ones(refusal, override, suggestion):
    assert f"did you mean '{suggestion}'?" in refusal(override)


def test_a_minimal_run_has_its_defaults(load):
    config = load()
    assert (config.train.steps, config.train.global_batch, config.train.micro_batch) == (5, 256, 64)
    assert (config.engine.zero_stage, config.engine.precision) == (3, "autocast")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["engine.precision=bf16", "engine.zero_stage=1"], ["key 'engine'", "bf16", "zero_stage 2 or 3"]),
        (["train.micro_batch=12"], ["train.micro_batch 12", "model.bn_group 8"]),
        (["train.micro_batch=48"], ["train.global_batch 256", "train.micro_batch 48"]),
        (["model.patch_size=5"], ["key 'model'", "patch_size 5", "image_size 128"]),
        (["engine.zero_stage=4"], ["engine.zero_stage", "got 4"]),
        (["model.name=spec_vit_gg"], ["model.name", "'spec_vit_gg'"]),
        (["objective.mask_ratio=1"], ["objective.mask_ratio", "less than 1"]),
        (["objective.name=simclr"], ["key 'objective.name': 'simclr' is not one of 'mae', 'moco', 'dino'"]),
        (["objective.name=moco", "train.global_batch=192"], ["objective.queue 32768", "train.global_batch 192"]),
        (["objective.name=moco", "train.micro_batch=8"], ["train.micro_batch 8", "two of model.bn_group 8"]),
        (["model.name=spec_resnet50"], ["objective mae needs a ViT", "spec_resnet50"]),
        (["objective={name: dino, local_crops: {count: 2, size: 30}}"], ["patch_size 4", "local_crops.size 30"]),
        (["objective.spectral_angle=0.1"], ["key 'objective'", "norm_pix false"]),
        (["train.steps=0"], ["train.steps", "a whole number of at least 1"]),
        (["data.holdout=1.0"], ["data.holdout", "less than 1"]),
        (["augment.crop_scale=[0.5]"], ["augment.crop_scale"]),
        (["optim.betas=[0.9, high]"], ["optim.betas"]),
    ],
)
def test_values_of_a_run_that_do_not_fit_are_refused(refusal, overrides, words):
    message = refusal(*overrides)
    assert all(word in message for word in words)


@pytest.mark.parametrize("stage", [2, 3])
def test_bf16_is_accepted_with_a_stage(load, stage):
    config = load("engine.precision=bf16", f"engine.zero_stage={stage}")
    assert config.engine.zero_stage == stage


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 4), (2, 2), (4, 1)])
def test_accumulation_makes_up_the_global_batch(load, world_size, accumulation):
    assert load().accumulation(world_size) == accumulation


@pytest.mark.parametrize("world_size", [3, 8])
def test_a_number_of_processes_that_does_not_divide_the_global_batch_is_refused(load, world_size):
    with pytest.raises(ValueError, match=f"x {world_size} processes"):
        load().accumulation(world_size)


def test_there_are_run_configs_to_check():
    assert len(RUN_CONFIGS) >= 2


@pytest.mark.parametrize("path", RUN_CONFIGS, ids=lambda path: path.stem)
def test_every_run_config_of_the_repository_is_valid(path, monkeypatch, tmp_path):
    for name in set(re.findall(r"\$\{(\w+)\}", "".join(config.read_text() for config in RUN_CONFIGS))) - {"REPO"}:
        monkeypatch.setenv(name, str(tmp_path / name))  # a config may name it through its base
    config = load_config(path, [], PretrainConfig)
    again = load_config(_write(tmp_path / "again.yaml", dump_config(config)), [], PretrainConfig)
    assert again == config

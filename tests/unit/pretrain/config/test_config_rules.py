"""Ranges of a config and rules between its keys: what can't be meant is refused before anything starts."""

import pytest

from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig
from shards.config import load_config
from shards.errors import ConfigError

PRETRAIN = "run: {dir: out}\ndata: {shards: in}\ntrain: {steps: 100}\n"
FINETUNE = "run: {dir: out}\ntask: enmap_cdl\ndata: {root: in}\ncheckpoint: encoder\n"
DINO = "objective.name=dino"


def load(tmp_path, text, overrides, schema):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_config(path, overrides, schema)


def check_refused(tmp_path, text, overrides, schema, says):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, overrides, schema)
    message = str(caught.value).removeprefix(f"{tmp_path}/run.yaml: ")
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        # ranges
        (["run.seed=-1"], "key 'run.seed': expected a whole number from 0 to 4294967295, got -1"),
        (["run.threads=0"], "key 'run.threads': expected a whole number from 1 to 1024, got 0"),
        (["data.holdout=1"], "key 'data.holdout': expected a number of at least 0 and less than 1, got 1"),
        (["data.prefetch=0"], "key 'data.prefetch': expected a whole number of at least 1, got 0"),
        (["data.view.max_cloud=20"], "key 'data.view.max_cloud': expected a number from 0 to 1, or null, got 20"),
        (["data.view.bbox=[8, 50, 9]"], "key 'data.view.bbox': expected a list of west, south, east and north"),
        (["data.view.bbox=[8, 50, 9, 95]"], "key 'data.view.bbox.3': expected a number from -90 to 90, got 95"),
        (["data.view.begin=2022-02-30"], "key 'data.view.begin': expected a day such as 2022-06-30, got '2022-02-30'"),
        (["data.sources=[{shards: other}]"], "data.shards and data.sources both name what is read: remove one of them"),
        (["data.shards=null"], "data.shards is missing: name a folder of packed shards, or several in data.sources"),
        (
            ["data={sources: [{shards: a/x}, {shards: ./a/x}]}"],
            "data.sources.1.shards: ./a/x is already data.sources.0.shards: name each folder once",
        ),
        (
            ["data={sources: [{shards: a/x}, {shards: b/x}]}"],
            "data.sources.1: its name 'x' is also that of data.sources.0: set data.sources.1.name",
        ),
        (["data={sources: [{shards: a, name: b/c}]}"], "data.sources.0: its name 'b/c' contains '/'"),
        (
            ["data={sources: [{shards: a, weight: 0}]}"],
            "key 'data.sources.0.weight': expected a number greater than 0, got 0",
        ),
        (["probe={every: 5}"], "probe.shards is missing: name a folder of labeled shards"),
        (["data={sources: [{shards: a, probe: b}]}"], "data.sources.0.probe needs the section probe: add probe: {}"),
        (
            ["data={sources: [{shards: a}]}", "probe={shards: b}"],
            "probe.shards is for data.shards: name labeled shards as data.sources.0.probe and so on",
        ),
        (["augment.crop_scale=[0, 1]"], "key 'augment.crop_scale.0': expected a number greater than 0 and at most 1"),
        (["augment.crop_scale=[0.4, 1.5]"], "key 'augment.crop_scale.1': expected a number greater than 0"),
        (["augment.blur=1.5"], "key 'augment.blur': expected a number from 0 to 1, got 1.5"),
        (["augment.clip=0"], "key 'augment.clip': expected a number greater than 0, or null, got 0"),
        (["objective.mask_ratio=0"], "key 'objective.mask_ratio': expected a number greater than 0 and less than 1"),
        (["objective.decoder.depth=0"], "key 'objective.decoder.depth'"),
        ([DINO, "objective.student_temperature=0"], "key 'objective.student_temperature': expected a number greater"),
        ([DINO, "objective.momentum=1.1"], "key 'objective.momentum': expected a number from 0 to 1, got 1.1"),
        ([DINO, "objective.local_crops.scale=[0.4, 1.2]"], "key 'objective.local_crops.scale.1'"),
        (["optim.lr=0"], "key 'optim.lr': expected a number greater than 0, got 0"),
        (["optim.lr=.inf"], "key 'optim.lr': expected a number greater than 0, got inf"),
        (["optim.min_lr=-1e-6"], "key 'optim.min_lr': expected a number of at least 0, got -1e-06"),
        (["optim.betas=[0.9, 1.0]"], "key 'optim.betas.1': expected a number of at least 0 and less than 1, got 1.0"),
        (["optim.betas=[0.9]"], "key 'optim.betas': expected a list of 2 values"),
        (["optim.betas=[0.9, 0.95, 0.99]"], "key 'optim.betas': expected a list of 2 values"),
        (["optim.weight_decay=-0.05"], "key 'optim.weight_decay': expected a number of at least 0"),
        (["optim.layer_decay=0"], "key 'optim.layer_decay'"),
        (["optim.clip=.nan"], "key 'optim.clip': expected a number of at least 0, got nan"),
        (["optim.warmup_steps=0.1"], "key 'optim.warmup_steps': expected a whole number of at least 0, got 0.1"),
        (["train.steps=99999999999"], "key 'train.steps': expected at most 2147483647, got 99999999999"),
        (["engine.zero_stage=true"], "key 'engine.zero_stage': expected a whole number from 0 to 3, got true"),
        (["engine.precision=fp16"], "key 'engine.precision': expected one of 'fp32', 'autocast', 'bf16', got 'fp16'"),
        (["checkpoint.every=0"], "key 'checkpoint.every'"),
        (["guard.window=3"], "key 'guard.window': expected a whole number from 8 to 1000000, got 3"),
        (["watchdog.step=-1"], "key 'watchdog.step'"),
        (["log.every=0"], "key 'log.every'"),
        (["probe={shards: x, neighbors: 0}"], "key 'probe.neighbors'"),
        (["probe={shards: x, ignore: [0, 0]}"], "key 'probe.ignore': 0 is given twice: remove one of them"),
        # rules between keys
        (["augment.crop_scale=[1.0, 0.4]"], "key 'augment.crop_scale': [1.0, 0.4] must ascend: write [0.4, 1.0]"),
        (["data.view={begin: 2022-06-30, end: 2022-01-01}"], "data.view.begin 2022-06-30 lies after data.view.end"),
        (["data.view.bbox=[8, 51, 9, 50]"], "data.view.bbox: south 51.0 lies above north 50.0"),
        (["model.image_size=30"], "model.patch_size 4 does not divide model.image_size 30"),
        (["objective.decoder.heads=7"], "objective.decoder.heads 7 must divide objective.decoder.width 512"),
        (["objective.decoder={width: 6, heads: 3}"], "objective.decoder.width 6 must be a multiple of 4"),
        (["optim.min_lr=1e-3"], "optim.min_lr 0.001 must be at most the peak learning rate 0.0001, which is optim.lr"),
        (
            ["optim={lr: 1e-3, reference_batch: 256, min_lr: 5e-4}", "train.global_batch=64"],
            "the peak learning rate 0.00025, which is optim.lr scaled from optim.reference_batch",
        ),
        (["optim.milestones=[0.5]"], "optim.schedule cosine with optim.milestones [0.5]"),
        (["optim.schedule=milestones"], "optim.schedule milestones with optim.milestones []"),
        (["optim.schedule=milestones", "optim.milestones=[0.8, 0.6]"], "must ascend: write [0.6, 0.8]"),
        (["optim.schedule=milestones", "optim.milestones=[0.6, 0.6]"], "0.6 is given twice"),
        (["optim.warmup_steps=101"], "optim.warmup_steps 101 must be at most train.steps 100"),
        (
            [DINO, "objective.freeze_last_layer_steps=200", "objective.warmup_temperature_steps=300"],
            "objective.warmup_temperature_steps 300 and objective.freeze_last_layer_steps 200 must be at most",
        ),
        (["checkpoint={every: 1000, keep_every: 1500}"], "checkpoint.keep_every 1500 must be a multiple of"),
        (["engine={zero_stage: 2, deepspeed: {zero_hpz_partition_size: 8}}"], "it needs engine.zero_stage 3"),
        (["engine={zero_stage: 3, deepspeed: {offload_optimizer: {}}}"], "needs engine.zero_stage 1 or 2: at stage 3"),
        (["engine.deepspeed.hpz_partition_size=8"], "did you mean 'engine.deepspeed.zero_hpz_partition_size'?"),
        (["engine.deepspeed.offload_optimizer={device: nvme}"], "expected 'cpu', got 'nvme'"),
        (["engine={precision: bf16, zero_stage: 1}"], "engine.precision bf16 needs engine.zero_stage 2 or 3"),
    ],
)
def test_a_pretraining_that_can_not_be_meant_is_refused(tmp_path, overrides, says):
    check_refused(tmp_path, PRETRAIN, overrides, PretrainConfig, says)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["seeds=[0, 1, 0]"], "key 'seeds': 0 is given twice: remove one of them"),
        (["seeds=[]"], "key 'seeds': expected a list of one value or more, each a whole number from 0 to"),
        (["seeds=3"], "got 3: write [3]"),
        (["seeds=range(5)"], "got 'range(5)'"),
        (["seeds=[-1]"], "key 'seeds.0': expected a whole number from 0 to 4294967295, got -1"),
        (["fractions=[0.1, 1.5]"], "key 'fractions.1': expected a number greater than 0 and at most 1, got 1.5"),
        (["fractions=[1, 1.0]"], "key 'fractions': 1.0 is given twice"),
        (["protocol=[knn, knn]"], "key 'protocol': knn is given twice"),
        (
            ["protocol='knn,frozen'"],
            "key 'protocol.0': expected one of 'knn', 'shift', 'frozen', 'layers', 'adapter', 'blocks', 'lora', 'full'",
        ),
        (["protocol=[]"], "key 'protocol': expected a list of one value or more"),
        (
            ["protocol=probe"],
            "key 'protocol.0': expected one of 'knn', 'shift', 'frozen', 'layers', 'adapter', 'blocks', 'lora', 'full'",
        ),
        (["full.lrs=[1e-3, 0.001]"], "key 'full.lrs': 0.001 is given twice"),
        (["full.lrs=[]"], "key 'full.lrs': expected a list of one value or more"),
        (["full.lrs=[1e-3, .nan]"], "key 'full.lrs.1': expected a number greater than 0, got nan"),
        (["full.weight_decay=-1"], "key 'full.weight_decay': expected a number of at least 0, got -1"),
        (["full.clip=.inf"], "key 'full.clip': expected a number of at least 0, got inf"),
        (["full.crop_scale=[0.5, 2]"], "key 'full.crop_scale.1'"),
        (["full.drop_path=1"], "key 'full.drop_path'"),
        (["full.warmup_epochs=51"], "full.warmup_epochs 51 must be at most full.epochs 50"),
        (["full.batch=30"], "full.batch 30 must be a multiple of full.bn_group 4"),
        (["full.micro_batch=12"], "full.batch 32 must be a multiple of full.micro_batch 12"),
        (["frozen={bn: adapt, batch: 30}"], "frozen.batch 30 with frozen.bn adapt must be a multiple of"),
        (["frozen.heads=[]"], "key 'frozen.heads': expected a list of one value or more"),
        (["frozen.views=9"], "key 'frozen.views': expected a whole number from 1 to 8, got 9"),
        (["frozen.quota_gb=1e300"], "key 'frozen.quota_gb'"),
        (["knn.neighbors=0"], "key 'knn.neighbors': expected a whole number of at least 1, got 0"),
        (["knn.temperature=0"], "key 'knn.temperature'"),
        (["data.label_field=''"], "key 'data.label_field': expected a name, or null, got '': write null"),
        (["data.shards=x"], "give one of data.root, data.shards, or data.images with data.labels"),
        (["task="], "key 'task': expected the name of a task, or the path of its file, got null"),
    ],
)
def test_an_evaluation_that_can_not_be_meant_is_refused(tmp_path, overrides, says):
    check_refused(tmp_path, FINETUNE, overrides, FinetuneConfig, says)


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim.warmup_steps=100"],
        ["optim.min_lr=1e-4"],
        ["optim.min_lr=1e-3", "optim.schedule=milestones", "optim.milestones=[0.5]"],
        ["optim.clip=0", "optim.weight_decay=0", "optim.betas=[0, 0]", "optim.layer_decay=1"],
        ["augment.crop_scale=[0.5, 0.5]", "augment.blur=1"],
        ["data.view.bbox=[170, -10, -170, 10]"],
        ["data.view={begin: 2022-06-30, end: 2022-06-30}"],
        ["checkpoint={every: 500, keep_every: 1000}"],
        [DINO, "objective.momentum=1", "objective.freeze_last_layer_steps=100"],
    ],
)
def test_a_rule_ends_where_it_says(tmp_path, overrides):
    load(tmp_path, PRETRAIN, overrides, PretrainConfig)


def test_a_published_recipe_has_epochs_of_its_own(tmp_path):
    load(tmp_path, FINETUNE, ["recipe=published", "full.epochs=1"], FinetuneConfig)


def test_one_protocol_needs_no_list(tmp_path):
    assert load(tmp_path, FINETUNE, ["protocol=knn"], FinetuneConfig).protocol == ("knn",)

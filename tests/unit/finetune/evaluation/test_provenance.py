"""The key of a finished part: everything that changes results changes it, and nothing else does."""

import ast
import re
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from finetune.baselines.registry import BASELINES
from finetune.config import FinetuneConfig
from finetune.data.code_version import STAGES, code_version, statements
from finetune.evaluation.provenance import differences, of_training, task_hash
from finetune.evaluation.recipe import Recipe, check_layers, resolve_recipe
from finetune.heads.registry import HEADS
from finetune.losses.registry import LOSSES
from finetune.tasks import Task, get_task
from finetune.tasks.kinds.kind import kind_of
from shards.config import REPOSITORY
from shards.errors import ConfigError

TASK = get_task("enmap_cdl")
CONFIG = FinetuneConfig.model_validate(
    {"run": {"dir": "x"}, "task": "enmap_cdl", "data": {"root": "x"}, "checkpoint": "x"}, strict=False
)

BY_CONTENT = {
    "plugins": "their files are part of the code",
    "run.seed": "the rows that it draws, the splits and the twin's weights are hashed",
    "task": "its content is hashed",
    "checkpoint": "its weights are hashed",
    "seeds": "part of a part's key, not of what its seeds share",
    "fractions": "the rows are hashed",
    "shots": "their number, and what they are drawn from, is hashed",
    "shift.test": "each band set is a protocol of its own",
    "layers.numbers": "each layer is a protocol of its own",
    "recipe": "its values are put in place",
    "data.bands": "in of_data",
    **{
        f"data.{key}": "what it leads to is hashed"
        for key in (
            "root",
            "images",
            "labels",
            "shards",
            "align",
            "label_field",
            "label_layer",
            "splits",
            "group",
            "statistics",
        )
    },
}
CHANGES_NOTHING = {
    "run.dir",
    "run.threads",
    "run.notify",
    "data.pretraining",
    "data.read_threads",
    "data.memory_gb",
    "compare_random",
    "compare_raw",
    "protocol",
    "frozen.quota_gb",
    "full.save_every",
    "guard.patience",  # ends a run
    # where numbers are computed, not which
    "engine.zero_stage",
    "engine.activation_checkpointing",
    "engine.compile",
    "engine.stem_kernel",
    "engine.reduce_bucket_size",
    "engine.prefetch_bucket_size",
    "engine.param_persistence_threshold",
    "engine.deepspeed.zero_hpz_partition_size",
    "engine.deepspeed.offload_optimizer.device",
    "engine.deepspeed.offload_optimizer.pin_memory",
}


def _leaves(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        kinds = [one for one in (field.annotation, *get_args(field.annotation)) if isinstance(one, type)]
        sections = [one for one in kinds if issubclass(one, BaseModel)]
        found += _leaves(sections[0], f"{prefix}{name}.") if sections else [f"{prefix}{name}"]
    return found


TUNED = ["blocks", "lora", "full"]
TRAINED = ["frozen", *TUNED]
KEYS = [key for key in _leaves(FinetuneConfig) if not key.startswith("watchdog.")]
OTHER_VALUES: dict[str, Any] = {
    "frozen.heads": (HEADS.validate("linear"),),
    "frozen.bn": "adapt",
    "full.bn": "adapt",
    "full.head": HEADS.validate("linear"),
    "full.start": "random",
    "baseline.models": (BASELINES.validate("linear"),),
    "loss": LOSSES.validate({"name": "focal", "gamma": 1.0}),
    "full.micro_batch": 16,
    "full.crop_scale": None,
    "engine.precision": "fp32",
    "lora.targets": ("qkv",),
    "select": "loss",
    "shift.train": "even",
}


def _with(key: str, value: Any) -> FinetuneConfig:
    section, _, name = key.rpartition(".")
    if not section:
        return CONFIG.model_copy(update={name: value})
    return CONFIG.model_copy(update={section: getattr(CONFIG, section).model_copy(update={name: value})})


def _another(key: str) -> Any:
    if key in OTHER_VALUES:
        return OTHER_VALUES[key]
    section, _, name = key.rpartition(".")
    value = getattr(getattr(CONFIG, section) if section else CONFIG, name)
    return (*value, 0.5) if isinstance(value, tuple) else value * 2 if value else 1


def _told(config: FinetuneConfig, protocol: str) -> dict[str, Any]:
    recipe: Recipe = resolve_recipe(config, kind_of(TASK), is_transformer=True)
    is_trained = protocol in TUNED
    head = {"head": recipe.full_head.to_plain()} if is_trained else {}  # see Parts.trainings
    return of_training(protocol, recipe, config) | head


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_a_config_is_in_the_provenance_or_known_not_to_matter(key):
    known = key in BY_CONTENT or key in CHANGES_NOTHING
    if known:
        return
    config = _with(key, _another(key))
    changed = [
        one for one in ("knn", "shift to swir", *TRAINED, "baseline") if _told(config, one) != _told(CONFIG, one)
    ]
    section = key.partition(".")[0]
    of_probe = ["frozen"] if key in ("frozen.heads", "frozen.bn") else TRAINED  # where full starts
    expected = {
        "knn": ["knn", "shift to swir"],
        "shift": ["shift to swir"],
        "baseline": ["baseline"],
        "lora": ["lora"],
        "frozen": of_probe,
        "select": TRAINED,
        "loss": TRAINED,
    }
    of_keys = {key: ["blocks", "full"] for key in ("full.lrs", "full.layer_decay")} | {"full.first_blocks": ["blocks"]}
    assert changed == of_keys.get(key, expected.get(section, TUNED))


def test_probes_of_layers_depend_on_the_settings_of_frozen_heads_but_not_on_their_names():
    assert _told(_with("frozen.heads", _another("frozen.heads")), "layer 3") == _told(CONFIG, "layer 3")
    assert _told(_with("frozen.bn", "adapt"), "layer 3") == _told(CONFIG, "layer 3")
    assert _told(_with("frozen.patience", 2), "layer 3") != _told(CONFIG, "layer 3") != _told(CONFIG, "layer 4")


def test_lists_of_keys_hold_no_others():
    assert set(BY_CONTENT) | CHANGES_NOTHING <= set(KEYS)


def test_published_values_stand_in_the_place_of_ours():
    published = _told(CONFIG.model_copy(update={"recipe": "published"}), "full")
    assert TASK.published is not None
    assert published["epochs"] == TASK.published.epochs
    assert published["select"] == "loss"


def _task(**changes: Any) -> Task:
    classes = [{"code": 1, "name": "a", "color": "#000000"}, {"codes": [2, 3], "name": "b", "color": "#ffffff"}]
    return Task.model_validate({"name": "t", "description": "d", "classes": classes, "ignore": [0]} | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": [{"code": 1, "name": "a", "color": "#000000"}, {"codes": [2], "name": "b", "color": "#ffffff"}]},
        {
            "classes": [
                {"code": 1, "name": "c", "color": "#000000"},
                {"codes": [2, 3], "name": "b", "color": "#ffffff"},
            ]
        },
        {
            "classes": [
                {"codes": [2, 3], "name": "b", "color": "#ffffff"},
                {"code": 1, "name": "a", "color": "#000000"},
            ]
        },
        {"ignore": "others"},
        {"ignore": [0, 255]},
        {"kind": "multilabel"},
        {"kind": "regression", "classes": [], "ignore": [], "targets": [{"name": "p", "description": "mg/kg"}]},
    ],
)
def test_what_a_task_says_of_labels_changes_its_hash(changes):
    assert task_hash(_task(**changes)) != task_hash(_task())


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        ("mse", "key 'loss': mse is not a loss for segmentation: choose from cross_entropy, focal, dice"),
        (
            {"name": "focal", "class_weights": [1, 2]},
            "key 'loss.class_weights': 2 weights for the 14 classes of task enmap_cdl: give one per class, or balanced",
        ),
    ],
)
def test_a_loss_of_another_kind_is_one_line(loss, says):
    config = CONFIG.model_copy(update={"loss": LOSSES.validate(loss)})
    with pytest.raises(ConfigError, match=re.escape(says)):
        resolve_recipe(config, kind_of(TASK), is_transformer=True)


@pytest.mark.parametrize(
    ("key", "value", "probed", "layer"),
    [
        ("frozen.heads", (HEADS.validate("linear"), HEADS.validate({"name": "upernet", "layers": [0, 12]})), (), 12),
        ("full.head", HEADS.validate({"name": "fcn_layers", "layers": [-13]}), (), -13),
        ("layers.numbers", (0, 12), (0, 12), 12),
    ],
)
def test_a_layer_that_the_encoder_lacks_is_one_line(key, value, probed, layer):
    recipe = resolve_recipe(_with(key, value), kind_of(TASK), is_transformer=True)
    says = f"key '{key}': layer {layer} was requested, but this encoder has layers 0 to 11"
    with pytest.raises(ConfigError, match=re.escape(says)):
        check_layers(recipe, probed, 12)
    check_layers(recipe, probed, 13)


def test_the_published_recipe_has_the_published_loss():
    config = CONFIG.model_copy(update={"loss": LOSSES.validate("focal"), "recipe": "published"})
    assert resolve_recipe(config, kind_of(TASK), is_transformer=True).loss.name == "cross_entropy"


def test_the_unit_of_a_target_changes_the_hash_and_a_color_or_title_does_not():
    def soil(unit: str) -> Task:
        return _task(kind="regression", classes=[], ignore=[], targets=[{"name": "p", "description": unit}])

    assert task_hash(soil("mg/kg")) != task_hash(soil("%"))
    other = [{"code": 1, "name": "a", "colour": "#00ff00"}, {"codes": [2, 3], "name": "b", "color": "#ffffff"}]
    assert task_hash(_task(classes=other, title="T", description="e", name="u")) == task_hash(_task())


def test_what_differs_is_named_with_the_files_of_the_code():
    old = {
        "epochs": 3,
        "train labels": "a",
        "val labels": "a",
        "test labels": "a",
        "code": {"one.py": "1", "two.py": "1"},
    }
    new = old | {"epochs": 4, "test labels": "b", "code": {"one.py": "2", "two.py": "1"}}
    assert differences(new, old) == ["epochs", "test labels", "code (one.py)"]
    assert differences(new | {"train labels": "b", "val labels": "b"}, new | {"test labels": "a"}) == ["labels"]


# ---- the code ----


def test_comments_and_docstrings_change_no_hash_and_statements_do():
    one = 'def f(x):\n    """Text."""\n    return x + 1  # why\n\n\nA = 1\n"""Of A."""\n'
    two = "# first\ndef f(x):\n    return x + 1\nA = 1\n"
    assert statements(one) == statements(two)
    assert statements(one) != statements(one.replace("x + 1", "x + 2"))
    assert statements('A = "# no comment"\n') == ['A = "# no comment"']


NOT_COMPUTING = {
    "finetune.tasks.scene": "cut into tiles before, which are hashed",
    "finetune.baselines.registry": "values are hashed",
    "finetune.evaluation.best_model": "keeps weights",
    "finetune.evaluation.portion": "names what is trained on",
    "finetune.evaluation.runs": "lists what is evaluated",
    "finetune.evaluation.layers": "reads the number of a layer from a name",
    "finetune.data.code_version": "keys",
    "finetune.config": "values are hashed",
    "finetune.encoders.encoder": "describes the input, which is hashed",
    "finetune.data.hashes": "keys",
    "finetune.data.items": "images and labels are hashed",
    "finetune.heads.registry": "values are hashed",
    "finetune.losses.registry": "values are hashed",
    "finetune.metrics.metric": "titles; the direction of a score",
    "finetune.metrics.resampled": "of the report",
    "finetune.tasks.registry": "names",
    "finetune.evaluation.parts": "keys",
    "finetune.evaluation.recipe": "values are hashed",
    "finetune.evaluation.results": "files",
    "shards.files.processes": "identifies processes",
    "shards.files.system_errors": "words an error",
    "shards.format.manifest": "words an error",
    "pretrain.checkpointing.checkpoint": "files",
    "pretrain.config": "values are hashed",
    "pretrain.config.data": "values are hashed",
    "pretrain.config.engine": "values are hashed",
    "pretrain.config.optim": "values are hashed",
    "pretrain.config.run": "values are hashed",
    "pretrain.engine.stream_order": "the same numbers without waiting for them",
    "pretrain.distributed": "the same on any number of processes",
    "pretrain.resilience.guard": "its limits are hashed, and its code where an encoder is tuned",
    "pretrain.models": "finds and loads weights, which are hashed",
    "pretrain.weights.description": "hashed with the input",
    "pretrain.weights.images": "of the Python API",
    "pretrain.weights.finite": "refuses values and changes none",
    "pretrain.weights.files": "finds and loads weights, which are hashed",
    "pretrain.models.flops": "counts",
    "pretrain.models.activation_checkpointing": "the same numbers by less memory",
    "finetune.protocols.training_status": "console and status",
    "pretrain.checkpointing.manager": "files",
    "pretrain.loop.callback": "types",
    "pretrain.loop.callbacks.divergence": "ends a run",
    "pretrain.loop.callbacks.saving": "files",
    "pretrain.metrics.timer": "times",
    "pretrain.console": "console",
    "pretrain.registries": "names and targets",
    "pretrain.weights.encoder_weights": "finds and loads weights, which are hashed",
    "pretrain.weights.hub": "downloads weights, which are hashed",
    "finetune.evaluation.head_files": "files",
    "shards.plugins": "the file of an encoder is hashed with its weights",
    "shards.progress": "console",
    "pretrain.resilience.watchdog": "limits",
    "shards": "package",
    "shards.files.untrusted": "files",
    "shards.files.atomic": "files",
    "shards.config.fields": "values are hashed",
    "shards.files.text": "tasks are hashed",
    "shards.sensors.band_table": "bands are hashed",
    "shards.config": "types",
    "shards.errors": "messages",
    "shards.sensors.resampling": "the response matrix is hashed",
    "shards.config.yaml": "values are hashed",
    "shards.sensors.sensor": "bands are hashed",
    "shards.sources.layouts": "names of splits",
    "shards.sensors.spectrum": "the response matrix is hashed",
}


@pytest.mark.parametrize("stage", ["features", "heads", "tuning", "baselines"])
def test_what_the_hashed_code_imports_is_hashed_too_or_known_not_to_compute(stage):
    hashed = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in STAGES[stage]}
    imported: dict[str, str] = {}
    for name in STAGES[stage]:
        for node in ast.walk(ast.parse((REPOSITORY / name).read_text())):
            if (
                isinstance(node, ast.ImportFrom)
                and node.module
                and node.module.split(".")[0] in ("finetune", "pretrain", "shards")
            ):
                inner = [f"{node.module}.{one.name}" for one in node.names]
                files = [one for one in inner if (REPOSITORY / f"{one.replace('.', '/')}.py").is_file()]
                imported |= dict.fromkeys(files or [node.module], name)
    later = {
        "tuning": {"finetune.protocols.baseline"},
        "baselines": {"finetune.protocols.full"},
        "heads": {"finetune.protocols.full", "finetune.protocols.baseline"},
        "features": {"finetune.heads.build", "finetune.tasks", "finetune.tasks.kinds.kind"},
    }[stage]
    forgotten = {one: where for one, where in imported.items() if one not in hashed | later | NOT_COMPUTING.keys()}
    assert not forgotten, "add these to finetune/data/code_version.py, or say here why they compute nothing"


def test_every_hashed_file_is_there():
    assert all(len(one) == 16 for stage in STAGES for one in code_version(stage).values())

"""The recipe of an evaluation: the config's own values, or the task's published ones."""

from dataclasses import dataclass

from finetune.config import FinetuneConfig, FrozenConfig, FullConfig
from finetune.heads.heads import HEADS, PUBLISHED, HeadName
from finetune.tasks import Task
from shards.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """How heads and models are trained.

    Attributes:
        frozen, full: with everything that ``recipe: published`` puts in place.
        select: what the best epoch is chosen by.
        heads: of the frozen protocol; full_head of the others.
    """

    frozen: FrozenConfig
    full: FullConfig
    select: str
    heads: tuple[HeadName, ...]
    full_head: HeadName

    @property
    def probe(self) -> str:
        """The protocol whose head full fine-tuning begins from: frozen, or one of that head alone."""
        return "frozen" if self.frozen.bn == "frozen" and self.full_head in self.heads else "probe"


def resolve_recipe(config: FinetuneConfig, task: Task, is_vit: bool) -> Recipe:
    """The recipe of a config.

    Raises:
        ConfigError: the task has no published recipe, or not that head.
    """
    published_head = PUBLISHED[task.kind][0 if is_vit else 1]
    frozen, full, select = config.frozen, config.full, config.select
    if config.recipe == "published":
        told = task.published
        if told is None:
            raise ConfigError(f"key 'recipe': published, but task {task.name} has none: use ours")
        shared = {"lrs": (told.lr,), "weight_decay": told.weight_decay, "epochs": told.epochs, "batch": told.batch}
        frozen = frozen.model_copy(update=shared | {"bn": "adapt", "heads": None, "evaluate_every": 1})
        own = {"warmup_epochs": 0, "layer_decay": 1.0, "drop_path": 0.0, "clip": 0.0, "head": None, "micro_batch": None}
        of_task = {"crop_scale": told.crop_scale, "evaluate_every": 1, "start": "random"}
        full = full.model_copy(update=shared | own | of_task)
        select = "loss"
    heads = frozen.heads or (published_head,)
    for key, names in (("frozen.heads", heads), ("full.head", (full.head or published_head,))):
        wrong = [name for name in names if name not in HEADS[task.kind]]
        if wrong:
            raise ConfigError(
                f"key '{key}': {wrong[0]} is no head for {task.kind}: choose from {', '.join(HEADS[task.kind])}"
            )
    return Recipe(frozen, full, select, heads, full.head or published_head)


def adapting(frozen: FrozenConfig, full: FullConfig) -> FullConfig:
    """The frozen protocol with ``bn: adapt``, as a training in which the encoder learns nothing but statistics."""
    taken = {key: getattr(frozen, key) for key in ("lrs", "weight_decay", "epochs", "batch", "evaluate_every")}
    return full.model_copy(
        update=taken | {"drop_path": 0.0, "layer_decay": 1.0, "warmup_epochs": 0, "clip": 0.0, "start": "random"}
    )

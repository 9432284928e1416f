"""The recipe of an evaluation: the config's own values, or the task's published ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from finetune.config import FinetuneConfig, FrozenConfig, FullConfig, LoraConfig
from finetune.heads.registry import HeadConfig, LayersHeadConfig, head_config, heads_for
from finetune.losses.registry import LossConfig, loss_config, losses_for
from finetune.tasks import PublishedRecipe
from finetune.tasks.kinds.kind import TaskKind
from pretrain.models.encoder import layer_numbers
from shards.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """How heads and models are trained.

    Attributes:
        frozen, full: settings, with all values that ``recipe: published`` replaces.
        lora: settings that protocol ``lora`` has of its own.
        select: criterion for the best epoch.
        heads: heads of the frozen protocol; ``full_head`` is the head of the others.
    """

    frozen: FrozenConfig
    full: FullConfig
    lora: LoraConfig
    select: str
    heads: tuple[HeadConfig, ...]
    full_head: HeadConfig
    loss: LossConfig

    @property
    def probe(self) -> str:
        """The protocol whose head initializes full fine-tuning: frozen, or one with only that head."""
        return "frozen" if self.frozen.bn == "frozen" and self.full_head in self.heads else "probe"

    def of_tuning(self, protocol: str) -> FullConfig:
        """Return the settings of a protocol that runs the encoder in every step."""
        if protocol == "frozen":
            return adapting(self.frozen, self.full)
        if protocol == "lora":
            return self.full.model_copy(update={"lrs": self.lora.lrs, "layer_decay": 1.0})
        return self.full


def resolve_recipe(config: FinetuneConfig, kind: TaskKind, is_transformer: bool) -> Recipe:
    """Resolve the recipe of a config for a task.

    Raises:
        ConfigError: the task has no published recipe, or its kind doesn't accept the head or loss.
    """
    published_head = head_config(kind.published_heads[0 if is_transformer else 1])
    frozen, full, select, loss = config.frozen, config.full, config.select, config.loss
    if config.recipe == "published":
        published = kind.task.published
        if published is None:
            raise ConfigError(f"key 'recipe': published, but task {kind.task.name} has none: use ours")
        frozen, full = _published(published, frozen, full)
        select, loss = "loss", None
    heads = frozen.heads or (published_head,)
    for key, chosen in (("frozen.heads", heads), ("full.head", (full.head or published_head,))):
        for head in chosen:
            _check_name(key, head.name, "head", kind, heads_for(kind.features))
    loss = loss_config(kind.loss) if loss is None else loss
    _check_name("loss", loss.name, "loss", kind, losses_for(kind.form, kind.is_dense))
    _check_class_weights(loss, kind)
    return Recipe(frozen, full, config.lora, select, heads, full.head or published_head, loss)


def check_layers(recipe: Recipe, probed: Sequence[int], depth: int) -> None:
    """Check that an encoder of ``depth`` layers has all those that heads get and protocol ``layers`` probes.

    Raises:
        ConfigError: it lacks one.
    """
    asked: dict[str, list[Sequence[int]]] = {"layers.numbers": [probed]}
    for key, heads in (("frozen.heads", recipe.heads), ("full.head", (recipe.full_head,))):
        asked[key] = [head.layers or () for head in heads if isinstance(head, LayersHeadConfig)]
    for key, several in asked.items():
        try:
            for numbers in several:
                layer_numbers(numbers, depth)
        except ValueError as error:
            raise ConfigError(f"key '{key}': {error}") from None


def _published(task: PublishedRecipe, frozen: FrozenConfig, full: FullConfig) -> tuple[FrozenConfig, FullConfig]:
    """Return the sections with the values of a task's published recipe."""
    shared = {"lrs": (task.lr,), "weight_decay": task.weight_decay, "epochs": task.epochs, "batch": task.batch}
    shared |= {"bn": "adapt", "evaluate_every": 1, "patience": None}
    of_full = {"start": "random", "head": None, "micro_batch": None, "crop_scale": task.crop_scale}
    unused = {"warmup_epochs": 0, "layer_decay": 1.0, "drop_path": 0.0, "clip": 0.0}
    return frozen.model_copy(update=shared | {"heads": None}), full.model_copy(update=shared | of_full | unused)


def _check_name(key: str, name: str, what: str, kind: TaskKind, known: list[str]) -> None:
    if name not in known:
        of_kind = kind.task.kind.name
        raise ConfigError(f"key '{key}': {name} is not a {what} for {of_kind}: choose from {', '.join(known)}")


def _check_class_weights(loss: LossConfig, kind: TaskKind) -> None:
    weights = getattr(loss, "class_weights", None)
    if isinstance(weights, tuple) and len(weights) != kind.outputs:
        raise ConfigError(
            f"key 'loss.class_weights': {len(weights)} weights for the {kind.outputs} classes of task "
            f"{kind.task.name}: give one per class, or balanced"
        )


def from_scratch(recipe: Recipe) -> Recipe:
    """Return the recipe for an encoder without pretrained weights."""
    return replace(recipe, full=recipe.full.model_copy(update={"start": "random", "bn": "adapt", "layer_decay": 1.0}))


def adapting(frozen: FrozenConfig, full: FullConfig) -> FullConfig:
    """Return the frozen protocol with ``bn: adapt`` as a training that updates only the encoder's statistics."""
    keys = ("lrs", "weight_decay", "epochs", "batch", "evaluate_every", "patience")
    taken = {key: getattr(frozen, key) for key in keys}
    off = {"drop_path": 0.0, "layer_decay": 1.0, "warmup_epochs": 0, "clip": 0.0}
    return full.model_copy(update=taken | off | {"start": "random", "bn": "adapt"})

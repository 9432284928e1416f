"""Features of a frozen encoder: computed once, kept, and never those of something else; what is trained on them."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr
from support.small_encoder import small_description, small_encoder

from finetune.config import FinetuneConfig, FrozenConfig, FullConfig, KnnConfig, LoraConfig
from finetune.data.batches import epoch_order, subset_rows
from finetune.data.datasets import LabeledSplit, orient
from finetune.data.items import Item
from finetune.encoders.features import BATCH, CachedFeatures, Features, FeatureStore, UncachedFeatures
from finetune.encoders.model_file import InputDescription, TaskModel
from finetune.evaluation.context import EvaluationContext
from finetune.evaluation.recipe import Recipe
from finetune.heads.inputs import HeadInput
from finetune.heads.registry import HEADS
from finetune.losses.registry import LOSSES
from finetune.protocols.frozen import HeadsDiverged, HeadSweep
from finetune.protocols.knn import NearestNeighbors
from finetune.tasks import Task, get_task
from finetune.tasks.kinds.kind import kind_of
from pretrain.resilience.signals import StopRequest
from pretrain.resilience.watchdog import Watchdog

CPU = torch.device("cpu")
BANDS, SIZE, COUNT = 80, 8, BATCH + 3  # the last batch is a short one
TASK = get_task("sample_materials")
CONFIG = FinetuneConfig.model_validate(
    {"run": {"dir": "x"}, "task": "sample_materials", "data": {"root": "x"}, "checkpoint": "x"}, strict=False
)


def _items(seed: int = 0, count: int = COUNT) -> list[Item]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 4000, (count, BANDS, SIZE, SIZE)).astype(np.int16)
    codes = rng.integers(1, 7, (count, SIZE, SIZE))
    return [
        Item(f"{seed}-{number}", str(number), "", "1", images[number].copy, codes[number].copy)
        for number in range(count)
    ]


def _split(items: list[Item], task: Task = TASK) -> LabeledSplit:
    return LabeledSplit(items, task, SIZE, 1, keep=True, quiet=True)


def _model(seed: int = 1, mu: float = 1000.0, task: Task = TASK) -> TaskModel:
    inputs = InputDescription("x", [], [], [mu] * BANDS, [500.0] * BANDS, None)
    return TaskModel(small_encoder(seed), small_description(), inputs, task=task).eval()


Kept = Callable[..., Features]


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    def features(
        model: TaskModel,
        split: LabeledSplit,
        views: int = 2,
        quota: float = 1.0,
        memory: float = 1.0,
        source: HeadInput | None = None,
    ) -> Features:
        return FeatureStore(tmp_path, quota, memory, CPU).load(model, split, views, "train", source)

    features.folder = tmp_path  # type: ignore[attr-defined]
    return features


@pytest.mark.parametrize("memory", [1.0, 1e-9])
def test_features_are_those_of_the_encoder_in_every_view(kept, memory):
    model, split = _model(), _split(_items())
    features = kept(model, split, views=8, memory=memory)
    assert features.views == 8
    rows, views = np.array([0, 5, COUNT - 1, 7]), np.array([0, 3, 7, 5])
    images = np.stack([orient(split.images(np.array([row]))[0], view) for row, view in zip(rows, views, strict=True)])
    with torch.no_grad():
        expected = model.encoder.dense_features(model.images(torch.from_numpy(images)))
    found = features.batch(rows, views)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)  # kept as float16


def test_a_second_call_reads_what_is_there(kept):
    first = kept(_model(), _split(_items()))
    (path,) = kept.folder.glob("*.zarr")
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    second = kept(_model(), _split(_items()))
    assert before == {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    rows = np.arange(COUNT)
    assert torch.equal(first.batch(rows, rows % 2), second.batch(rows, rows % 2))


def test_other_weights_normalization_tiles_views_or_layers_are_kept_apart(kept):
    kept(_model(), _split(_items()))
    kept(_model(seed=2), _split(_items()))
    kept(_model(mu=900.0), _split(_items()))
    kept(_model(), _split(_items(seed=1)))
    kept(_model(), _split(_items()), views=3)
    pooled = get_task("enmap_corine")
    kept(_model(task=pooled), _split(_items(), pooled))
    layers = [kept(_model(), _split(_items()), source=HeadInput("layers", numbers)) for numbers in ((3,), (3, 11))]
    kept(_model(task=pooled), _split(_items(), pooled), source=HeadInput("layer_means", (3,)))
    assert len(list(kept.folder.glob("*.zarr"))) == 9
    lower, both = (one.batch(np.arange(COUNT), np.zeros(COUNT, int)) for one in layers)
    torch.testing.assert_close(both[:, :192], lower, rtol=2e-3, atol=2e-3)


def test_single_layers_are_stored_in_one_pass(tmp_path, monkeypatch):
    layers = [HeadInput("layers", (number,)) for number in (3, 7)]
    model, split, store = _model(), _split(_items()), FeatureStore(tmp_path, 1.0, 1.0, CPU)
    first = store.load(model, split, 1, "train", layers[0], beside=layers)
    monkeypatch.setattr(type(model.encoder), "forward", None)
    second = store.load(model, split, 1, "train", layers[1], beside=layers)
    assert len(list(tmp_path.glob("*.zarr"))) == 2
    rows = np.arange(COUNT)
    assert not torch.equal(first.batch(rows, 0 * rows), second.batch(rows, 0 * rows))


@pytest.mark.parametrize("damage", ["attribute", "chunk"])
def test_a_cache_that_was_cut_short_is_computed_again(kept, damage):
    model, split = _model(), _split(_items())
    whole = kept(model, split).batch(np.arange(COUNT), np.zeros(COUNT, int))
    (path,) = kept.folder.glob("*.zarr")
    if damage == "attribute":
        del zarr.open_array(path, mode="r+").attrs["complete"]
    else:
        next(file for file in (path / "c").rglob("*") if file.is_file()).unlink()
    assert torch.equal(kept(model, split).batch(np.arange(COUNT), np.zeros(COUNT, int)), whole)


def test_above_the_quota_features_are_computed_at_every_use(kept, capsys):
    model, split = _model(), _split(_items())
    stored, fresh = kept(model, split), kept(model, split, quota=1e-9)
    assert isinstance(stored, CachedFeatures)
    assert isinstance(fresh, UncachedFeatures)
    assert "exceed frozen.quota_gb" in capsys.readouterr().out
    assert len(list(kept.folder.glob("*.zarr"))) == 1
    rows, views = np.array([1, 2]), np.array([1, 0])
    torch.testing.assert_close(fresh.batch(rows, views), stored.batch(rows, views), rtol=2e-3, atol=2e-3)


# ---- what is trained on them ----


class Told:
    """Features that tell the class of each position: what a perfect encoder would give."""

    views = 1

    def __init__(self, split: LabeledSplit, noise: float = 0.1) -> None:
        labels = torch.from_numpy(split.labels[:, ::4, ::4].astype(np.int64))
        draw = torch.Generator().manual_seed(len(split))
        found = torch.nn.functional.one_hot(labels.clamp(max=5), 8).permute(0, 3, 1, 2).float()
        self.features = found + noise * torch.randn(found.shape, generator=draw)

    def batch(self, rows: np.ndarray, views: np.ndarray) -> torch.Tensor:
        return self.features[torch.from_numpy(rows)]


def _blocks(seed: int, count: int) -> LabeledSplit:
    """Tiles whose 4 x 4 px blocks are of one class each."""
    rng = np.random.default_rng(seed)
    items = []
    for number in range(count):
        codes = np.kron(rng.integers(1, 7, (2, 2)), np.ones((4, 4), int))
        items.append(Item(f"{seed}-{number}", str(number), "", "1", lambda: np.zeros((1, 8, 8), np.int16), codes.copy))
    return _split(items)


@pytest.fixture(scope="module")
def splits() -> dict[str, LabeledSplit]:
    return {"train": _blocks(1, 24), "val": _blocks(2, 6), "test": _blocks(3, 5)}


def _sweep(splits: dict[str, LabeledSplit], seeds: tuple[int, ...] = (0,), rows: np.ndarray | None = None, **changes):
    told = {"lrs": (3e-2,), "epochs": 30, "batch": 8, "evaluate_every": 10, "views": 1}
    features = {name: Told(split) for name, split in splits.items()}
    heads = tuple(HEADS.validate(name) for name in changes.pop("names", ("linear",)))
    loss = LOSSES.validate(changes.pop("loss", "cross_entropy"))
    recipe = Recipe(FrozenConfig(**(told | changes)), FullConfig(), LoraConfig(), "score", heads, heads[0], loss)
    watchdog = Watchdog(CONFIG.watchdog, Path("x"), StopRequest())
    context = EvaluationContext(CONFIG, watchdog, TASK, {}, splits, *[None] * 2, recipe)  # type: ignore[arg-type]
    encoder = SimpleNamespace(feature_dim=8, stride=4)
    rows = np.arange(24) if rows is None else rows
    return HeadSweep(context, encoder, features, rows, heads).run(seeds)  # type: ignore[arg-type]


def test_heads_learn_what_the_features_tell(splits):
    conv, linear = _sweep(splits, names=("conv", "linear"))
    assert (conv.trial.head_config.name, linear.trial.head_config.name) == ("conv", "linear")
    for one in (conv, linear):
        assert one.test.scores.values["OA"] > 0.8
        assert [point["epoch"] for point in one.trial.curve] == [10, 20, 30]
        assert one.trial.best_epoch in (10, 20, 30)
        assert one.test.statistics.shape == (5, 6, 6)
        assert one.test.statistics.sum() == 5 * 64


def test_of_several_rates_the_best_by_validation_is_tested(splits):
    alone = [_sweep(splits, lrs=(lr,))[0] for lr in (1e-6, 3e-2)]
    (best,) = _sweep(splits, lrs=(1e-6, 3e-2))
    assert best.trial.lr == 3e-2
    assert best.test.scores == alone[1].test.scores


def test_a_rate_that_diverges_is_left_out_and_the_others_count(splits, capsys):
    (alone,) = _sweep(splits, lrs=(3e-2,))
    for rates in ((1e38, 3e-2), (3e-2, 1e38)):
        (best,) = _sweep(splits, lrs=rates)
        assert best.trial.lr == 3e-2
        assert best.test.scores == alone.test.scores
    assert "WARNING: frozen: head 'linear' diverged at lr 1e+38 by epoch 10: excluded" in capsys.readouterr().out
    with pytest.raises(
        HeadsDiverged, match=r"head 'linear' diverged at every rate \(1e\+38, 2e\+38\): lower frozen.lrs"
    ):
        _sweep(splits, lrs=(1e38, 2e38))


def test_a_head_that_gets_no_better_ends_early_and_changes_no_other(splits):
    whole, other = _sweep(splits, names=("linear", "conv"), evaluate_every=1, lrs=(3e-2,))
    early, other_too = _sweep(splits, names=("linear", "conv"), evaluate_every=1, lrs=(3e-2,), patience=2)
    length = len(early.trial.curve)
    assert length == early.trial.best_epoch + 2 < 30
    assert early.trial.curve == whole.trial.curve[:length]
    assert other_too.trial.curve == other.trial.curve[: len(other_too.trial.curve)]
    (longer,) = _sweep(splits, evaluate_every=1, patience=30)
    assert longer.test.scores == whole.test.scores


def test_heads_trained_together_are_those_trained_alone(splits):
    together = _sweep(splits, seeds=(0, 1), lrs=(1e-3, 1e-2))
    for seed, one in zip((0, 1), together, strict=True):
        (alone,) = _sweep(splits, seeds=(seed,), lrs=(1e-3, 1e-2))
        assert alone.test.scores == one.test.scores
        assert alone.trial.curve == one.trial.curve


def test_seeds_differ(splits):
    first, second = _sweep(splits, seeds=(0, 1))
    assert first.trial.curve != second.trial.curve


def test_a_share_of_the_tiles_takes_as_many_steps(splits):
    rows = subset_rows(splits["train"], 0.1, 0)
    (one,) = _sweep(splits, rows=rows)
    assert len(rows) == 2
    assert [point["epoch"] for point in one.trial.curve] == [10, 20, 30]


def test_shares_are_nested():
    split = _blocks(1, 24)
    shares = [set(subset_rows(split, fraction, 5).tolist()) for fraction in (0.01, 0.05, 0.1, 0.5, 1.0)]
    assert [len(one) for one in shares] == [1, 1, 2, 12, 24]
    assert all(small <= large for small, large in pairwise(shares))


def test_an_epochs_batches_are_full_and_visit_every_window():
    batches = epoch_order(10, 4, seed=1, epoch=0)
    assert [len(places) for places, _ in batches] == [4, 4, 4]
    assert sorted(np.concatenate([places for places, _ in batches])[:10]) == list(range(10))
    assert {int(view) for _, views in [*batches, *epoch_order(64, 64, 1, 1)] for view in views} <= set(range(8))


def test_neighbours_vote_for_their_own_class(splits):
    train, test = splits["train"], splits["test"]
    bank = NearestNeighbors(Told(train), train, np.arange(24), kind_of(TASK), KnnConfig(neighbors=5), seed=0)
    votes = bank.vote(Told(test).batch(np.arange(5), np.zeros(5, int)), 8)
    torch.testing.assert_close(votes.sum(1), torch.ones(5, 8, 8))
    found = kind_of(TASK).from_votes(votes)
    assert found.shape == (5, 8, 8)
    assert (found.numpy() == test.labels).mean() > 0.95


def test_a_bank_is_bounded(splits):
    bank = NearestNeighbors(
        Told(splits["train"]), splits["train"], np.arange(24), kind_of(TASK), KnnConfig(bank=10), seed=0
    )
    assert len(bank.keys) <= 10


def test_pooled_neighbours_give_weighted_means_of_labels():
    task = get_task("hyperview")
    items = [
        Item(str(one), "", "", "1", lambda: np.zeros((1, 8, 8), np.float32), partial(np.full, 4, float(one)))
        for one in range(4)
    ]
    split = LabeledSplit(items, task, 8, 1, True, True)

    class Pooled:
        views = 1

        def batch(self, rows: np.ndarray, views: np.ndarray) -> torch.Tensor:
            return torch.eye(4)[torch.from_numpy(rows)]

    bank = NearestNeighbors(
        Pooled(), split, np.arange(4), kind_of(task), KnnConfig(neighbors=2, temperature=0.05), seed=0
    )
    found = bank.vote(torch.tensor([[0.0, 0.0, 1.0, 0.0]]), 8)
    assert found[0].tolist() == pytest.approx([2.0] * 4, abs=1e-3)

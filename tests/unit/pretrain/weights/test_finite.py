"""NaN and infinity end where they appear: no checkpoint, encoder or model file holds them, and no score hides them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.small_encoder import small_description, small_encoder
from torch import Tensor, nn

from finetune.encoders import features as feature_file
from finetune.encoders.features import CachedFeatures, FeaturesError
from finetune.encoders.model_file import InputDescription, TaskModel, load_task_model, save_task_model
from finetune.evaluation.collector import Evaluation
from finetune.evaluation.portion import Portion
from finetune.evaluation.selection import is_better
from finetune.heads.build import build_head
from finetune.metrics.scores import Scores
from finetune.protocols.outcome import SeedOutcome
from finetune.tasks import get_task
from finetune.tasks.kinds.kind import kind_of
from pretrain.checkpointing.tensor_files import NonFiniteState, TensorFiles
from pretrain.checkpointing.writer import check_finite
from pretrain.config.run import GuardConfig
from pretrain.engine.sharding import Piece
from pretrain.resilience.guard import Diverged, Guard
from pretrain.weights.description import WeightsError
from pretrain.weights.files import load_encoder, save_encoder
from pretrain.weights.finite import find_non_finite, is_finite

BAD = [math.nan, math.inf, -math.inf]
TASK = get_task("sample_materials")


@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=8),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
@settings(max_examples=100, deadline=None)
def test_a_tensor_is_finite_where_all_of_its_values_are(values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values, dtype=torch.float64).to(dtype)
    assert is_finite(tensor) == all(math.isfinite(value) for value in tensor.double().tolist())


def test_large_values_whose_sum_overflows_are_finite() -> None:
    assert is_finite(torch.full((100,), 3e38)) and is_finite(torch.full((100,), 6e4, dtype=torch.float16))
    assert is_finite(torch.ones(3).to(torch.float8_e4m3fn)) and is_finite(torch.empty(0))


def test_the_tensor_is_named_and_its_values_are_counted() -> None:
    tensors = {"a": torch.ones(2), "count": torch.tensor(3), "b.running_var": torch.tensor([1.0, math.inf, math.nan])}
    assert find_non_finite(tensors) == "'b.running_var' has 2 non-finite values of 3"
    assert find_non_finite({"a": torch.ones(2), "count": torch.tensor(3)}) is None


@pytest.mark.parametrize("kind", ["weights", "optimizer", "teacher"])
def test_a_checkpoint_that_would_not_be_finite_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "step-00000001").mkdir()
    names = {"weights": "a", "optimizer": "a/exp_avg", "teacher": "a"}
    kinds = {each: {name: Piece(0, torch.ones(2))} for each, name in names.items()}
    check_finite(kinds, tmp_path / "step-00000002")
    kinds[kind]["norm"] = Piece(0, torch.tensor([math.inf]))
    with pytest.raises(NonFiniteState) as error:
        check_finite(kinds, tmp_path / "step-00000002")
    kept = "the last one, step-00000001, is untouched"
    assert f"not saved: diverged: {kind}: 'norm' has 1 non-finite values of 1; {kept}" in str(error.value)
    assert (error.value.exit_code, error.value.everywhere) == (76, True)


@pytest.mark.parametrize("value", BAD)
def test_a_checkpoint_of_a_version_that_did_not_look_is_refused(tmp_path: Path, value: float) -> None:
    save_file(
        {"good": torch.ones(2), "bad": torch.tensor([1.0, value])}, tmp_path / "teacher-00000-of-00001.safetensors"
    )
    with TensorFiles(tmp_path, "teacher") as files:
        assert files.get("good").tolist() == [1, 1]
        with pytest.raises(
            NonFiniteState, match="teacher: 'bad' has 1 non-finite values of 2: move this checkpoint away"
        ):
            files.get("bad")


@pytest.mark.parametrize("value", BAD)
def test_an_encoder_that_is_not_finite_is_neither_written_nor_read(tmp_path: Path, value: float) -> None:
    weights = small_encoder().state_dict()
    name = next(name for name in weights if name.endswith("norm.weight"))
    weights[name] = torch.full_like(weights[name], value)
    with pytest.raises(WeightsError, match=f"'{name}' has .* non-finite values .*: the training diverged"):
        save_encoder(tmp_path / "a.safetensors", weights, small_description())
    assert not (tmp_path / "a.safetensors").exists()
    save_file(weights, tmp_path / "b.safetensors", metadata=small_description().to_header())
    torch.save({"state_dict": weights}, tmp_path / "c.pth")
    for path in ("b.safetensors", "c.pth"):
        with pytest.raises(WeightsError, match=f"{path}: '{name}' has "):
            load_encoder(tmp_path / path)


def test_a_task_model_whose_head_diverged_is_neither_written_nor_read(tmp_path: Path) -> None:
    told = small_description()
    inputs = InputDescription("enmap", told.wavelength_nm, told.fwhm_nm, told.mu, told.sigma, None)
    encoder = small_encoder()
    head = build_head("linear", kind_of(TASK), encoder.feature_dim, encoder.stride)
    model = TaskModel(encoder, told, inputs, "linear", head, TASK)
    save_task_model(tmp_path / "good.safetensors", model)
    load_task_model(tmp_path / "good.safetensors")
    nn.init.constant_(next(head.parameters()), math.nan)
    with pytest.raises(WeightsError, match=r"'head\.linear\.weight' has"):
        save_task_model(tmp_path / "bad.safetensors", model)


def test_a_training_that_skipped_its_last_steps_has_not_ended_well_whatever_its_patience() -> None:
    guard = Guard(GuardConfig(patience=1000))
    for _ in range(3):
        guard.judge(torch.tensor(math.nan), torch.tensor(1.0), stop=False)
    with pytest.raises(Diverged, match=r"^run: diverged: .* in the last 3 of 3 steps: lower it$"):
        guard.check_end(3, "run", "lower it")
    guard.check_end(10, "run", "lower it")  # the steps before these were applied
    guard.load({key: value for key, value in guard.state().items() if key != "not_finite"})  # of an older version
    assert (guard.in_a_row, guard.not_finite) == (3, 0)


# ---- scores ----


@pytest.mark.parametrize("value", BAD)
def test_scores_that_are_not_finite_never_win_and_never_keep_others_from_winning(value: float) -> None:
    good, bad = Scores({"mIoU": 0.1, "loss": 2.0}), Scores({"mIoU": 0.9, "loss": value})
    for select in ("score", "loss"):
        assert not is_better(kind_of(TASK), select, bad, None)
        assert not is_better(kind_of(TASK), select, bad, good)
        assert is_better(kind_of(TASK), select, good, bad)
        assert is_better(kind_of(TASK), select, good, None)
    assert Scores({"mIoU": 0.1}, {"iou": [None, 0.2]}).are_finite  # a class without pixels has no score


def test_a_result_whose_test_scores_are_not_finite_is_an_error() -> None:
    good = Scores({"mIoU": 0.5, "loss": 1.0})
    found = Evaluation(Scores({"mIoU": 0.5, "loss": math.nan}), np.zeros(1), np.zeros(1))
    line = r"pretrained, knn, head knn, seed 0, 100 % of the tiles: test scores .*\(loss nan\)"
    with pytest.raises(Diverged, match=line):
        SeedOutcome("knn", 0, good, found).to_result("pretrained", "knn", Portion(1.0), 1.0, {})


class Array:
    """What CachedFeatures needs of a Zarr array, float16 (N, V, D)."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.shape = values.numpy(), tuple(values.shape)

    def __getitem__(self, key):
        return self.values[key]


def test_features_that_are_not_finite_are_not_trained_on(tmp_path: Path) -> None:
    values = torch.ones(4, 1, 3)
    CachedFeatures(Array(values.half()), torch.device("cpu"), in_memory=True)
    values[2, 0, 1] = 1e5  # above what float16 holds
    with pytest.raises(FeaturesError, match="features are NaN or infinite"):
        CachedFeatures(Array(values.half()), torch.device("cpu"), in_memory=True)
    assert feature_file._require_finite(values) is values

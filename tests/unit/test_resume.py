"""Which checkpoints a run continues: none that was trained on other places."""

import pytest
from support.objectives import small_config

from pretrain.checkpoint import CheckpointError
from pretrain.resume import _check_same_run


def _state(config, **data):
    return {"config": config.model_dump(mode="json"), "data": {"content_hash": "d", **data}}


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

"""Folders of torch.distributed.checkpoint: of other code as encoder files, and refused where they are not only tensors.

That a training goes on from them is in tests/distributed/test_deepspeed_troubles.py.
"""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.commands import refused
from support.small_encoder import small_encoder

from pretrain.weights.convert import main
from pretrain.weights.description import WeightsError
from pretrain.weights.files import load_encoder, read_encoder
from pretrain.weights.initial_weights import file_hash

OLD_RUN = Path(__file__).resolve().parents[3] / "fixtures" / "before" / "run"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A folder with an encoder inside a model, an optimizer's state, and values that are no tensors."""
    model = {f"backbone.{name}": value for name, value in small_encoder().state_dict().items()}
    optim = {"state": {name: {"exp_avg": torch.full_like(value, 7.0)} for name, value in model.items()}}
    folder = tmp_path_factory.mktemp("dcp") / "step-100"
    dcp.save({"model": model, "optim": optim, "epoch": 3}, checkpoint_id=folder, no_dist=True)
    return folder, model


def test_an_encoder_is_read_from_a_folder_of_other_code(saved: tuple[Path, dict], tmp_path: Path) -> None:
    folder, model = saved
    weights = load_encoder(folder)[0].state_dict()
    assert all(torch.equal(value, weights[name.removeprefix("backbone.")]) for name, value in model.items())
    assert main([str(folder), str(tmp_path / "encoder.safetensors")]) == 0
    assert "epoch" in read_encoder(folder).report.left_out
    assert len(file_hash(folder)) == 64


class _Runs:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("was-run",)


def test_metadata_that_could_run_code_is_refused(saved: tuple[Path, dict], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(saved[0], tmp_path / "forged")
    (folder / ".metadata").write_bytes(pickle.dumps(_Runs()))
    with pytest.raises(WeightsError, match=r"its metadata names \w+.mkdir, which could run code"):
        read_encoder(folder)
    assert not (tmp_path / "was-run").exists()


def test_metadata_that_points_out_of_its_folder_is_refused(saved: tuple[Path, dict], tmp_path: Path) -> None:
    folder = shutil.copytree(saved[0], tmp_path / "forged")
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for place in metadata.storage_data.values():
        place.relative_path = "../elsewhere"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(WeightsError, match="not a plain file name"):
        read_encoder(folder)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_cut_folder_is_one_line(saved: tuple[Path, dict], tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(saved[0], tmp_path / "cut")
    (folder / name).write_bytes((folder / name).read_bytes()[:300])
    with pytest.raises(WeightsError, match="not a complete folder of torch") as error:
        read_encoder(folder)
    assert "\n" not in str(error.value)


def test_what_no_training_can_be_taken_from_is_refused(saved: tuple[Path, dict], tmp_path: Path, capsys) -> None:
    for source, says in (
        (saved[0], "it has no checkpoint.json; give a network its weights with init"),
        (OLD_RUN, "continue the run up to its next checkpoint"),
    ):
        assert says in refused(main, capsys, source, tmp_path / "out", "--to", "dcp")
    assert "--sensor is of an" in refused(main, capsys, OLD_RUN, tmp_path / "out", "--to", "torch", "--sensor", "enmap")
    assert not list(tmp_path.iterdir())

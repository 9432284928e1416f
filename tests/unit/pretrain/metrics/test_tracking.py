"""Weights & Biases and MLflow with their real packages: offline, and on a file store."""

import json
import signal
import struct
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from pretrain.config.loggers import LoggerConfig, MlflowConfig, WandbConfig
from pretrain.metrics.loggers.group import Loggers
from pretrain.metrics.loggers.logger import LoggedRun
from pretrain.objectives.picture import draw
from pretrain.registries import LOGGERS
from shards.errors import ConfigError

CONFIG = {"run": {"dir": "x", "seed": 3}, "optim": {"lr": 1e-4}}
FIGURE = draw(Figure(figsize=(0.2, 0.2)))


def log_run(config: LoggerConfig, folder: Path, first_step: int, steps: range) -> None:
    loggers = Loggers([config], LoggedRun(folder, first_step, CONFIG))
    for step in steps:
        loggers.record(step, {"loss": 1 / step})
        loggers.record(step, {"validation_loss": 2 / step})
    loggers.figure(steps[-1], "reconstruction", FIGURE)
    loggers.close()


# ---- MLflow ----


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return pytest.importorskip("mlflow.tracking", reason="needs the extra 'loggers' (mlflow-skinny)")


def test_a_resumed_run_continues_its_mlflow_run(tmp_path: Path, mlflow, capsys) -> None:
    config = MlflowConfig(name="mlflow", experiment="hyperspectral")
    log_run(config, tmp_path / "run-a", 0, range(1, 4))
    log_run(config, tmp_path / "run-a", 3, range(4, 6))
    assert "not written" not in capsys.readouterr().err
    client = mlflow.MlflowClient((tmp_path / "run-a" / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("hyperspectral")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(one.step, one.value) for one in history] == [(step, 1 / step) for step in range(1, 6)]
    assert client.get_metric_history(run.info.run_id, "validation_loss")[-1].value == 2 / 5
    assert run.data.params["optim.lr"] == "0.0001"
    assert (run.info.run_name, run.info.status) == ("run-a", "FINISHED")
    pictures = client.list_artifacts(run.info.run_id, "reconstruction")
    assert [one.path for one in pictures] == ["reconstruction/step-00000003.png", "reconstruction/step-00000005.png"]


def test_an_mlflow_server_that_is_not_there_is_one_line(tmp_path: Path, mlflow, monkeypatch, capsys) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    log_run(MlflowConfig(name="mlflow", tracking_uri="http://127.0.0.1:9"), tmp_path, 0, range(1, 4))
    told = capsys.readouterr().err
    assert told.count("logger mlflow: not written") == 1 and "Traceback" not in told


# ---- Weights & Biases ----


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return pytest.importorskip("wandb", reason="needs the extra 'loggers' (wandb)")


def offline_records(path: Path) -> list[dict[str, float]]:
    """The history in an offline run's file: protocol buffers in LevelDB's log format, blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, body, found = path.read_bytes(), 7, b"", list[dict[str, float]]()
    while place < len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        body += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, body = Record.FromString(body), b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                found.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
    return found


def test_a_resumed_run_continues_its_wandb_run(tmp_path: Path, wandb, capsys) -> None:
    config = WandbConfig(name="wandb", project="hyperspectral", mode="offline")
    handler = signal.getsignal(signal.SIGTERM)
    log_run(config, tmp_path, 0, range(1, 4))
    log_run(config, tmp_path, 3, range(4, 6))
    assert "not written" not in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is handler
    run_id = (tmp_path / "wandb-run-id.txt").read_text().strip()
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    assert [path.name for path in files] == [f"run-{run_id}.wandb"] * 2
    rows = [row for path in files for row in offline_records(path)]
    assert [(row["step"], row["loss"]) for row in rows if "loss" in row] == [(step, 1 / step) for step in range(1, 6)]
    assert [row["step"] for row in rows if "validation_loss" in row] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in rows if "reconstruction" in row] == [3, 5]


# ---- any logger ----


class Failing:
    """A logger whose service is gone."""

    calls = 0

    def __init__(self, config: LoggerConfig, run: LoggedRun) -> None:
        pass

    def scalars(self, step: int, values: dict[str, float]) -> None:
        Failing.calls += 1
        raise RuntimeError("no such host")

    def close(self) -> None:
        raise RuntimeError("no such host")


def test_a_logger_that_fails_is_one_line_and_the_others_go_on(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(LOGGERS._targets, "failing", Failing)
    failing, lines = LoggerConfig(name="failing"), LoggerConfig(name="jsonl")
    loggers = Loggers([failing, lines], LoggedRun(tmp_path))
    for step in range(1, 4):
        loggers.record(step, {"loss": 1.0})
    loggers.close()
    told = capsys.readouterr().err
    assert told == "warning: logger failing: not written: RuntimeError: no such host; the run continues without it\n"
    assert Failing.calls == 1  # then left alone for a while: a server that doesn't answer costs seconds a call
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(("name", "module"), [("wandb", "wandb"), ("mlflow", "mlflow.tracking")])
def test_a_missing_package_is_misuse_with_its_extra(tmp_path: Path, monkeypatch, name: str, module: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    config = {"wandb": WandbConfig, "mlflow": MlflowConfig}[name](name=name)
    with pytest.raises(ConfigError, match=rf"'log.loggers': {name} needs .*pip install 'spectralforge\[loggers\]'"):
        Loggers([config], LoggedRun(tmp_path))

"""Loggers: TensorBoard and JSON lines hold the same, also after a resume; an error of a logger is one line."""

import json
import time
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain import distributed
from pretrain.config.loggers import DEFAULT_LOGGERS
from pretrain.console import duration, log
from pretrain.metrics.json_lines import last_saved_step
from pretrain.metrics.loggers.group import Loggers
from pretrain.metrics.loggers.logger import LoggedRun
from pretrain.objectives.picture import draw


def _loggers(folder: Path, first_step: int = 0) -> Loggers:
    return Loggers(DEFAULT_LOGGERS, LoggedRun(folder, first_step))


def _run(folder, first_step: int, steps: range, offset: float = 0.0) -> None:
    loggers = _loggers(folder, first_step)
    for step in steps:
        loggers.record(step, {"loss": offset + 1 / step, "lr": 1e-3 * step})
        if step % 2 == 0:
            loggers.record(step, {"validation_loss": offset + 2 / step})
    loggers.close()


def _lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _events(folder) -> dict[str, dict[int, float]]:
    """Scalars that TensorBoard would show."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}


def _by_name(records: list[dict]) -> dict[str, dict[int, float]]:
    names = {name for record in records for name in record} - {"step"}
    return {name: {record["step"]: record[name] for record in records if name in record} for name in names}


def _assert_same(events, lines):
    assert events.keys() == lines.keys()
    for name in lines:
        assert events[name] == pytest.approx(lines[name], rel=1e-6)  # events are float32


def test_tensorboard_and_the_lines_say_the_same(tmp_path):
    _run(tmp_path, 0, range(1, 8))
    lines = _by_name(_lines(tmp_path))
    assert lines["loss"] == {step: 1 / step for step in range(1, 8)}
    assert lines["validation_loss"] == {step: 2 / step for step in (2, 4, 6)}
    _assert_same(_events(tmp_path), lines)


def test_records_after_the_resume_step_are_dropped_from_both(tmp_path):
    _run(tmp_path, 0, range(1, 8))
    _run(tmp_path, 4, range(5, 7), offset=10.0)
    lines = _by_name(_lines(tmp_path))
    assert list(lines["loss"]) == [1, 2, 3, 4, 5, 6]
    assert lines["loss"] == pytest.approx({**{s: 1 / s for s in range(1, 5)}, **{s: 10 + 1 / s for s in (5, 6)}})
    assert list(lines["validation_loss"]) == [2, 4, 6]
    _assert_same(_events(tmp_path), lines)


def test_a_resume_without_lost_steps_drops_nothing(tmp_path):
    _run(tmp_path, 0, range(1, 4))
    _run(tmp_path, 3, range(4, 6))
    assert list(_by_name(_lines(tmp_path))["loss"]) == [1, 2, 3, 4, 5]
    _assert_same(_events(tmp_path), _by_name(_lines(tmp_path)))


def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path):
    _run(tmp_path, 0, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "validation_lo')
    _run(tmp_path, 3, range(4, 5))
    assert list(_by_name(_lines(tmp_path))["loss"]) == [1, 2, 3, 4]


def test_a_line_is_on_disk_as_soon_as_it_is_recorded(tmp_path):
    loggers = _loggers(tmp_path)
    loggers.record(1, {"loss": 0.5})
    assert _lines(tmp_path) == [{"step": 1, "loss": 0.5}]
    loggers.close()


def test_a_run_that_resumes_where_the_clock_is_behind_is_read_in_order(tmp_path, monkeypatch):
    now = time.time()
    for first_step, ahead in ((0, 0), (3, -90), (6, -3600)):
        monkeypatch.setattr(time, "time", lambda ahead=ahead: now + ahead)
        _run(tmp_path, first_step, range(first_step + 1, first_step + 6), first_step)
    losses = _events(tmp_path)["loss"]
    assert [round(losses[step] - 1 / step) for step in range(1, 12)] == 3 * [0] + 3 * [3] + 5 * [6]


def test_pictures_reach_tensorboard(tmp_path):
    loggers = _loggers(tmp_path)
    loggers.figure(3, "reconstruction", draw(Figure(figsize=(1, 1))))
    loggers.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [image.step for image in events.Images("reconstruction")] == [3]


def test_the_last_saved_step_is_read_from_the_records(tmp_path: Path) -> None:
    assert last_saved_step(tmp_path) is None
    records = [{"step": 1, "loss": 1.0}, {"step": 2, "checkpoint_seconds": 0.5}, {"step": 3, "loss": 0.9}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records) + '{"step": 4, "chec')
    assert last_saved_step(tmp_path) == 2


def test_other_ranks_write_and_say_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setenv("RANK", "1")
    _run(tmp_path, 0, range(1, 3))
    log("hello")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_rank_zero_says_it_at_once(capsys):
    log("hello")
    assert capsys.readouterr().out == "hello\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (12.4, "12s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (200, "3m 20s"),
        (3599.7, "1h 00m"),
        (7530, "2h 05m"),
        (90000, "25h 00m"),
    ],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_a_text_is_shown_by_tensorboard(tmp_path):
    loggers = _loggers(tmp_path)
    loggers.text(40, "restart", "n02: task 5: killed")
    loggers.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.PluginTagToContent("text").keys() == {"restart"}
    (event,) = events.Tensors("restart")
    assert (event.step, event.tensor_proto.string_val[0]) == (40, b"n02: task 5: killed")

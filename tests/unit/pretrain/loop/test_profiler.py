"""The profiler callback: a trace of the steps that were asked for, complete or not there."""

import json
from pathlib import Path

import pytest
from support.plain_loop import batches, plain_loop

from pretrain.config.callbacks import ProfilerConfig
from pretrain.loop.callback import Callback
from pretrain.loop.callbacks.profiler import Profiler


def traced_backwards(path: Path) -> int:
    events = json.loads(path.read_text())["traceEvents"]
    return sum(
        event.get("name") == "aten::mse_loss_backward" or event.get("name") == "PowBackward0" for event in events
    )


def test_the_steps_that_were_asked_for_are_traced(tmp_path: Path) -> None:
    callbacks = [Profiler(ProfilerConfig(at=at, steps=steps), tmp_path / f"{steps}") for at, steps in ((2, 1), (4, 2))]
    plain_loop(tmp_path, callbacks, steps=8).run(batches())
    (one,) = (tmp_path / "1" / "profile").iterdir()
    (two,) = (tmp_path / "2" / "profile").iterdir()
    assert (one.name, two.name) == ("trace-step-00000002.json", "trace-step-00000004.json")
    assert traced_backwards(two) == 2 * traced_backwards(one) > 0


def test_a_training_that_ends_within_the_trace_keeps_what_there_is(tmp_path: Path) -> None:
    plain_loop(tmp_path, [Profiler(ProfilerConfig(at=3, steps=100), tmp_path)], steps=4).run(batches())
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["trace-step-00000003.json"]


def test_a_resume_after_the_steps_traces_nothing(tmp_path: Path) -> None:
    loop = plain_loop(tmp_path, [Profiler(ProfilerConfig(at=2, steps=2), tmp_path)], steps=6)
    loop.step = 3
    loop.run(batches(3))
    assert not (tmp_path / "profile").exists()


def test_a_trace_of_a_step_that_fails_is_written(tmp_path: Path) -> None:
    class Failing(Callback):
        def before_step(self, loop) -> None:
            if loop.step == 2:
                raise RuntimeError("lost")

    profiler = Profiler(ProfilerConfig(at=2, steps=5), tmp_path)
    with pytest.raises(RuntimeError, match="lost"):
        plain_loop(tmp_path, [profiler, Failing()]).run(batches())
    assert (tmp_path / "profile" / "trace-step-00000002.json").exists()


def test_a_trace_that_cannot_be_written_is_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "profile").write_text("a file where a folder should be")
    plain_loop(tmp_path, [Profiler(ProfilerConfig(at=1, steps=1), tmp_path)], steps=2).run(batches())
    assert capsys.readouterr().err.count("not written") == 1

"""Callbacks of the loop that need no DeepSpeed: garbage collection, the sample log, divergence, restarts, saving."""

import gc
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.plain_loop import batches, plain_loop

from pretrain.loop.callback import Callback, Outcome
from pretrain.loop.callbacks import gc_control
from pretrain.loop.callbacks.divergence import Divergence
from pretrain.loop.callbacks.gc_control import GcControl
from pretrain.loop.callbacks.restarts import Restarts
from pretrain.loop.callbacks.run_identity import RunIdentity
from pretrain.loop.callbacks.sample_log import SampleLog
from pretrain.loop.loop import Loop
from pretrain.resilience.guard import Diverged
from pretrain.resilience.restarts import Restart, append_restart
from pretrain.resilience.run_folder import RunFolder
from pretrain.resilience.status import read_record
from shards.format.manifest import Manifest


def test_garbage_is_collected_when_due_and_automatically_afterwards(tmp_path: Path, monkeypatch) -> None:
    collected: list[bool] = []
    monkeypatch.setattr(gc_control.gc, "collect", lambda: collected.append(gc.isenabled()))

    class Failing(Callback):
        def after_step(self, loop: Loop, outcome: Outcome) -> None:
            if loop.step == 7:
                raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        plain_loop(tmp_path, [GcControl(every=3), Failing()], steps=10).run(batches())
    assert collected == [True, False, False]  # at the start, and after steps 3 and 6
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_checkpoint_knows_the_bounds_on_the_errors_of_its_tiles() -> None:
    def bounds(*codecs: dict[str, str]) -> str:
        values = {"made_from": None, "mean": [1.0], "std": [1.0], "wavelength_nm": [500.0], "fwhm_nm": [9.0]}
        manifests = [Manifest.model_construct(sensor="enmap", codec=codec, **values) for codec in codecs]
        sources = [SimpleNamespace(name=f"s{i}", manifest=manifest) for i, manifest in enumerate(manifests)]
        inputs = SimpleNamespace(
            sources=sources, manifests=manifests, plan=SimpleNamespace(dataset="d"), held_out_hash="h"
        )
        config = SimpleNamespace(model_dump=lambda mode: {})
        identity = RunIdentity(config, SimpleNamespace(initial=None), inputs)  # type: ignore[arg-type]
        return identity.state(None)["data"]["max_error"]  # type: ignore[arg-type]

    lossless, bounded = {"id": "raw_tile"}, {"id": "bounded_predictor", "max_error": "3"}
    assert (bounds(lossless), bounds(bounded), bounds(lossless, bounded)) == ("", "3", "3 (s1)")


def test_the_sample_log_drops_steps_after_the_checkpoint_also_those_of_other_ranks(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "samples": [step], "tiles": [0]}) for step in range(1, 6)]
    for rank in range(2):
        (tmp_path / f"samples-{rank:05d}.jsonl").write_text("\n".join(lines) + '\n{"step": 6, "sam')
    inputs = SimpleNamespace(plan=SimpleNamespace(tiles=lambda samples: samples % 3))
    loop = plain_loop(tmp_path, [SampleLog(tmp_path, inputs)], steps=4)  # type: ignore[arg-type]
    loop.step = 3
    loop.run(batches(3))
    steps = [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(tmp_path.iterdir())]
    assert [line["step"] for line in steps[0]] == [1, 2, 3, 4]
    assert steps[0][3] == {"step": 4, "samples": [12, 13, 14, 15], "tiles": [0, 1, 2, 0]}
    assert [line["step"] for line in steps[1]] == [1, 2, 3]


def test_a_training_that_does_not_roll_back_ends_when_the_guard_is_out_of_patience(tmp_path: Path) -> None:
    loop = plain_loop(tmp_path, [Divergence("part", "lower full.lrs", rolls_back=False)], bad=[2, 3, 4])
    with pytest.raises(Diverged, match=r"^part: diverged at step 4: 2 steps in a row were skipped \(loss is .*: lower"):
        loop.run(batches())


def test_a_training_whose_last_steps_were_all_skipped_is_not_complete(tmp_path: Path) -> None:
    loop = plain_loop(tmp_path, [Divergence("run", "lower optim.lr", rolls_back=True)], steps=1, bad=[0])
    with pytest.raises(Diverged, match=r"^run: diverged: .* in the last 1 of 1 steps: lower optim.lr"):
        loop.run(batches())


def test_a_divergence_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    loop = plain_loop(tmp_path, [Divergence("run", "lower optim.lr", rolls_back=True)], bad=[0, 1])
    loop.checkpoints.earlier = lambda: None  # type: ignore[method-assign]
    with pytest.raises(Diverged, match=r"^run: diverged at step 2: 2 steps .* no earlier checkpoint to return to"):
        loop.run(batches())


def test_a_restart_is_reported_once_by_the_process_that_follows_it(tmp_path: Path) -> None:
    texts: list[str] = []
    scalars: list[dict[str, float]] = []
    logging = SimpleNamespace(text=lambda loop, name, text: texts.append(text))
    loop = SimpleNamespace(step=40, log=scalars.append)

    def start() -> None:
        run = RunFolder(tmp_path)
        Restarts(run, logging).on_start(loop)  # type: ignore[arg-type]
        run.write_status("running", 47, 100)
        run.release()

    start()
    failed = read_record(tmp_path)
    assert failed is not None and not texts
    for attempt, host in ((2, "n02"), (3, "n04")):  # the second attempt wrote no status
        append_restart(tmp_path, Restart("t", "7", attempt, (host,), "killed", 47, failed.started, ("n01", "n03")))
    start()
    line = "n02: killed; then n04: killed; 7 steps lost: from step 40 on n01, n03"
    assert texts == [line]
    assert scalars == [{"restarts": 2.0, "steps_lost": 7.0}]
    start()  # by hand, after a stop
    record = read_record(tmp_path)
    assert record is not None and (record.restarts, record.last_restart) == (2, line)
    assert record.begun == failed.begun
    assert len(texts) == 1

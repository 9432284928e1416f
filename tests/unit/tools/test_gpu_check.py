import json

import pytest

from tools.gpu_check import __main__ as gpu_check
from tools.gpu_check.row import error_row


def test_the_rehearsal_on_a_cpu_compares_what_a_gpu_would(tmp_path, capsys):
    path = tmp_path / "check.json"
    code = gpu_check.main(["--device", "cpu", "--groups", "numerics", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert code == 0, [row for row in rows if row["ok"] is False]
    checked = " ".join(row["check"] for row in rows if row["ok"])
    for what in (
        "attention",
        "heads of 104, packed",
        "torch.bfloat16: gradients",
        "normalization",
        "crops",
        "on the device",
    ):
        assert what in checked
    assert f"{len(rows)} rows, 0 that don't hold" in capsys.readouterr().out


@pytest.mark.nightly
def test_the_rehearsal_trains_and_runs_commands(tmp_path):
    path = tmp_path / "check.json"
    code = gpu_check.main(["--device", "cpu", "--groups", "hardware,training,commands,speed", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert code == 0, [row for row in rows if row["ok"] is False]
    assert sum("ZeRO" in row["check"] for row in rows) >= 14


def test_a_group_that_does_not_end_is_a_row_that_does_not_hold(monkeypatch, tmp_path):
    monkeypatch.setitem(gpu_check.GROUPS, "numerics", 0)
    path = tmp_path / "check.json"
    assert gpu_check.main(["--device", "cpu", "--groups", "numerics", "--json", str(path)]) == 1
    assert "not done after 0 s" in json.loads(path.read_text())["rows"][-1]["figure"]


def test_nan_never_holds():
    assert not error_row("x", float("nan"), 1.0).ok


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--groups", "speeed"], "--groups speeed: choose from"), ([], "torch sees no GPU")]
)
def test_misuse_is_one_line(arguments, message, capsys):
    import torch

    if not arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert gpu_check.main(arguments) == 2
    assert message in capsys.readouterr().err

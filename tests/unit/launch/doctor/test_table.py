"""The doctor's table: rows as lines, and rows of checks that fail."""

from types import SimpleNamespace

from launch.doctor.__main__ import examine
from launch.doctor.table import Row, render, summary, worst


def test_an_error_that_nobody_expected_is_a_red_row() -> None:
    row = examine(SimpleNamespace(), "launch.doctor.versions:check")  # type: ignore[arg-type]
    assert row.state == "red" and row.found.startswith("AttributeError: ") and "\n" not in row.found
    row = examine(SimpleNamespace(), "launch.doctor.none:check")  # type: ignore[arg-type]
    assert row == Row("red", "ModuleNotFoundError: No module named 'launch.doctor.none'", row.fix)


def test_rows_are_lines_without_color_where_nobody_looks() -> None:
    row = Row("red", "x" * 200, "fix it", "more\nlines")
    plain = render("shards", row)
    assert plain.splitlines() == [f"shards              red     {'x' * 200}", f"{'':28}fix: fix it"]
    assert render("shards", row, verbose=True).splitlines()[2:] == [f"{'':28}more", f"{'':28}lines"]
    colored = render("shards", Row("green", "word " * 40), width=80, color=True)
    assert "\033[32mgreen" in colored
    assert all(len(line) <= 90 for line in colored.splitlines())
    assert worst() == "green" and worst("yellow", "red", "green") == "red"
    assert summary(["green", "red", "green"]) == "2 green, 0 yellow, 1 red"

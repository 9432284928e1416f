"""`python -m finetune fetch-notes`: where data comes from, as the tasks' files say."""

import pytest

from finetune.__main__ import main
from finetune.tasks import get_task, task_names
from finetune.tasks.notes import WIDTH, page, table


@pytest.mark.parametrize("name", task_names())
def test_every_task_of_real_data_says_where_it_comes_from(name):
    task = get_task(name)
    if task.synthetic:
        assert page(task).endswith("nothing to fetch")
        return
    lines = page(task).splitlines()
    assert [line.split(":")[0] for line in lines if line[:1].isalpha()][1:8] == [
        "source",
        "size",
        "license",
        "citation",
        "files",
        "bands",
        "splits",
    ]
    assert all(len(line) <= WIDTH or "https://" in line for line in lines[1:])


def test_a_table_lists_all_tasks_of_real_data(capsys):
    assert main(["fetch-notes"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["task", *(name for name in task_names() if not get_task(name).synthetic)]
    assert "https://" in table()


def test_one_task_has_a_page(capsys):
    assert main(["fetch-notes", "indian_pines"]) == 0
    out = capsys.readouterr().out
    assert "license:  CC BY 3.0" in out
    assert "not reflectance" in out


def test_notes_do_not_enter_models_and_results():
    assert {"notes", "scene"}.isdisjoint(get_task("indian_pines").model_dump())


def test_an_unknown_task_is_named(capsys):
    assert main(["fetch-notes", "indian_pine"]) == 2
    assert "unknown task 'indian_pine'" in capsys.readouterr().err

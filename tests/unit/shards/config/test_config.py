"""YAML to typed config: what is read, and the one line that is said about what can't be."""

import re
from pathlib import Path

import pytest

from shards.config import REPOSITORY, ConfigModel, dump_config, load_config
from shards.errors import ConfigError

RUN_CONFIGS = [path for path in sorted((REPOSITORY / "configs/pretrain").rglob("*.yaml")) if path.name != "base.yaml"]
MINIMAL = "run: {dir: out}\ndata: {shards: in}\ntrain: {steps: 5}\n"


class Optim(ConfigModel):
    """A section."""

    lr: float = 1e-4
    steps: int = 1
    betas: list[float] | None = None


class Paths(ConfigModel):
    """A section with a key that has no default."""

    data: str
    cache: str | None = None


class Small(ConfigModel):
    """A config of two sections."""

    optim: Optim = Optim()
    paths: Paths = Paths(data="here")
    note: str = ""


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def load(tmp_path):
    def _load(text, *overrides, schema=Small):
        return load_config(_write(tmp_path / "run.yaml", text), overrides, schema)

    return _load


@pytest.fixture
def refusal(load, tmp_path):
    """The one line that a config is refused with."""

    def _refusal(text, *overrides, schema=Small):
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides, schema=schema)
        message = str(caught.value)
        assert len(message.splitlines()) == 1
        return message.replace(f"{tmp_path}/", "")

    return _refusal


def test_keys_of_a_base_are_replaced_one_by_one(tmp_path):
    _write(tmp_path / "shared/base.yaml", "base: ../root.yaml\noptim: {lr: 0.5, betas: [1, 2]}\n")
    _write(tmp_path / "root.yaml", "note: root\noptim: {steps: 7, lr: 0.1}\n")
    path = _write(tmp_path / "runs/run.yaml", "base: ../shared/base.yaml\noptim: {betas: [3]}\n")
    config = load_config(path, [], Small)
    assert (config.note, config.optim) == ("root", Optim(lr=0.5, steps=7, betas=[3]))


def test_a_base_lies_relative_to_the_file_that_names_it_not_to_the_shell(tmp_path, monkeypatch):
    _write(tmp_path / "a/base.yaml", "note: right\n")
    _write(tmp_path / "base.yaml", "note: wrong\n")
    _write(tmp_path / "a/run.yaml", "base: base.yaml\n")
    monkeypatch.chdir(tmp_path)
    assert load_config("a/run.yaml", [], Small).note == "right"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lr=1e-3", Optim(lr=1e-3)),
        ("optim.lr=1E+2", Optim(lr=100.0)),
        ("optim.lr=2.5e-4", Optim(lr=2.5e-4)),
        ("optim.lr=.5e1", Optim(lr=5.0)),
        ("optim.lr=3", Optim(lr=3.0)),
        ("optim.steps=1_000", Optim(steps=1000)),
        ("optim.betas=[0.9, 1e-1]", Optim(betas=[0.9, 0.1])),
        ("optim={steps: 4}", Optim(steps=4)),
    ],
)
def test_overrides_have_the_type_of_their_key(load, override, expected):
    assert load("{}", override).optim == expected


def test_1e_3_in_a_file_is_a_number(load):
    config = load("optim: {lr: 1e-3}\n")
    assert (config.optim.lr, type(config.optim.lr)) == (0.001, float)


def test_the_last_override_wins_over_earlier_ones_and_the_file(load):
    assert load("optim: {lr: 1.0, steps: 9}\n", "optim.lr=2", "optim.lr=3").optim == Optim(lr=3.0, steps=9)


def test_an_override_value_may_hold_an_equals_sign_and_be_quoted(load):
    assert load("{}", "paths.data=a=b", "note='12'").model_dump() | {"optim": 0} == {
        "optim": 0,
        "paths": {"data": "a=b", "cache": None},
        "note": "12",
    }


def test_environment_variables_are_filled_in_files_bases_and_overrides(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH_TEST", "/scratch")
    _write(tmp_path / "base.yaml", "paths: {data: '${SCRATCH_TEST}/a/${SCRATCH_TEST}'}\n")
    path = _write(tmp_path / "run.yaml", "base: base.yaml\n")
    config = load_config(path, ["paths.cache=${SCRATCH_TEST}/c", "note=$SCRATCH_TEST"], Small)
    assert (config.paths.data, config.paths.cache) == ("/scratch/a//scratch", "/scratch/c")
    assert config.note == "$SCRATCH_TEST"


def test_repo_is_the_checkout(load, monkeypatch):
    monkeypatch.setenv("REPO", "/elsewhere")
    repo = Path(load("paths: {data: '${REPO}'}\n").paths.data)
    assert (repo / "shards/config/__init__.py").is_file()


def test_a_missing_environment_variable_is_named(refusal, monkeypatch):
    monkeypatch.delenv("NO_SUCH_PLACE", raising=False)
    message = refusal("paths: {data: '${NO_SUCH_PLACE}/x'}\n")
    assert message.startswith("run.yaml: ")
    assert "NO_SUCH_PLACE" in message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("note: a\noptim: [1\n", 3),
        ("note: a\noptim: {lr: 1\nnote: b: c\n", 3),
        ("note: a\n\tnote: b\n", 2),
        ("note: a\noptim:\n  lr: 1\n  steps: *none\n", 4),
        ("note: a\npaths:\n  data: !!python/object:os.system x\n", 3),
    ],
)
def test_invalid_yaml_names_the_file_and_line(refusal, text, line):
    assert re.match(rf"run\.yaml, line {line}: not valid YAML: ", refusal(text))


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [("note: a\nnote: b\n", "note", 2), ("note: a\noptim:\n  lr: 1\n  steps: 2\n  lr: 3\n", "lr", 5)],
)
def test_a_key_that_is_given_twice_is_refused_with_its_line(refusal, text, key, line):
    first = {"note": 1, "lr": 3}[key]
    expected = f"run.yaml, line {line}: key '{key}' is given twice, first in line {first}: remove one of them"
    assert refusal(text) == expected


@pytest.mark.parametrize("data", [b"note: \xff\xfe\n", b"note: \0\n"])
def test_bytes_that_are_no_text_are_refused_in_one_line(tmp_path, data):
    (tmp_path / "run.yaml").write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.yaml", [], Small)
    assert str(caught.value).startswith(str(tmp_path / "run.yaml"))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [("# nothing\n", "nothing"), ("- a\n- b\n", "a list"), ("word\n", "text"), ("3\n", "the value 3")],
)
def test_a_file_that_is_no_mapping_is_refused(refusal, text, found):
    assert refusal(text) == f"run.yaml: a config is a YAML mapping of sections, found {found}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "run.yaml: the file is empty"),
        (" \n\n", "run.yaml: the file is empty"),
        ("base: absent.yaml\n", "absent.yaml: no such file"),
        ("base: ''\n", "run.yaml: key 'base': expected a path, got ''"),
        ("base: [a.yaml]\n", "run.yaml: key 'base': expected the path of one file, got ['a.yaml']"),
        ("base: ..\n", "..: can't be read: it is a folder: name a file in it"),
    ],
)
def test_what_cannot_be_read_is_named(refusal, text, line):
    assert refusal(text) == line


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path / 'absent.yaml'}: no such file")):
        load_config(tmp_path / "absent.yaml", [], Small)


def test_bases_in_a_circle_are_refused(tmp_path):
    _write(tmp_path / "a.yaml", "base: sub/../b.yaml\n")
    _write(tmp_path / "b.yaml", "base: a.yaml\n")
    (tmp_path / "sub").mkdir()
    with pytest.raises(ConfigError, match=r"a\.yaml: 'base' leads back to itself"):
        load_config(tmp_path / "a.yaml", [], Small)


def test_one_base_below_two_files_is_no_circle(tmp_path):
    _write(tmp_path / "base.yaml", "note: x\n")
    for name in ("a", "b"):
        assert load_config(_write(tmp_path / f"{name}.yaml", "base: base.yaml\n"), [], Small).note == "x"


@pytest.mark.parametrize(
    ("override", "key", "suggestion"),
    [
        ("optim.lrr=1", "optim.lrr", "optim.lr"),
        ("optim.step=1", "optim.step", "optim.steps"),
        ("optimm.lr=1", "optimm", "optim"),
        ("nott=1", "nott", "note"),
        ("optim.cache=x", "optim.cache", "paths.cache"),
        ("paths.steps=1", "paths.steps", "optim.steps"),
        ("lr=1", "lr", "optim.lr"),
    ],
)
def test_an_unknown_key_suggests_the_nearest_and_the_right_section(refusal, override, key, suggestion):
    message = refusal("paths: {data: x}\n", override)
    assert message == f"run.yaml: unknown key '{key}'; did you mean '{suggestion}'?"


def test_an_unknown_key_unlike_any_other_lists_the_known_ones(refusal):
    assert refusal("{}", "optim.qqqqqqqq=1").endswith("; known here: optim.lr, optim.steps, optim.betas")
    assert refusal("{}", "zzzzzzzzz=1").endswith("; known here: optim, paths, note")


def test_a_misspelled_required_key_is_reported_as_misspelled(refusal):
    message = refusal("paths: {dat: x}\n")
    assert "unknown key 'paths.dat'; did you mean 'paths.data'?" in message


def test_a_missing_key_is_named(refusal):
    assert refusal("paths: {cache: x}\n") == "run.yaml: key 'paths.data' is required"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("optim.steps=many", "optim.steps"),
        ("optim.steps=1.5", "optim.steps"),
        ("optim.steps=true", "optim.steps"),
        ("optim.steps='3'", "optim.steps"),
        ("optim.lr=fast", "optim.lr"),
        ("optim.lr=", "optim.lr"),
        ("optim.betas=[1, x]", "optim.betas.1"),
        ("optim=3", "optim"),
        ("note=3", "note"),
    ],
)
def test_a_value_of_another_type_is_refused_and_named(refusal, override, key):
    message = refusal("{}", override)
    assert message.startswith(f"run.yaml: key '{key}': ")
    assert ", got " in message


@pytest.mark.parametrize("override", ["optim.lr.x=1", "note.a.b=1"])
def test_an_override_into_a_value_is_refused(refusal, override):
    assert "is a value, not a section" in refusal("optim: {lr: 1.0}\nnote: hello\n", override)


@pytest.mark.parametrize("override", ["optim.lr", "=3", ""])
def test_an_override_without_key_or_value_is_refused(refusal, override):
    assert refusal("{}", override) == f"override '{override}': expected key.sub=value"


def test_an_override_that_is_no_yaml_is_refused(refusal):
    assert refusal("{}", "optim.betas=[1").startswith("override 'optim.betas=[1'")


def test_a_config_cannot_be_changed_afterwards(load):
    with pytest.raises(ValueError, match="frozen"):
        load("{}").note = "x"


def test_the_resolved_config_reads_back_the_same(load, tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH_TEST", "/a b: c # d")
    config = load("optim: {lr: 1e-7, betas: [1e-3]}\n", "paths.data=${SCRATCH_TEST}", "note='1e-3'")
    again = load_config(_write(tmp_path / "again.yaml", dump_config(config)), [], Small)
    assert again == config

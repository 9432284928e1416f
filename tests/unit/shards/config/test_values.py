"""Values of a config as people write them: typed as they look, or refused with the way to write them."""

import json
from datetime import UTC, date, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from launch.command import read_command
from pretrain.config import PretrainConfig
from shards.config import ConfigModel, dump_config, load_config
from shards.config.fields import PathText, Switch
from shards.config.yaml import dump_yaml, parse_yaml
from shards.errors import ConfigError
from shards.order.selection import ViewConfig

MINIMAL = "run: {dir: out}\ndata: {shards: in}\ntrain: {steps: 5}\n"


class Values(ConfigModel):
    """One field of each kind."""

    count: int = 1
    rate: float = 1.0
    rates: tuple[float, ...] = Field(default=(), strict=False)
    name: str = ""
    path: PathText = "here"
    switch: Switch = False
    maybe: int | None = 1


@pytest.fixture
def load(tmp_path, monkeypatch):
    for name, value in {"N": "7", "F": "1e-4", "T": "true", "TEXT": "a b", "ID": "0123", "EMPTY": ""}.items():
        monkeypatch.setenv(f"{name}_TEST", value)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("NONE_TEST", raising=False)

    def _load(text, *overrides, suffix=".yaml"):
        path = tmp_path / f"run{suffix}"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(path, overrides, Values)

    return _load


@pytest.fixture
def refusal(load, tmp_path):
    def _refusal(text, *overrides, suffix=".yaml"):
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides, suffix=suffix)
        message = str(caught.value)
        assert len(message.splitlines()) == 1
        assert caught.value.exit_code == 2
        return message.replace(f"{tmp_path}/", "")

    return _refusal


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rate: 1e-4", 1e-4),
        ("rate: 1E5", 1e5),
        ("rate: -.5e+1", -5.0),
        ("rate: 5.", 5.0),
        ("rate: 3", 3.0),
        ("rate: ${F_TEST}", 1e-4),
        ("rate: ${N_TEST}e-2", 0.07),
        ("count: 1_000", 1000),
        ("count: 0x1F", 31),
        ("count: +5", 5),
        ("count: ${N_TEST}", 7),
        ("count: 1${N_TEST}", 17),
        ("maybe:", None),
        ("maybe: ~", None),
        ("maybe: null", None),
        ("maybe: ${N_TEST}", 7),
        ("rates: [1e-3, .5, 2]", (1e-3, 0.5, 2.0)),
        ("rates: []", ()),
        ("name: no", "no"),
        ("name: Yes", "Yes"),
        ("name: on", "on"),
        ("name: y", "y"),
        ("name: 2022-06-30", "2022-06-30"),
        ("name: '0644'", "0644"),
        ("name: '12:30:00'", "12:30:00"),
        ("name: ''", ""),
        ("name: '${N_TEST}'", "7"),
        ("name: ${TEXT_TEST}", "a b"),
        ("name: $N_TEST", "$N_TEST"),
        ("switch: yes", True),
        ("switch: OFF", False),
        ("switch: true", True),
        ("switch: ${T_TEST}", True),
        ("path: ~/runs/a b", "/home/me/runs/a b"),
        ("path: $HOME/runs", "/home/me/runs"),
        ("path: ${HOME}/runs/${N_TEST}", "/home/me/runs/7"),
        ("path: a/${TEXT_TEST}/~", "a/a b/~"),
        ("path: s3://$TEXT_TEST/~x", "s3://a b/~x"),
        ("path: ./~x", "./~x"),
    ],
)
def test_a_value_has_the_type_it_looks_like(load, line, expected):
    key = line.partition(":")[0]
    override = f"{key}={line.partition(':')[2].strip()}"
    for config in (load(line), load("{}", override)):
        assert getattr(config, key) == expected
        assert type(getattr(config, key)) is type(expected)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("count: 0644", "line 1: 0644 may be octal: write 644 for the decimal number, or '0644' in quotes for text"),
        ("count: 0o17", "0o17 may be octal"),
        ("name: 007", "007 may be octal"),
        ("name: 08", "08 may be octal"),
        ("count: 12:30:00", "12:30:00 may be a number in base 60: write a plain number, or '12:30:00' in quotes"),
        ("rate: 1:30.5", "1:30.5 may be a number in base 60"),
        ("12:30: x", "12:30 may be a number in base 60"),
        ("count: ${ID_TEST}", "key 'count': 0123 may be octal"),
        ("count: 1e4", "key 'count': expected a whole number, got 10000.0: write 10000"),
        ("count: '7'", "key 'count': expected a whole number, got '7': write 7 without quotes"),
        ("count: yes", "key 'count': expected a whole number, got 'yes'"),
        ("count: true", "key 'count': expected a whole number, got true"),
        ("count:", "key 'count': expected a whole number, got null: an empty value is null: give a value, or remove"),
        ("rate: .nan", "key 'rate': expected a number, got nan"),
        ("rate: .inf", "key 'rate': expected a number, got inf"),
        ("rate: 1e999", "key 'rate': expected a number, got inf"),
        ("rate: 50%", "key 'rate': expected a number, got '50%': write 0.5"),
        ("rate: '1e-4'", "key 'rate': expected a number, got '1e-4': write 1e-4 without quotes"),
        ("rate: [1]", "key 'rate': expected a number, got [1]"),
        ("rates: 1e-4", "key 'rates': expected a list, each a number, got 0.0001: write [0.0001]"),
        ("rates: [1, .inf]", "key 'rates.1': expected a number, got inf"),
        ("maybe: none", "key 'maybe': expected a whole number, or null, got 'none': write null"),
        ("switch: 1", "key 'switch': expected true or false, got 1: write true"),
        ("rates: (1e-3, 1)", "got '(1e-3, 1)': write [1e-3, 1]"),
        ("rates: 1, 2", "got '1, 2': write [1, 2]"),
        ("switch: maybe", "key 'switch': expected true or false, got 'maybe'"),
        ("name: 3", "key 'name': expected text, got 3: write '3' in quotes, on a command line \"'3'\""),
        ("path:", "key 'path': expected a path, got null"),
        ("path: ''", "key 'path': expected a path, got ''"),
        ("path: $NONE_TEST/a", "key 'path': '$NONE_TEST/a' needs the environment variable NONE_TEST, which is not set"),
        ("path: ${NONE_TEST}/a", "key 'path': '${NONE_TEST}/a' needs the environment variable NONE_TEST, which is not"),
        ("path: a/$EMPTY_TEST", "needs the environment variable EMPTY_TEST, which is empty"),
        ("path: ${N_TEST:-x}", "'$' in '${N_TEST:-x}' doesn't name a variable"),
        ("path: a$", "'$' in 'a$' doesn't name a variable"),
        ("path: ~no-such-user/a", "~no-such-user is not a user's home folder: write ./~no-such-user/a"),
        ('path: "a\\nb"', "a path has no line breaks"),
        ("count: ${N_TEST:-3}", "got '${N_TEST:-3}': a variable is written ${NAME}, without a default"),
        ("count: ${NONE_TEST}", "key 'count': '${NONE_TEST}' needs the environment variable NONE_TEST"),
    ],
)
def test_a_value_that_means_something_else_is_refused_with_the_way_to_write_it(refusal, line, says):
    assert says in refusal(line)


def test_an_override_goes_through_the_same_typing_and_messages(refusal):
    for value in ("1e4", "'7'", "yes", "", ".nan", "${N_TEST:-3}", "${ID_TEST}", "[1]", "{a: 1}"):
        assert refusal("{}", f"count={value}") == refusal(f"count: {value}")
    assert refusal("{}", "count=0644").startswith("override 'count=0644', line 1: 0644 may be octal")


@pytest.mark.parametrize("override", ["a..b=1", ".count=1", "count.=1", "count"])
def test_an_override_names_a_key(refusal, override):
    assert refusal("{}", override) == f"override '{override}': expected key.sub=value"


def test_what_an_override_would_lose_as_a_comment_is_refused(load, refusal):
    assert "YAML drops what follows ' #'" in refusal("{}", "path=/data/run #3")
    assert load("{}", "path='/data/run #3'").path == "/data/run #3"


def test_merge_keys_and_anchors_are_filled_in(load):
    config = load("<<: {count: 3, rate: 2}\ncount: 4\nrates: &r [1]\n")
    assert (config.count, config.rate, config.rates) == (4, 2.0, (1.0,))


def test_merges_that_grow_without_end_are_refused(refusal):
    bomb = "a0: &a0 {k: 1}\n" + "".join(
        f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}], k{n}: 1}}\n" for n in range(1, 9)
    )
    assert "more than 100000 values" in refusal(bomb)
    assert "an alias that contains itself" in refusal("name: &a {<<: *a}\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("count: 1\n---\ncount: 2\n", "line 2: not valid YAML: but found another document: write one document"),
        ("rates:\n\t- 1\n", "line 2: not valid YAML: found character '\\t' that cannot start any token: indent with"),
        ("name: a: b\n", "quote text that has ': ' in it"),
        ("name: !env X\n", "quote text that begins with '!'"),
        ("name: *x\n", "quote text that begins with '*'"),
        ("name: @x\n", "quote text that begins with it"),
        ('path: "C:\\data"\n', "use single quotes"),
        ("rates: [${N_TEST}, 1]\n", "within { } and [ ], quote text that holds ${...}"),
        ("? [a]\n: 1\n", "a key is a list or a mapping"),
        ("1: 2\n", "line 1: key 1 is not text: write a name, or '1'"),
        ("~: 2\n", "key ~ is not text"),
        ("true: 2\n", "key true is not text"),
    ],
)
def test_what_is_no_config_is_told_with_its_mend(refusal, text, says):
    assert says in refusal(text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_config_of_any_editor_is_read(load, encoding):
    assert load("# Größe\r\nname: ü\r\n".encode(encoding)).name == "ü"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("count: 1\nname: ü\n".encode("latin-1"), "run.yaml: not UTF-8 text (line 2): save it as UTF-8"),
        ("count: 1\n".encode("utf-16-le"), "run.yaml: not UTF-8 text (it contains NUL characters): save it as UTF-8"),
        (b"\xff\xfea", "run.yaml: not UTF-16 text"),
        (b"", "run.yaml: the file is empty"),
    ],
)
def test_bytes_that_are_no_text_are_one_line(refusal, data, says):
    assert refusal(data).startswith(says)


def test_json_is_a_config_too(load, refusal):
    assert load('{\n\t"rate": 1e-4,\n\t"path": "${HOME}/a\\/b"\n}', suffix=".json").path == "/home/me/a/b"
    assert "not valid JSON: key 'rate' is given twice" in refusal('{"rate": 1, "rate": 2}', suffix=".json")
    assert refusal('{"rate": 1,\n}', suffix=".json").startswith("run.json, line 2: not valid JSON: ")
    assert "key 'rate': expected a number, got nan" in refusal('{"rate": NaN}', suffix=".json")
    assert "found a list" in refusal("[1]", suffix=".json")
    assert "nested too deeply" in refusal('{"a":' * 500 + "1" + "}" * 500, suffix=".json")


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(["no", "0644", "0o7", "08", "1e5", "12:30", "<<", "~", "2022-01-01", "=", ".5", "1_0", "y"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(PLAIN)
def test_what_is_written_reads_back_the_same(value):
    again = parse_yaml(dump_yaml(value), "x")
    assert json.dumps(again) == json.dumps(value)


def test_a_value_out_of_range_ends_the_command_with_code_2(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    with pytest.raises(SystemExit) as caught:
        read_command(["--config", str(path), "optim.betas=[0.9, 1]"], PretrainConfig, "")
    out, err = capsys.readouterr()
    assert (caught.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {path}: key 'optim.betas.1': expected a number of at least 0 and less than 1, got 1")


def test_a_path_that_was_expanded_reads_back(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL.replace("dir: out", "dir: ~/a b"))
    config = load_config("~/run.yaml", [], PretrainConfig)
    path.write_text(dump_config(config))
    assert load_config(path, [], PretrainConfig) == config


@pytest.mark.parametrize("day", ["2022-06-30", "20220630", date(2022, 6, 30), datetime(2022, 6, 30, 12, tzinfo=UTC)])
def test_a_day_is_text_or_a_date_of_python(day):
    assert ViewConfig(begin=day).begin == "2022-06-30"

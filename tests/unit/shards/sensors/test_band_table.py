"""Band tables as spreadsheets write them: read right, or refused in a line that says what to change."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ConfigError
from shards.sensors.band_table import BandTable, parse_band_table, read_band_table
from shards.sensors.sensor import get_sensor

PLAIN = BandTable((420.5, 430.0, 440.25), (10.0, 11.0, 12.5), (0, 2))
TEXTS = {
    "plain": "wavelength_nm,fwhm_nm,kept\n420.5,10,1\n430,11,0\n440.25,12.5,1\n",
    "semicolons and decimal commas": "wavelength_nm;fwhm_nm;kept\n420,5;10;1\n430;11;0\n440,25;12,5;1\n",
    "tabs": "wavelength_nm\tfwhm_nm\tkept\n420.5\t10\t1\n430\t11\t0\n440.25\t12.5\t1\n",
    "micrometers": "wavelength_um,fwhm_um,kept\n0.4205,0.010,1\n0.43,0.011,0\n0.44025,0.0125,1\n",
    "other columns": 'Band,kept,FWHM_nm, "Wavelength_nm" \n1,1,10,420.5\n2,0,11,430\n"3, IR",1,12.5,440.25\n',
    "empty lines and comments": "# mine\nwavelength_nm,fwhm_nm,kept\n\n420.5,10,1\n,,\n430,11,0\n440.25,12.5,1,\n\n",
    "Excel's first line": "sep=;\nwavelength_nm;fwhm_nm;kept\r\n420.5;10;1\r\n430;11;0\r\n440.25;12.5;1\r\n",
    "flags as numbers": "wavelength_nm,fwhm_nm,kept\n420.5,10,1.0\n430,11,0.0\n440.25,12.5, 1\n",
    "flags as words": "wavelength_nm,fwhm_nm,kept\n420.5,10,TRUE\n430,11,False\n440.25,12.5,yes\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_forms_of_a_table_mean_the_same(text):
    assert parse_band_table(text, "mine.csv") == PLAIN


def test_without_a_column_kept_all_bands_are_kept_in_the_order_of_their_rows():
    table = parse_band_table("wavelength_nm,fwhm_nm\n900,10\n500,10\n700,10\n", "mine.csv")
    assert (table.wavelength_nm, table.kept) == ((900.0, 500.0, 700.0), (0, 1, 2))


HEADER = "wavelength_nm,fwhm_nm,kept\n400,10,1\n"
WRONG = {
    "no columns": ("center,width\n400,10\n", "one column wavelength_nm"),
    "empty": ("", "one column wavelength_nm"),
    "a column twice": ("wavelength_nm,fwhm_nm,Wavelength_nm\n400,10,500\n", "column wavelength_nm occurs twice"),
    "flags twice": ("wavelength_nm;kept;fwhm_nm;kept\n400;1;10;0\n", "column kept occurs twice"),
    "a misspelled column": (
        "wavelenght_nm,fwhm_nm\n400,10\n",
        "did you mean wavelength_nm or wavelength_um by 'wavelenght_nm'?",
    ),
    "a column without its unit": (
        "wavelength;fwhm_nm\n400;10\n",
        "did you mean wavelength_um or wavelength_nm by 'wavelength'?",
    ),
    "misspelled flags": ("wavelength_nm,fwhm_nm,keept\n400,10,0\n", "unknown column 'keept': did you mean kept?"),
    "both units": ("wavelength_nm,wavelength_um,fwhm_nm\n400,0.4,10\n", "one column wavelength_nm"),
    "no rows": ("wavelength_nm,fwhm_nm\n", "has no bands: give one row"),
    "nothing kept": ("wavelength_nm,fwhm_nm,kept\n400,10,0\n", "has no bands that are kept"),
    "no number": (HEADER + "blue,10,1\n", "band 2: wavelength_nm is 'blue'"),
    "no value": (HEADER + "410,,1\n", "band 2: fwhm_nm is ''"),
    "NaN": (HEADER + "nan,10,1\n", "band 2: wavelength_nm is 'nan'"),
    "infinite": (HEADER + "410,inf,1\n", "band 2: fwhm_nm is 'inf'"),
    "negative": (HEADER + "-410,10,1\n", "band 2: wavelength_nm is '-410'"),
    "decimal commas between commas": ("wavelength_nm,fwhm_nm\n400,5,10,2\n", "4 cells under 2 columns"),
    "a flag of another kind": (HEADER + "410,10,maybe\n", "band 2: kept is 'maybe'"),
    "no flag": (HEADER + "410,10\n", "band 2: kept is ''"),
    "micrometers called nm": ("wavelength_nm,fwhm_nm\n0.4,0.01\n", "micrometers in wavelength_um"),
    "nm called micrometers": ("wavelength_um,fwhm_um\n400,10\n", "give nm in a column wavelength_nm"),
    "widths in micrometers": ("wavelength_nm,fwhm_nm\n400,0.01\n", "in micrometers in fwhm_um"),
    "widths wider than the spectrum": ("wavelength_nm,fwhm_nm\n400,10000\n", "is 10000 nm wide"),
    "a center twice": (HEADER + "410,10,1\n400,9,1\n", "band 3: is at 400 nm like band 1"),
    "a cell without end": (HEADER + '"' + "x" * 140_000, "not CSV"),
}


@pytest.mark.parametrize(("text", "says"), WRONG.values(), ids=WRONG.keys())
def test_what_is_no_table_is_one_line(text, says):
    with pytest.raises(ConfigError) as raised:
        parse_band_table(text, "sensor mine.csv")
    assert says in str(raised.value)
    assert str(raised.value).startswith("sensor mine.csv") and "\n" not in str(raised.value)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = tmp_path / "mine.CSV"
    path.write_bytes(b"\xef\xbb\xbf" + TEXTS["plain"].encode())
    assert read_band_table(path) == PLAIN
    assert get_sensor(str(path)).kept == PLAIN.kept


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_table_of_any_editor_is_read(tmp_path, encoding):
    path = tmp_path / "mine.csv"
    path.write_bytes(TEXTS["tabs"].replace("\n", "\r\n").encode(encoding))
    assert read_band_table(path) == PLAIN


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        ("wavelength_nm,fwhm_nm,name\n400,10,grün\n".encode("latin-1"), r"not UTF-8 text \(line 2\): save it as UTF-8"),
        ("wavelength_nm,fwhm_nm\n400,10\n".encode("utf-16-le"), "it contains NUL characters"),
    ],
)
def test_a_file_that_can_not_be_read_is_one_line(tmp_path, data, says):
    if data is not None:
        (tmp_path / "mine.csv").write_bytes(data)
    with pytest.raises(ConfigError, match=says):
        get_sensor(str(tmp_path / "mine.csv"))


def test_a_table_that_changed_is_read_again(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("wavelength_nm,fwhm_nm\n400,10\n")
    before = get_sensor(str(path))
    path.write_text("wavelength_nm,fwhm_nm\n500,10\n")
    assert (before.wavelength_nm, get_sensor(str(path)).wavelength_nm) == ((400.0,), (500.0,))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(TEXTS.values())), st.data())
def test_a_damaged_table_is_read_or_refused_in_one_line(text, data):
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(text)))
        end = min(len(text), begin + data.draw(st.integers(0, 12)))
        text = (
            text[:begin]
            + data.draw(st.text(alphabet='0123456789.,;\t\n\r"#-einfa\0\x1c\u00b5', max_size=8))
            + text[end:]
        )
    try:
        table = parse_band_table(text, "mine.csv")
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert len(table.wavelength_nm) == len(table.fwhm_nm) >= len(table.kept) > 0
        assert 100 <= min(table.wavelength_nm) <= max(table.wavelength_nm) < 1e5

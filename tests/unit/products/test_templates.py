"""Name templates: what is filled in is read back, nothing that does not fit is, and long names cost no time."""

from __future__ import annotations

import re
import time
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.products.templates import DAY_FIELDS, FIELDS, Template, TemplateError, date_fields, key_text, key_values

DAYS = st.dates(date(1900, 1, 1), date(2999, 12, 31))
MOMENTS = st.builds(datetime.combine, DAYS, st.times(timezones=st.just(UTC)))
PATHS = {"ROOTDIR", "CODEDIR"}  # of arguments, never of names


def digits(count: int) -> st.SearchStrategy[str]:
    """So many digits."""
    return st.integers(0, 10**count - 1).map(lambda number: f"{number:0{count}d}")


OTHERS: dict[str, st.SearchStrategy[str]] = {
    "VERSION": st.tuples(*[st.integers(0, 999_999_999)] * 3).map(lambda parts: ".".join(map(str, parts))),
    "QACODE": st.sampled_from(["ok", "ignore", "problem"]),
    "mday": st.integers(-999, 99_999).map(str),
    "ORBIT": st.integers(0, 99_999).map(str),
    "APID": st.integers(0, 0xFFFF).map(lambda number: f"{number:x}"),
    "nn": digits(2),
    "nnn": digits(3),
    "nnnn": digits(4),
    "nnnnnn": digits(6),
    "??": st.text("ab1_. \n", min_size=2, max_size=2),
    "????": st.text("ab1_. \n", min_size=4, max_size=4),
    "SIDE": st.text("ab1_.- \n'\"{}\\é", min_size=1, max_size=9),
    "n": st.text("ab", min_size=1, max_size=3),
}
NAMES = sorted((FIELDS.keys() | OTHERS.keys()) - PATHS)


@st.composite
def filled(draw: st.DrawFn, names: list[str]) -> dict[str, str]:
    """Values of all these fields."""
    moment = draw(MOMENTS)
    values = date_fields(moment.date(), moment)
    return {name: values[name] if name in values else draw(OTHERS[name]) for name in names}


@given(st.data())
@settings(max_examples=150)
def test_what_is_filled_in_is_read_back(data: st.DataObject) -> None:
    """Each field, among any others and with any text between, has the value that it was filled with."""
    names = data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=6, unique=True))
    values = data.draw(filled(names))
    # No value holds '+', so that there is one way to read the name; everything in it means itself.
    between = data.draw(st.lists(st.sampled_from(["+", "+.*", "(+", "+[a]", "+{{}}", "+\\d"]), min_size=6, max_size=6))
    template = Template(
        "demo" + "".join(f"{text}{{{name}}}" for text, name in zip(between, names, strict=False)) + "+x"
    )
    name = template.fill(values)
    assert template.match(name) == values
    assert template.match(name + "x") is None and template.match("x" + name) is None and template.match("") is None


@given(DAYS, digits(3), digits(2))
@settings(max_examples=50)
def test_fields_of_known_width_need_nothing_between_them(day: date, number: str, other: str) -> None:
    """Dates and numbers one after the other are told apart by their widths."""
    values = date_fields(day) | {"nnn": number, "nn": other, "H": "23", "M": "59", "S": "60"}
    template = Template("{Y}{m}{d}{H}{M}{S}{j}{nnn}{b}{nn}{y}{DATE}{datetime}")
    assert template.match(template.fill(values)) == values


@pytest.mark.parametrize(
    ("text", "name", "fits"),
    [
        ("{Y}", "2020", True),
        ("{Y}", "1899", False),
        ("{Y}", "٢٠٢٠", False),
        ("{m}", "13", False),
        ("{m}", "00", False),
        ("{d}", "32", False),
        ("{d}", "31", True),
        ("{j}", "366", True),
        ("{j}", "367", False),
        ("{j}", "000", False),
        ("{H}", "24", False),
        ("{M}", "60", False),
        ("{b}", "Feb", True),
        ("{b}", "feb", False),
        ("{DATE}", "20201301", False),
        ("{VERSION}", "1.0", False),
        ("{VERSION}", "1.10.0", True),
        ("{VERSION}", "1.0.4294967296", False),
        ("{QACODE}", "okay", False),
        ("{mday}", "-3", True),
        ("{APID}", "1fA", True),
        ("{APID}", "1g", False),
        ("{ORBIT}", "123", True),
        ("{ORBIT:05d}", "123", False),
        ("{ORBIT:05d}", "00123", True),
        ("{ORBIT:05d}", "123456", True),
        ("{nnnn}", "123", False),
        ("{???}", "a.b", True),
        ("{SIDE}", "", False),
        ("{SIDE}", "a/b", False),
        ("{SIDE}", "two\nlines", True),
        ("{Y}.dat", "2020xdat", False),
        ("{Y}.dat", "2020.dat\n", False),
        ("{{{Y}}}", "{2020}", True),
        ("a{{b}}c", "a{b}c", True),
        ("{Y}_{Y}", "2020_2020", True),
        ("{Y}_{Y}", "2020_2021", False),
        ("{SIDE}_{SIDE}", "a_b_a_b", True),
        ("{SIDE}_{SIDE}", "a_b_b_a", False),
        ("{A}_{B}_{A}", "x_y_z_x_y", True),
        ("{A}_{B}-{A}", "x_y_z-x_y", True),
    ],
)
def test_a_name_fits_whole_or_not_at_all(text: str, name: str, fits: bool) -> None:
    """Each field takes what it is made for, literal text only itself, and what occurs twice is the same twice."""
    assert (Template(text).match(name) is not None) is fits


@pytest.mark.parametrize(
    ("text", "values", "name"),
    [
        ("{ORBIT:05d}.dat", {"ORBIT": "123"}, "00123.dat"),
        ("{mday:04d}_{Y:04d}{j:03d}", {"mday": "95", "Y": "2012", "j": "337"}, "0095_2012337"),
        ("{mday:d}_{APID:x}", {"mday": "-5", "APID": "1f"}, "-5_1f"),
        ("a{{{Y}}}{{", {"Y": "2020", "m": "01"}, "a{2020}{"),
        ("L0/{Y}/{m}", {"Y": "2020", "m": "01"}, "L0/2020/01"),
        ("--root={ROOTDIR}", {"ROOTDIR": "/data/demo"}, "--root=/data/demo"),
        ("../{SIDE}", {"SIDE": "a..b"}, "../a..b"),
        ("", {}, ""),
    ],
)
def test_a_template_is_filled(text: str, values: dict[str, str], name: str) -> None:
    """Numbers are padded as the format says, braces that were doubled are single, values not asked for are ignored."""
    assert Template(text).fill(values) == name


@pytest.mark.parametrize(
    ("text", "values", "says"),
    [
        ("x{H}", {}, r"^format 'x\{H\}' of product l1 needs \{H\}, which nothing gives$"),
        ("{H}", {"H": "7"}, r"'7' cannot be its \{H\}"),
        ("{m}", {"m": "13"}, r"'13' cannot be its \{m\}"),
        ("{VERSION}", {"VERSION": "v1.0.0"}, r"'v1.0.0' cannot be its \{VERSION\}"),
        ("{SIDE}", {"SIDE": ""}, r"'' cannot be its \{SIDE\}"),
        ("{SIDE}", {"SIDE": "../../etc"}, r"cannot be its \{SIDE\}"),
        ("L0/{SIDE}/{Y}", {"SIDE": "..", "Y": "2020"}, r"'L0/../2020', which leads out of its folder"),
        ("{A}{B}/x", {"A": ".", "B": "."}, r"leads out of its folder"),
    ],
)
def test_a_value_that_is_missing_or_unfit_is_named(text: str, values: dict[str, str], says: str) -> None:
    """The message has the format, whose it is, the field, and what was given; no value leads out of a folder."""
    with pytest.raises(TemplateError, match=says):
        Template(text, of="product l1").fill(values)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a{Y", "brace that is meant"),
        ("a}Y", "brace that is meant"),
        ("a{}", r"\{\} is no field"),
        ("{a b}", r"\{a b\} is no field"),
        ("{a=b}", r"is no field"),
        ("{Y!r}", r"\{Y!r\} is not understood; write \{Y\}"),
        ("{d:2d}", r"\{d:2d\} is not understood; write \{d\}"),
        ("{VERSION:05d}", "is not understood"),
        ("{SIDE:>9}", "is not understood"),
        ("{ORBIT:05d}_{ORBIT:06d}", "in two widths"),
    ],
)
def test_a_format_that_cannot_be_read_is_refused(text: str, says: str) -> None:
    """A brace too few, a field without a name, and a format specification that would change a field's width."""
    with pytest.raises(TemplateError, match=says):
        Template(text)


def test_fields_come_in_order_and_once() -> None:
    """`fields` is what a format needs, and each is a group of `regex`, which readers of names may use themselves."""
    template = Template("{SIDE}_{Y}{m}{d}_{Y}_v{VERSION}.dat")
    assert template.fields == ("SIDE", "Y", "m", "d", "VERSION")
    found = re.match(template.regex, "b_20200102_2020_v1.0.0.dat")
    assert found is not None and found.groups() == ("b", "2020", "01", "02", "1.0.0")


@given(
    st.lists(st.sampled_from(["{A}", "{B}", "{C}", "{D}", "a", "_", "{nn}", "{??}"]), min_size=1, max_size=9),
    st.text("a_1", max_size=12),
)
@settings(max_examples=300)
def test_names_fit_as_if_every_division_were_tried(pieces: list[str], name: str) -> None:
    """Not going back to a text that was found loses no name."""
    slow, groups = "", dict[str, int]()
    for piece in pieces:
        kinds = {"{nn}": "([0-9]{2})", "{??}": "([^/]{2})"}
        if piece in groups:
            slow += f"(?:\\{groups[piece]})"
        elif piece.startswith("{"):
            groups[piece] = len(groups) + 1
            slow += kinds.get(piece, "([^/]+)")
        else:
            slow += piece
    assert (Template("".join(pieces)).match(name) is not None) == (re.fullmatch(slow, name) is not None)


@pytest.mark.parametrize(
    "text",
    [
        "{A}{B}{C}{D}{E}{F}{G}{H2}.x",
        "{A}_{B}_{C}_{D}_{E}_{F}_{G}_{H2}.x",
        "{A}{nn}{B}{nnn}{C}{nnnn}{D}{ORBIT}{E}.x",
        "{A}_{mday}{B}{VERSION}{C}_{Y}{D}.x",
    ],
)
def test_long_names_take_no_time(text: str) -> None:
    """Trying all divisions of these names between six open fields would take hours."""
    began = time.monotonic()
    for name in ("a" * 255, "_" * 255, "1" * 255, "a_" * 127, "1.1." * 63, "2020_" * 51):
        assert Template(text).match(name) is None
        assert Template(text).guess(name) is None
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("demo_L0_{DATE}_v{VERSION}.dat", "DEMO-l0 2020-01-02_V1.0.DAT", {"DATE": "20200102", "VERSION": "1.0.0"}),
        ("demo_{Y}{m}{d}.dat", "demo_2020-1-2.dat", {"Y": "2020", "m": "01", "d": "02"}),
        ("x_{H}{M}_v{VERSION}", "x_03:12_v2", None),
        ("x_{Y}{j}T{H}_v{VERSION}", "x-2020-7t03_2", {"Y": "2020", "j": "007", "H": "03", "VERSION": "2.0.0"}),
        ("{SIDE}_{b}_{QACODE}", "b_FEB_OK", {"SIDE": "b", "b": "Feb", "QACODE": "ok"}),
        ("demo_L0_{DATE}.dat", "demo_L1_20200102.dat", None),
        ("demo_L0_{DATE}.dat", "junk.bin", None),
    ],
)
def test_values_are_guessed_out_of_a_misnamed_file(text: str, name: str, values: dict[str, str] | None) -> None:
    """Letter case, separators, padding and parts of a version may be wrong; letters and digits may not."""
    assert Template(text).guess(name) == values


@given(MOMENTS)
@settings(max_examples=50)
def test_a_moment_gives_the_fields_of_its_time_in_utc(moment: datetime) -> None:
    """Wherever a moment was measured, the time of day is that of UTC; a day alone gives no time of day."""
    values = date_fields(moment.date(), moment.astimezone(timezone(timedelta(hours=-7))))
    text = f"{values['DATE']}{values['H']}{values['M']}{values['S']}{values['MILLI']}{values['MICRO']}"
    assert datetime.strptime(text + "+0000", "%Y%m%d%H%M%S%f%z") == moment
    assert datetime.strptime(f"{values['Y']} {values['j']}", "%Y %j").date() == moment.date()  # noqa: DTZ007
    assert date_fields(moment.date()).keys() == DAY_FIELDS


@given(st.dictionaries(st.sampled_from(["H", "ORBIT", "SIDE", "nn"]), st.text("ab =\n'", min_size=1, max_size=5)))
@settings(max_examples=100)
def test_a_key_tells_its_values(values: dict[str, str]) -> None:
    """Keys are sorted by name, so that they can be compared, and are taken apart again."""
    plain = {name: value.replace("=", "-") for name, value in values.items()}
    assert key_values(key_text(plain)) == plain
    assert key_text(dict(sorted(plain.items(), reverse=True))) == key_text(plain)


def test_a_key_reads_as_words() -> None:
    """The form that other tables compare with."""
    assert key_text({"SIDE": "b", "H": "03"}) == "H=03 SIDE=b"
    assert key_text({}) == "" and key_values("") == {}

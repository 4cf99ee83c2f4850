"""The decoder of jsontriga's events, on what the trigger writes and on what it cannot have written."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.dispatch.jsontriga import decode, decode_type

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
scalars = st.none() | st.booleans() | st.integers() | names | st.just("")


@pytest.mark.parametrize(
    ("ev_type", "expected"),
    [
        ('{"op":"INSERT","table":["v","t"],"pkey":["id"]}', ("I", ("v", "t"), ("id",))),
        ('{"op":"UPDATE","table":["S.x","T \\"q"],"pkey":["a","b,c"]}', ("U", ("S.x", 'T "q'), ("a", "b,c"))),
        ('{"op":"DELETE","table":["v","t"],"pkey":["id"]}', ("D", ("v", "t"), ("id",))),
        ('{"op":"TRUNCATE","table":["v","t"],"pkey":[]}', ("R", ("v", "t"), ())),
    ],
)
def test_type(ev_type: str, expected: tuple[str, tuple[str, str], tuple[str, ...]]) -> None:
    """Operation, table and key come out of the type, whatever characters the names have."""
    assert decode_type(ev_type) == expected


@pytest.mark.parametrize(
    ("ev_type", "problem"),
    [
        ("I:id", "Expecting value"),
        ("[1]", "no object"),
        ("{}", '"op" is None'),
        ('{"op":"MERGE","table":["v","t"],"pkey":[]}', "\"op\" is 'MERGE'"),
        ('{"op":["INSERT"],"table":["v","t"],"pkey":[]}', '"op" is'),
        ('{"op":"INSERT","table":"v.t","pkey":[]}', '"table" is'),
        ('{"op":"INSERT","table":["v"],"pkey":[]}', '"table" is'),
        ('{"op":"INSERT","table":["v",""],"pkey":[]}', '"table" is'),
        ('{"op":"INSERT","table":["v","t"]}', '"pkey" is None'),
        ('{"op":"INSERT","table":["v","t"],"pkey":[1]}', '"pkey" is'),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_foreign_type(ev_type: str, problem: str) -> None:
    """JSON of another producer is a ValueError that says what is odd."""
    with pytest.raises(ValueError, match=problem):
        decode_type(ev_type)


@given(st.dictionaries(names, scalars), st.booleans())
def test_scalars_become_the_text_that_postgresql_prints(row: dict[str, str | int | None], ascii: bool) -> None:
    """Numbers keep their digits, booleans are t and f, NULL is None, texts are as they are."""
    expected = {
        name: value if value is None or isinstance(value, str) else {True: "t", False: "f"}[value]
        if isinstance(value, bool) else str(value)
        for name, value in row.items()
    }  # fmt: skip
    assert decode(json.dumps(row, ensure_ascii=ascii)) == expected


@pytest.mark.parametrize(
    "number", ["1.10", "0.1", "1e-45", "1E400", "-0", "-0.0", "1" * 5000, "12345678901234567890.10"]
)
def test_no_digit_of_a_number_is_lost(number: str) -> None:
    """A bare number stays the text that it is, longer than any float or Python's limit for int()."""
    assert decode(f'{{"n":{number}}}') == {"n": number}


def test_json_columns_stay_text() -> None:
    """A json column is a string with JSON in it, and its null is not NULL."""
    assert decode(r'{"j":"{\"b\": 1.10,  \"a\":[null]}","k":"null","l":null}') == {
        "j": '{"b": 1.10,  "a":[null]}',
        "k": "null",
        "l": None,
    }


@pytest.mark.parametrize(
    "data",
    [
        *("", "1", "[]", "null", '"a"', '{"a":{}}', '{"a":{"b":1}}', '{"a":[1]}', '[{"a":1}]', '{"a":NaN}'),
        *('{"a":-Infinity}', '{"a":1,"a":1}', '{"":1}', '{"a":1}x', '{"a":"\n"}', '{"a":' * 100_000),
        *('{"a":"\\ud800"}', '{"a":"\\u0000"}', '{"\\u0000":1}'),
    ],
)
def test_foreign_row(data: str) -> None:
    """What jsontriga cannot have written is a ValueError, not a guess."""
    with pytest.raises(ValueError):
        decode(data)


@given(st.text())
def test_any_text_is_a_row_or_a_value_error(data: str) -> None:
    """No text makes the decoder fail in another way, and what it gives is text that PostgreSQL can hold."""
    try:
        row = decode(data)
    except ValueError:
        return
    assert all(isinstance(value, str | None) for value in row.values())

"""The decoder of logutriga's rows and its twin, on the trigger's grammar and far from it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from skytools._cquoting import db_urldecode

from workers.dispatch import urlencoded
from workers.dispatch.urlencoded import Row, decode, decode_python, decoder
from workers.errors import PermanentFailure

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
values = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
rows = st.dictionaries(names, values, max_size=8)
pieces = st.sampled_from(
    [
        *("&", "=", "%", "+", "a", "b", "id", "0", "%3d", "%26", "%25", "%2B", "%c3%bc", "%c3", "%bc", "%f0%9f%94%ad"),
        *("%00", "%zz", "%4", "%ed%a0%80", "é", "漢", "\0", "\ud800", " ", "\n", ";", "٣", "%٣٣", "Ａ"),
    ]
)
near = st.lists(pieces, max_size=12).map("".join)
far = st.text(st.characters())


def encoded(row: Row, codec: str = "utf-8") -> str:
    """A row as logutriga writes it."""
    plain = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_.-"

    def escape(text: str) -> str:
        octets = text.encode(codec)
        return "".join(chr(o) if o in plain else "+" if o == 0x20 else f"%{o:02x}" for o in octets)

    return "&".join(escape(k) if v is None else f"{escape(k)}={escape(v)}" for k, v in row.items())


def outcome(decoding: Callable[[str], Row], data: str) -> Row | type[ValueError]:
    """The row, or that there is none."""
    try:
        return decoding(data)
    except ValueError:
        return ValueError


@given(rows)
def test_what_the_trigger_writes_comes_back(row: Row) -> None:
    """Every row survives the trigger's encoding, in C and in Python."""
    data = encoded(row)
    assert db_urldecode(data) == decode_python(data) == row


@given(near | far | rows.map(encoded))
@example("a=b=c=d&e==&=f=g&h")
@example("a=1&%c3=%bc")
def test_the_twin_is_equal_to_the_c_decoder(data: str) -> None:
    """For any text at all both give the same row, or both refuse it."""
    assert outcome(decode_python, data) == outcome(db_urldecode, data)


@pytest.mark.parametrize(
    ("data", "row"),
    [
        ("", {}),
        ("a&b=&c=NULL", {"a": None, "b": "", "c": "NULL"}),
        ("a%3db=%26%2b+%25", {"a=b": "&+ %"}),
        ("a=%C3%BC", {"a": "ü"}),
        ("&&a=1&", {"a": "1"}),
        ("a=1&a", {"a": None}),
        ("a=b=c=d", {"a": "b", "": "d"}),
        ("=3", {"": "3"}),
        ("é=ü", {"é": "ü"}),
        ("a=%00", {"a": "\0"}),
    ],
)
def test_known_answers(data: str, row: Row) -> None:
    """Both decoders give what is written here, also for what the trigger never writes."""
    assert decode(data) == row
    assert decode_python(data) == row


@pytest.mark.parametrize(
    "data", ["a=%zz", "a=%4", "a=%", "%=1", "a=%+1", "a=%e9", "a=%ed%a0%80", "a=\ud800", "a&%c0%80"]
)
def test_refused(data: str) -> None:
    """Wrong escapes and bytes that are no UTF-8 are a ValueError, never a replacement character."""
    for decoding in (decode, decode_python):
        with pytest.raises(ValueError):
            decoding(data)


@pytest.mark.parametrize(
    ("encoding", "codec", "text"),
    [
        ("LATIN1", "latin-1", "õäöü ÿ"),
        ("LATIN9", "iso8859-15", "€ Šš"),
        ("WIN1252", "cp1252", "€ “q”"),
        ("KOI8R", "koi8-r", "Привет"),
        ("EUC_KR", "euc_kr", "한국"),
    ],
)
def test_other_encodings(encoding: str, codec: str, text: str) -> None:
    """The bytes are read in the source database's encoding."""
    row: Row = {text: text, "n": None, "e": "", "p": "%&= +"}
    assert decoder(encoding)(encoded(row, codec)) == row


def test_utf8_is_decoded_in_c() -> None:
    """UTF8, and SQL_ASCII of which nothing is known, go by the C decoder itself."""
    assert decoder("UTF8") is decoder("SQL_ASCII") is decode is db_urldecode


@pytest.mark.parametrize("encoding", ["EUC_TW", "MULE_INTERNAL", "utf9", ""])
def test_unknown_encoding(encoding: str) -> None:
    """An encoding without a Python codec is a failure that names it and what can be done."""
    with pytest.raises(PermanentFailure, match=f"in {encoding} cannot be decoded: use pgq.jsontriga"):
        decoder(encoding)


def test_bytes_outside_the_encoding() -> None:
    """A byte that the encoding does not have is refused."""
    with pytest.raises(UnicodeDecodeError):
        decoder("WIN1252")("a=%81")


def test_without_the_c_module() -> None:
    """Where the C module is missing, the twin takes its place."""
    code = (
        "import sys; sys.modules['skytools._cquoting'] = None\n"
        "from workers.dispatch import urlencoded as u\n"
        "assert u.decode is u.decode_python is u.decoder('UTF8'); print(u.decode('a=%c3%bc&b'))"
    )
    root = urlencoded.__file__.rpartition("/workers/")[0]
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        encoding="utf-8",
    )
    assert done.stdout == "{'a': 'ü', 'b': None}\n"

"""Paths as text: every file name of Linux comes back exactly."""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workers.paths import to_bytes, to_text

pieces = st.sampled_from(
    [b"\\", b"x", b"5c", b"ff", b"\\xff", b"\\x5c", b"\\x", b"\xff", "é".encode(), b"\xc3", b"a", b"\n"]
)
names = st.one_of(st.binary(max_size=40), st.lists(pieces, max_size=10).map(b"".join)).filter(
    lambda raw: b"\0" not in raw
)


@given(names)
@example(b"\\x5cx41")
@example(b"\\x4\xff")
@example(b"\xff\\x5c")
def test_every_name_comes_back_exactly(raw: bytes) -> None:
    """Text and back is the identity for all bytes, and the text is valid Unicode."""
    text = to_text(raw)
    text.encode("utf-8")
    assert to_bytes(text) == raw
    assert to_text(os.fsdecode(raw)) == text


@given(names, names)
def test_two_names_never_share_a_text(one: bytes, other: bytes) -> None:
    """Different bytes have different texts."""
    assert (to_text(one) == to_text(other)) == (one == other)


@given(names, names)
def test_a_folder_and_a_name_may_be_joined_as_texts(folder: bytes, name: bytes) -> None:
    """The text of a joined path is the joined texts: no escape reaches across a slash."""
    assert to_text(folder + b"/" + name) == to_text(folder) + "/" + to_text(name)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"/data/plain.ndjson", "/data/plain.ndjson"),
        ("/data/é.ndjson".encode(), "/data/é.ndjson"),
        (b"/data/\xff", "/data/\\xff"),
        (b"/data/\\xff", "/data/\\x5cxff"),
        (b"/data/\\xFF", "/data/\\xFF"),
        (b"/data/a\\b", "/data/a\\b"),
        (b"/data/a\nb", "/data/a\nb"),
    ],
)
def test_only_what_must_be_is_escaped(raw: bytes, text: str) -> None:
    """UTF-8 stays as it is; a bad byte becomes an escape, and a name that reads like one keeps apart."""
    assert to_text(raw) == text

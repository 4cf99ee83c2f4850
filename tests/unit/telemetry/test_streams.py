"""Streams: content and positions of plain and compressed files, whole, growing, cut or damaged."""

from __future__ import annotations

import gzip
import io
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.telemetry.streams import Damage, Member, Piece, Position, Unfinished, gzip_pieces, plain_pieces


def noise(count: int, seed: int = 1) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(count)


def content(pieces: list[Piece]) -> bytes:
    """The content among the pieces."""
    return b"".join(piece for piece in pieces if isinstance(piece, bytes))


def kinds(pieces: list[Piece]) -> list[str]:
    """What else there is, in order."""
    return [type(piece).__name__ for piece in pieces if not isinstance(piece, bytes)]


def read(raw: bytes, position: Position = Position()) -> list[Piece]:  # noqa: B008 # frozen
    """Every piece of a compressed file."""
    return list(gzip_pieces(io.BytesIO(raw), position))


@pytest.mark.parametrize("position", [Position(), Position(0, 5, 0), Position(3, 2, 3), Position(10, 0, 10)])
def test_a_plain_file_is_read_from_its_position(position: Position) -> None:
    """The content of a plain file is its bytes from raw + skip on."""
    pieces = list(plain_pieces(io.BytesIO(b"0123456789"), position))
    assert content(pieces) == b"0123456789"[position.content :]


@given(
    st.lists(st.tuples(st.binary(max_size=3000), st.sampled_from([0, 1, 3, 512])), min_size=1, max_size=5), st.data()
)
@settings(max_examples=100, deadline=None)
def test_members_and_padding_are_one_content(parts: list[tuple[bytes, int]], data: st.DataObject) -> None:
    """Any members with zeros between them give their contents in a row, and every mark is a place to start from."""
    raw = b"".join(gzip.compress(part) + bytes(padding) for part, padding in parts)
    pieces = read(raw)
    whole = b"".join(part for part, _padding in parts)
    assert content(pieces) == whole
    assert set(kinds(pieces)) == {"Member"}
    made = 0
    for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
        if isinstance(piece, Member):
            assert content(read(raw, Position(piece.raw, 0, made))) == whole[made:]
            if isinstance(following, bytes):
                skip = data.draw(st.integers(0, len(following)))
                assert content(read(raw, Position(piece.raw, skip, made))) == whole[made + skip :]
        elif isinstance(piece, bytes):
            made += len(piece)


@given(st.integers(0, 2_000_000), st.integers(0, 4000))
@settings(max_examples=60, deadline=None)
def test_a_cut_member_gives_a_prefix_and_says_that_it_is_unfinished(seed: int, cut: int) -> None:
    """Wherever a member is cut, what comes is the beginning of its content, and no damage."""
    whole = noise(2000, seed) + b"x" * 2000
    raw = gzip.compress(whole)
    pieces = read(raw[: min(cut, len(raw) - 1)])
    assert whole.startswith(content(pieces))
    assert not any(isinstance(piece, Damage) for piece in pieces)
    assert not pieces or isinstance(pieces[-1], Unfinished) or cut == 0


def test_a_skip_beyond_what_a_cut_member_gives_yields_nothing() -> None:
    """Content that was taken before is not given twice, even if the file has less of it now."""
    raw = gzip.compress(noise(1000))
    assert content(read(raw[:500], Position(0, 900, 0))) == b""


@pytest.mark.parametrize("between", [b"garbage", noise(5000), b"\x1f\x8b", b"\x1f\x8b\x09", b"\0\0x\0\0"])
def test_what_is_no_gzip_between_members_is_one_damage(between: bytes) -> None:
    """Bytes between members that are no padding are a damage with their place; both members are whole."""
    first, second = gzip.compress(b"first"), gzip.compress(b"second")
    pieces = read(first + between + second)
    assert content(pieces) == b"firstsecond"
    damages = [piece for piece in pieces if isinstance(piece, Damage)]
    zeros = len(between) - len(between.lstrip(b"\0"))
    assert [(each.start, each.end) for each in damages] == [(len(first) + zeros, len(first) + len(between))]
    assert damages[0].raw == between[zeros:]


@pytest.mark.parametrize("size", [1, 2, 3, 300_000, 600_000])
def test_a_file_of_garbage_ends_as_one_damage(size: int) -> None:
    """A file that is no gzip at all is one damage over all of it."""
    raw = b"\x01" * size
    assert [(piece.start, piece.end) for piece in read(raw) if isinstance(piece, Damage)] == [(0, size)]


@pytest.mark.parametrize("at", [20, 500, 1500])
def test_a_damaged_member_gives_what_came_before_and_the_next_one_is_whole(at: int) -> None:
    """A flipped bit costs the rest of its member; content before it and the members behind it come."""
    text = "".join(f"{number:06d}\n" for number in range(2000)).encode()
    first = bytearray(gzip.compress(text))
    first[at] ^= 0x10
    second = gzip.compress(b"second")
    pieces = read(bytes(first) + second)
    found = content(pieces)
    assert found.endswith(b"second")
    assert kinds(pieces).count("Damage") == 1
    assert text.startswith(found[: min(at, len(found) - 6)])


@given(st.binary(max_size=300), st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_any_bytes_come_to_an_end(tail: bytes, seed: int) -> None:
    """Whatever follows a whole member: reading ends, and damages neither overlap nor run backwards."""
    first = gzip.compress(noise(100, seed))
    damages = [piece for piece in read(first + tail) if isinstance(piece, Damage)]
    assert all(before.end <= after.start for before, after in pairwise(damages))


def test_marks_behind_a_damaged_member_are_exact() -> None:
    """The place of the member behind a damaged one is the byte where it begins; damage ends within the file."""
    first = bytearray(gzip.compress(noise(3000)))
    first[-6] ^= 0xFF  # its checksum
    last = gzip.compress(b"last")
    raw = bytes(first) + last
    pieces = read(raw)
    assert all(piece.raw in (0, len(first), len(raw)) for piece in pieces if isinstance(piece, Member))
    alone = [piece for piece in read(bytes(first)) if isinstance(piece, Damage)]
    assert alone[-1].end <= len(first)

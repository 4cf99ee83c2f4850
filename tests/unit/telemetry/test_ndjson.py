"""JSON lines: the quick and the careful way agree, and whatever is no record is named with its place."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.telemetry.ndjson import judge_tail, parse_carefully, parse_quickly

DEVICE = b"cooler"
NUMBERS = ["0", "-0.0", "0.10", "1e400", "1E5", "2.50", "1e-400", "18446744073709551616", "nan", "-inf"]
STRINGS = ["", "plain", "ü😀", 'a\\"b', "\\\\", "tab\\t", "nan, [nan", '{\\"msg\\": 1}', "} }", "\\ud83d\\ude00"]

scalars = st.one_of(
    st.sampled_from(NUMBERS), st.sampled_from(STRINGS).map('"{}"'.format), st.sampled_from(["null", "true", "false"])
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(inner, max_size=3).map(lambda items: "{" + ",".join(f'"k": {item}' for item in items) + "}"),
    ),
    max_leaves=8,
)
messages = st.lists(values, max_size=3).map(
    lambda items: "{" + ", ".join(f'"k{n}": {item}' for n, item in enumerate(items)) + "}"
)


def line(message: str = "{}", *, ts: str = "2024-04-16T03:00:00.000001007", space: str = " ", end: str = "\n") -> bytes:
    """One line in the form that instruments write."""
    return (
        f'{{"ts":{space}"{ts}",{space}"prio":{space}"TELM",{space}"ec":{space}"e",{space}"msg":{space}{message}}}{end}'
    ).encode()


def rows(copy: bytes) -> list[list[bytes]]:
    """The fields of COPY lines; nanoseconds without leading zeros."""
    found = [each.split(b"\x02") for each in copy.removesuffix(b"\n").split(b"\n")]
    return [[*fields[:2], b"%d" % int(fields[2]), *fields[3:]] for fields in found]


def both_ways(chunk: bytes) -> tuple[list[list[bytes]] | None, list[list[bytes]]]:
    """What the quick and the careful way make of a chunk."""
    quick = parse_quickly(chunk, DEVICE)
    careful = parse_carefully(chunk, 0, DEVICE)
    return rows(quick[0]) if quick else None, [row for copy in careful.lines for row in rows(copy)]


@given(
    st.lists(st.tuples(messages, st.sampled_from(["", " "]), st.sampled_from(["\n", "\r\n"])), min_size=1, max_size=4)
)
@settings(max_examples=300, deadline=None)
def test_both_ways_give_the_same_bytes(parts: list[tuple[str, str, str]]) -> None:
    """A regular line gives byte for byte the same row the quick way and the careful way, and as many nulls."""
    chunk = b"".join(line(message, space=space, end=end) for message, space, end in parts)
    quick, careful = both_ways(chunk)
    assert quick == careful
    quickly = parse_quickly(chunk, DEVICE)
    assert quickly is not None
    assert quickly[1:] == (len(parts), parse_carefully(chunk, 0, DEVICE).nulled)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_every_byte_is_a_record_a_dead_letter_or_blank(noise: bytes) -> None:
    """Whatever the bytes are: spans and letters lie in order, never overlap, and leave out only blank lines."""
    chunk = line() + noise + b"\n" + line()
    parsed = parse_carefully(chunk, 1000, DEVICE)
    ranges = sorted([*parsed.spans, *((letter.start, letter.end) for letter in parsed.dead)])
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))
    covered = set().union(*(range(start - 1000, end - 1000) for start, end in ranges))
    left = bytes(byte for at, byte in enumerate(chunk) if at not in covered)
    assert not left.strip(b" \t\r\n")
    assert parsed.spans[0] == (1000, 1000 + len(line()))
    assert all(letter.raw == chunk[letter.start - 1000 : letter.end - 1000] for letter in parsed.dead)


@pytest.mark.parametrize(
    ("text", "stamp", "message"),
    [
        ('{"ts": "2024-04-16T03:00:00", "msg": 5}', "2024-04-16T03:00:00.000000|0", "5"),
        ('{"msg":null,"ts":"2024-04-16 03:00:00.5Z"}', "2024-04-16T03:00:00.500000|0", "null"),
        ('{"ts": "2024-03-20T05:56:59000", "msg": []}', "2024-03-20T05:56:59.000000|0", "[]"),
        ('{"ts": "2024-03-20T05:56:59.1+05:30", "msg": {}}', "2024-03-20T05:56:59.100000+05:30|0", "{}"),
        ('{"ts": "2024-03-20T05:56:59.123456789", "msg": 1}', "2024-03-20T05:56:59.123456|789", "1"),
        (
            '{"ts": "2024-03-20T05:56:59", "msg": {"b": 1,  "a": 0.10}}',
            "2024-03-20T05:56:59.000000|0",
            '{"b": 1,  "a": 0.10}',
        ),
        ('{"x": "\\"msg\\": 3", "ts": "2024-03-20T05:56:59", "msg" : 4}', "2024-03-20T05:56:59.000000|0", "4"),
        ('\ufeff{"ts": "2024-03-20T05:56:59", "msg": 1}', "2024-03-20T05:56:59.000000|0", "1"),
    ],
)
def test_an_unusual_record_is_a_record(text: str, stamp: str, message: str) -> None:
    """Keys in any order, other spacing, short timestamps and a BOM are all understood."""
    parsed = parse_carefully(text.encode() + b"\r\n", 0, DEVICE)
    fields = ["cooler", *stamp.split("|"), "", "", message]
    assert (parsed.lines, parsed.dead) == (["\x02".join(fields).encode()], [])


def test_a_record_may_name_its_own_device() -> None:
    """The device of the record stands before that of the file's name; control bytes in a field are quoted."""
    record = b'{"device": "d", "ec": "a\\u0001b", "ts": "2024-03-20T05:56:59", "msg": 1}\n'
    (copy,) = parse_carefully(record, 0, DEVICE).lines
    assert copy == b"d\x022024-03-20T05:56:59.000000\x020\x02\x02\x01a\x01\x01b\x01\x021"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"not json", "not JSON"),
        (b"\\.", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"msg": {}}', "no 'ts'"),
        (b'{"ts": "2024-04-16T03:00:00"}', "no 'msg'"),
        (b'{"ts": 5, "msg": {}}', "'ts' is not a string"),
        (b'{"ts": "2024-04-16T25:00:00", "msg": {}}', "time of day"),
        (b'{"ts": "2024-02-30T03:00:00", "msg": {}}', "day is out of range"),
        (b'{"ts": "2024-04-16T03:00:00.0000000001", "msg": {}}', "not of the form"),
        (b'{"ts": "2024-04-16T03:00:00", "prio": 5, "msg": {}}', "'prio' is not a string"),
        (b'{"ts": "2024-04-16T03:00:00", "ec": [], "msg": {}}', "'ec' is not a string"),
        (b'{"ts": "2024-04-16T03:00:00", "msg": {"a": "\\u0000"}}', "U+0000"),
        (b'{"ts": "2024-04-16T03:00:00", "msg": {"a": "\xff"}}', "not UTF-8"),
        (b'{"ts": "2024-04-16T03:00:00", "msg": {"a": "\x02"}}', "control characters"),
        (b'{"ts": "2024-04-16T03:00:00", "msg": {"a": "x\ry"}}', "control characters"),
        (b'{"ts": "2024-04-16T03:00:00", "msg": {"a": 01}}', "not JSON"),
        (b'{"ts": "2024-04-16T03:00:00", "msg": {"a": nano}}', "not JSON"),
        (b'{"ts": "2024-04-16T03:00:00", "device": "\\ud800", "msg": {}}', "surrogates"),
    ],
)
def test_what_is_no_record_is_a_dead_letter_with_its_bytes(raw: bytes, reason: str) -> None:
    """Each kind of bad line is one dead letter with the range, the bytes and a reason; its neighbours live."""
    parsed = parse_carefully(line() + raw + b"\n" + line(), 50, DEVICE)
    start = 50 + len(line())
    assert len(parsed.lines) == 2
    assert [(letter.start, letter.end, letter.raw) for letter in parsed.dead] == [
        (start, start + len(raw) + 1, raw + b"\n")
    ]
    assert reason in parsed.dead[0].reason


def test_noise_is_one_dead_letter_however_many_lines_it_holds() -> None:
    """Neighbouring lines that are no text at all are one letter; a good line between them parts it."""
    noise = b"\xff\n\x00\x01\n\xfe\n"
    parsed = parse_carefully(noise + line() + noise, 0, DEVICE)
    size = len(noise) + len(line())
    assert [(letter.start, letter.end) for letter in parsed.dead] == [(0, len(noise)), (size, size + len(noise))]


@pytest.mark.parametrize(
    ("tail", "verdict"),
    [
        (b"", "open"),
        (b" \t", "open"),
        (line(end=""), "record"),
        (line(end="")[:-1], "open"),
        (line('{"a": "é"}', end="")[:-4], "open"),
        (b"{", "open"),
        (b"\xef\xbb\xbf{", "open"),
        (b"nonsense", "bad"),
        (b'{"a": "\xff', "bad"),
        (b'{"a": "\x00', "bad"),
    ],
)
def test_the_tail_of_a_file_is_judged(tail: bytes, verdict: str) -> None:
    """Bytes without a line end are a whole record, may still become one, or never can."""
    assert judge_tail(tail) == verdict


@given(messages, st.data())
@settings(max_examples=200, deadline=None)
def test_no_cut_of_a_record_is_called_bad(message: str, data: st.DataObject) -> None:
    """Wherever a writer has got to in a good line, the tail is open, never bad, and a record only at its end."""
    whole = line(message, end="")
    cut = data.draw(st.integers(0, len(whole)))
    assert judge_tail(whole[:cut]) == ("record" if cut == len(whole) else "open")


@pytest.mark.parametrize("word", ["NaN", "nan", "-nan", "inf", "-inf", "Infinity", "-Infinity"])
def test_words_that_are_no_numbers_become_null_outside_of_strings(word: str) -> None:
    """Every spelling becomes null and is counted; the same word in a string, also behind an escape, stays."""
    text = f'{{"a": {word}, "b":[{word},{word}], "c": "x: {word}", "d": "\\"", "e": "[{word}"}}'
    wanted = f'{{"a": null, "b":[null,null], "c": "x: {word}", "d": "\\"", "e": "[{word}"}}'.encode()
    quick, careful = both_ways(line(text))
    assert quick == careful
    assert careful[0][-1] == wanted
    assert parse_carefully(line(text), 0, DEVICE).nulled == 3


def _message(chunk: bytes) -> Any:
    fields = parse_carefully(chunk, 0, DEVICE).lines[0].split(b"\x02")
    return json.loads(fields[-1])


def test_an_integer_beyond_64_bits_keeps_its_digits() -> None:
    """The careful way keeps a long integer digit for digit, as the quick way does."""
    quick, careful = both_ways(line('{"v": 123456789012345678901234567890}'))
    assert quick == careful


@pytest.mark.parametrize("other", ['"x": {"msg": true}, ', '"msg": true, '])
def test_the_message_is_the_objects_own_last_msg(other: str) -> None:
    """A nested or an earlier `msg` that only compares equal is not taken for the message."""
    message = _message(f'{{{other}"ts": "2024-04-16T03:00:00", "msg": 1}}\n'.encode())
    assert message == 1 and message is not True


@pytest.mark.parametrize("message", ["[" * 600 + '"\\u0000"' + "]" * 600, "[" * 1018 + "]" * 1018])
def test_deep_nesting_costs_only_its_line(message: str) -> None:
    """A line nested too deeply for Python is a dead letter, whatever else it holds."""
    parsed = parse_carefully(line(message) + b"bad\n" + line(), 0, DEVICE)
    assert len(parsed.dead) >= 1


def test_quote_bytes_of_our_copy_dialect_are_not_swallowed() -> None:
    """A raw 0x01 in a line is never left to COPY, which would drop a pair of them."""
    assert parse_quickly(line('{"a": "x\x01\x01y"}'), DEVICE) is None


def test_the_hour_24_is_judged_alike_both_ways() -> None:
    """What the careful way calls no time of day does not pass the quick way either."""
    chunk = line(ts="2024-04-16T24:00:00.000000000")
    assert (parse_quickly(chunk, DEVICE) is None) == bool(parse_carefully(chunk, 0, DEVICE).dead)


@pytest.mark.parametrize("space", ["  ", "\t"])
def test_nan_behind_any_blanks_becomes_null(space: str) -> None:
    """NaN behind two blanks or a tab is null like any other."""
    assert _message(line(f'{{"v":{space}NaN}}')) == {"v": None}


def test_a_tail_behind_a_bom_and_a_blank_may_still_become_a_record() -> None:
    """Half a first line behind a BOM and a blank waits for its end."""
    assert judge_tail(b"\xef\xbb\xbf " + line()[:30]) == "open"

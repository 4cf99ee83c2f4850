"""FlatBuffers messages, schemas, and float32 numbers."""

import struct
from decimal import Decimal
from math import isfinite
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.telemetry.event_schemas import Field, Schema, Table, load_schemas
from workers.telemetry.flatbuffer import BadMessage, decode
from workers.telemetry.float32 import SHORT_FLOATS

SCHEMAS = load_schemas()
STAGE = SCHEMAS[20050].table


def stage_message(*, moving: int = -2, preset: float = 22.6, name: bytes = b"open") -> bytes:
    """A telem_stage message laid out by hand as a builder would: vtable, table, string."""
    vtable = struct.pack("<5H", 10, 16, 12, 8, 4)
    table = struct.pack("<iIfbxxx", 10, 12, preset, moving)
    return struct.pack("<I", 16) + b"\0\0" + vtable + table + struct.pack("<I", len(name)) + name + b"\0\0\0\0"


def bits(value: float) -> int:
    """The 32 bits of a float32."""
    return int.from_bytes(struct.pack("<f", value), "little")


def test_a_message_becomes_its_fields_in_schema_order() -> None:
    """Stored fields are read where the vtable says, whatever their order in the bytes."""
    message, unknown = decode(STAGE, stage_message())
    assert list(message.items()) == [("moving", -2), ("preset", 22.6), ("presetName", "open")]
    assert unknown == 0


def test_fields_that_are_not_stored_have_their_default_or_are_left_out() -> None:
    """A table without fields is a vtable of four bytes: scalars default, strings and tables are absent."""
    empty = struct.pack("<IHHi", 8, 4, 4, 4)
    assert decode(STAGE, empty) == ({"moving": 0, "preset": 0.0}, 0)
    stdcam = decode(SCHEMAS[20260].table, empty)[0]
    assert stdcam == {
        "exptime": 0.0, "fps": 0.0, "emGain": 0.0, "adcSpeed": 0.0, "synchro": 0, "vshift": 0.0, "cropMode": -1
    }  # fmt: skip


def test_slots_of_a_later_schema_are_counted() -> None:
    """Stored slots beyond the schema are told, not read."""
    short = Table(STAGE.fields[:1])
    assert decode(short, stage_message()) == ({"moving": -2}, 2)


def test_a_string_that_is_not_utf8_keeps_its_bytes_as_hex() -> None:
    """Bytes that are no text are never guessed at; an embedded NUL is text."""
    assert decode(STAGE, stage_message(name=b"\xff\x00ok"))[0]["presetName"] == {"$hex": "ff006f6b"}
    assert decode(STAGE, stage_message(name=b"a\x00b\x00"))[0]["presetName"] == "a\x00b\x00"


@pytest.mark.parametrize(
    ("offset", "bytes_there", "why"),
    [
        (0, b"\0\0\0\0", "a root of 0"),
        (0, b"\x40\0\0\0", "a root beyond the message"),
        (0, b"\x11\0\0\0", "a root that is not aligned"),
        (6, b"\xf0\0", "a vtable longer than the message"),
        (6, b"\x0b\0", "a vtable of odd length"),
        (6, b"\x02\0", "a vtable shorter than itself"),
        (8, b"\x08\0", "a table shorter than its fields"),
        (8, b"\xf0\0", "a table longer than the message"),
        (10, b"\x02\0", "a field inside of the back reference"),
        (12, b"\x09\0", "a field that is not aligned"),
        (12, b"\x04\0", "two fields in one place"),
        (16, b"\xff\xff\xff\x7f", "a vtable far before the message"),
        (16, b"\0\0\0\x80", "a vtable far behind the message"),
        (20, b"\0\0\0\0", "a string that is its own reference"),
        (20, b"\xff\xff\xff\xff", "a string far behind the message"),
        (20, b"\x0d\0\0\0", "a string that is not aligned"),
        (32, b"\xff\xff\xff\xff", "a string far longer than the message"),
        (32, b"\x08\0\0\0", "a string that ends one byte behind the message"),
        (32, b"\x03\0\0\0", "a string without its zero byte"),
    ],
)
def test_a_damaged_message_is_refused(offset: int, bytes_there: bytes, why: str) -> None:
    """Whatever points out of the message, or at the wrong place in it, is a bad message."""
    good = stage_message()
    damaged = good[:offset] + bytes_there + good[offset + len(bytes_there) :]
    for message in (damaged, memoryview(damaged)):
        with pytest.raises(BadMessage):
            decode(STAGE, message)


@pytest.mark.parametrize("length", range(0, 200, 4))
def test_zeros_are_no_message(length: int) -> None:
    """An all-zero message is bad for every schema."""
    for schema in SCHEMAS.values():
        with pytest.raises(BadMessage):
            decode(schema.table, bytes(length))


def test_strings_that_share_their_bytes_do_not_multiply() -> None:
    """A vector whose thousand entries all name one long string is refused, not unfolded."""
    count, text = 1000, b"x" * 8000
    drives = SCHEMAS[20827].table
    vtable = struct.pack("<3HH", 6, 8, 4, 0)
    head = struct.pack("<I", 12) + vtable + struct.pack("<iI", 8, 4)
    entries = b"".join(struct.pack("<I", 4 * (count - place)) for place in range(count))
    with pytest.raises(BadMessage, match="longer than the message"):
        decode(drives, head + struct.pack("<I", count) + entries + struct.pack("<I", len(text)) + text + b"\0")


@given(st.integers(0, 60), st.binary(max_size=8))
@settings(max_examples=400)
def test_no_change_of_bytes_makes_the_decoder_fail(offset: int, change: bytes) -> None:
    """A mutated message decodes or is a BadMessage; nothing else comes out, and never bytes of a neighbour."""
    good = stage_message()
    message = good[:offset] + change + good[offset + len(change) :]
    try:
        fields, _ = decode(STAGE, message)
    except BadMessage:
        return
    text = fields.get("presetName", "")
    assert len(text) <= len(message) if isinstance(text, str) else len(text["$hex"]) <= 2 * len(message)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=2000)
def test_a_float32_becomes_its_shortest_decimal(pattern: int) -> None:
    """The double that comes out has the fewest digits of all that round to the same float32."""
    raw = pattern.to_bytes(4, "little")
    (exact,) = struct.unpack("<f", raw)
    value = SHORT_FLOATS[pattern]
    if not isfinite(exact):
        assert repr(value) == repr(exact)
        return
    assert struct.pack("<f", value) == raw
    digits = len(Decimal(repr(value)).normalize().as_tuple().digits)
    if digits > 1:
        fewer = float(f"{exact:.{digits - 1}g}")
        assert abs(fewer) > 3.4028235e38 or struct.pack("<f", fewer) != raw


@pytest.mark.parametrize(
    "text", ["22.6", "0.1", "-273.15", "1e-07", "3.4028235e+38", "1e-45", "16777216.0", "0.5", "-0.0"]
)
def test_known_float32_values_come_out_as_written(text: str) -> None:
    """What an instrument's program wrote as a literal reads back as that literal."""
    assert repr(SHORT_FLOATS[bits(float(text))]) == text


def test_the_float_cache_stays_small() -> None:
    """However many different numbers come, only so many are kept."""
    for pattern in range(0x41000000, 0x41000000 + SHORT_FLOATS.limit + 10):
        _ = SHORT_FLOATS[pattern]
    assert len(SHORT_FLOATS) <= SHORT_FLOATS.limit


def test_every_event_code_has_a_schema() -> None:
    """All event codes of MagAO-X are there, with the fields in the order of their slots."""
    assert len(SCHEMAS) >= 51
    assert {0, 12, 141, 1002, 11025, 12053, 12120, 12501, 20002, 20067, 20861, 20910, 20920} <= set(SCHEMAS)
    assert SCHEMAS[20260].table.fields[-1] == Field("cropMode", "int8", -1)


def test_a_second_file_adds_and_replaces_codes(tmp_path: Path) -> None:
    """A site's own TOML of the same form lies on top of the built-in schemas."""
    extra = tmp_path / "ours.toml"
    extra.write_text('[telem_ours]\ncode = 30000\nfields = ["a int8 = 3", "b table"]\ntables.b = ["c [string]"]\n')
    schemas = load_schemas(extra)
    nested = Field("b", "table", None, Table((Field("c", "[string]"),)))
    assert schemas[30000] == Schema(30000, "telem_ours", Table((Field("a", "int8", 3), nested)))
    assert len(schemas) == len(SCHEMAS) + 1


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[a", "not TOML"),
        ("a = 1", "a:"),
        ("[a]\nfields = []", "a.code"),
        ("[a]\ncode = 70000\nfields = []", "a.code"),
        ("[a]\ncode = 1\nfields = []\n[b]\ncode = 1\nfields = []", "b.code"),
        ("[a]\ncode = 1", "a.fields"),
        ('[a]\ncode = 1\nfields = ["x"]', "a.fields[0]"),
        ('[a]\ncode = 1\nfields = ["x int8", "x int8"]', "a.fields[1]"),
        ('[a]\ncode = 1\nfields = ["x int9"]', "a.fields[0]"),
        ('[a]\ncode = 1\nfields = ["x int8 = 300"]', "a.fields[0]"),
        ('[a]\ncode = 1\nfields = ["x string = 3"]', "a.fields[0]"),
        ('[a]\ncode = 1\nfields = ["x bool = 3"]', "a.fields[0]"),
        ('[a]\ncode = 1\nfields = ["x table"]', "tables.x"),
        ('[a]\ncode = 1\nfields = ["x table"]\ntables.x = ["y z"]', "a.tables.x[0]"),
        ("[a]\ncode = 1\nfields = []\ntables.x = []", "a.tables.x"),
        ("[a]\ncode = 1\nfields = []\ncolour = 1", "a.colour"),
        ("[text_log]\ncode = 1\nfields = []", "text_log"),
    ],
)
def test_a_mistake_in_a_schema_file_is_named(tmp_path: Path, text: str, key: str) -> None:
    """The error says which file and which key."""
    extra = tmp_path / "wrong.toml"
    extra.write_text(text)
    with pytest.raises(ValueError, match=r"wrong\.toml") as caught:
        load_schemas(extra)
    assert key in str(caught.value)

"""What the simulated instrument puts into its files: packed records with FlatBuffers, and two kinds of JSON lines.

The writer is independent of the readers in `workers.telemetry`, so that what is written proves what is read.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

SECOND = 1_000_000_000  # nanoseconds
TELEMETRY = 64  # the priority of every telemetry record
PRIORITY = "TELM"  # and as JSON has it
_HEADER = struct.Struct("<bHIIB")
_SCALARS = {
    name: struct.Struct(f"<{letter}")
    for name, letter in (("bool", "?"), ("int8", "b"), ("uint8", "B"), ("float32", "f"), ("float64", "d"))
}
_OFFSET = struct.Struct("<I")
_DECIMALS = {"float32": 6, "[float32]": 6, "float64": 12}


@dataclass(frozen=True, slots=True)
class Event:
    """An event's 16-bit code and its fields: name to type, in the order of their FlatBuffers slots."""

    code: int
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Record:
    """One record; `nanoseconds` since 1970-01-01 UTC, `message` in the order of its event's fields."""

    nanoseconds: int
    event: str
    message: Mapping[str, Any]


_FLOAT64 = "float64"
EVENTS = {
    "telem_telpos": Event(20000, dict.fromkeys(("epoch", "ra", "dec", "el", "ha", "am", "rotoff"), _FLOAT64)),
    "telem_stage": Event(20050, {"moving": "int8", "preset": "float32", "presetName": "string"}),
    "telem_observer": Event(20070, {"email": "string", "obsName": "string", "observing": "bool"}),
    "telem_rhusb": Event(20100, {"temp": "float32", "rh": "float32"}),
    "telem_coretemps": Event(20825, {"temps": "[float32]"}),
    "telem_fgtimings": Event(
        20905,
        dict.fromkeys(("atime", "atime_jitter", "wtime", "wtime_jitter", "wmatime", "wmatime_jitter"), _FLOAT64),
    ),
    "telem_loopgain": Event(20915, {"state": "uint8", "gain": "float32", "multcoef": "float32", "limit": "float32"}),
}


def flatbuffer(fields: Mapping[str, str], message: Mapping[str, Any]) -> bytes:
    """One table as a FlatBuffer: scalars that equal their default (0) are not stored, its length is a multiple of 4.

    Raises KeyError for a type that the instrument does not write.
    """
    stored = [
        (slot, kind, message[name])
        for slot, (name, kind) in enumerate(fields.items())
        if name in message and (kind not in _SCALARS or message[name])
    ]
    slots = max((slot for slot, _kind, _value in stored), default=-1) + 1
    vtable = [4 + 2 * slots, 4, *[0] * slots]
    # The widest field first and its place a multiple of 8: then every field is aligned without gaps.
    table = -(-(4 + vtable[0]) // 8) * 8 + 4
    inline, below = b"", b""
    pointers: list[tuple[int, int]] = []
    for slot, kind, value in sorted(stored, key=lambda item: -_width(item[1])):
        vtable[2 + slot] = 4 + len(inline)
        if kind in _SCALARS:
            inline += _SCALARS[kind].pack(value)
        else:
            pointers.append((len(inline), len(below)))
            below += _padded(_pointed(kind, value), 4)
            inline += bytes(4)
    vtable[1] = 4 + len(inline)
    inline_bytes = bytearray(_padded(inline, 4))
    for place, start in pointers:
        _OFFSET.pack_into(inline_bytes, place, len(inline_bytes) + start - place)
    head = _OFFSET.pack(table) + struct.pack(f"<{len(vtable)}H", *vtable)
    return head.ljust(table, b"\0") + struct.pack("<i", table - 4) + bytes(inline_bytes) + below


def bintel_record(record: Record) -> bytes:
    """A `.bintel` record: the packed header with its length of 1, 3 or 9 bytes, then the FlatBuffer."""
    event = EVENTS[record.event]
    content = flatbuffer(event.fields, record.message)
    seconds, nanoseconds = divmod(record.nanoseconds, SECOND)
    short, more = _length(len(content))
    return _HEADER.pack(TELEMETRY, event.code, seconds, nanoseconds, short) + more + content


def program_line(record: Record) -> bytes:
    """A JSON line as the C++ programs print it: fixed decimals, no blank between the members of the message."""
    fields = EVENTS[record.event].fields
    members = ",".join(f'"{name}": {_printed(fields[name], value)}' for name, value in record.message.items())
    head = f'{{"ts": "{_stamp(record.nanoseconds, 9)}", "prio": "{PRIORITY}", "ec": "{record.event}"'
    return f'{head}, "msg": {{{members}}}}}\n'.encode()


def python_line(record: Record) -> bytes:
    """A JSON line as the Python devices print it: `json.dumps`, and a time to the microsecond with 000 after it."""
    stamp = _stamp(record.nanoseconds, 6) + "000"
    line = {"ts": stamp, "prio": PRIORITY, "ec": record.event, "msg": record.message}
    return json.dumps(line).encode() + b"\n"


def program_name(device: str, nanoseconds: int, suffix: str) -> str:
    """`NAME_YYYYMMDDHHMMSSNNNNNNNNN.suffix`: the time of the first record."""
    moment, rest = _moment(nanoseconds)
    return f"{device}_{moment:%Y%m%d%H%M%S}{rest:09d}.{suffix}"


def python_name(device: str, nanoseconds: int) -> str:
    """`NAME_YYYY-MM-DDTHHMMSS.ndjson`: two in one second would be the same file."""
    return f"{device}_{_moment(nanoseconds)[0]:%Y-%m-%dT%H%M%S}.ndjson"


def _length(number: int) -> tuple[int, bytes]:
    """The length byte of a header, and the longer form that follows it when one byte is too small."""
    if number < 254:
        return number, b""
    return (254, struct.pack("<H", number)) if number < 65535 else (255, struct.pack("<Q", number))


def _stamp(nanoseconds: int, digits: int) -> str:
    moment, rest = _moment(nanoseconds)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{f'{rest:09d}'[:digits]}"


def _moment(nanoseconds: int) -> tuple[datetime, int]:
    seconds, rest = divmod(nanoseconds, SECOND)
    return datetime.fromtimestamp(seconds, UTC), rest


def _width(kind: str) -> int:
    return _SCALARS[kind].size if kind in _SCALARS else 4


def _pointed(kind: str, value: Any) -> bytes:
    if kind == "string":
        text: bytes = value.encode()
        return _OFFSET.pack(len(text)) + text + b"\0"
    if kind == "[float32]":
        return struct.pack(f"<I{len(value)}f", len(value), *value)
    raise KeyError(kind)


def _padded(content: bytes, multiple: int) -> bytes:
    return content + bytes(-len(content) % multiple)


def _printed(kind: str, value: Any) -> str:
    if kind == "[float32]":
        return f"[{','.join(_printed('float32', item) for item in value)}]"
    if kind in _DECIMALS:
        text = f"{value:.{_DECIMALS[kind]}f}".rstrip("0")
        return text + "0" if text.endswith(".") else text
    return json.dumps(value)

"""Records of a MagAO-X `.bintel` or `.binlog` file: framing, and finding the way again after damage.

A record is a packed little-endian header (priority, event code, seconds, nanoseconds, length) and a message.
The format has no file header, no mark between records and no checksum, so a record is believed for what it
says, and a damaged one is stepped over only if what follows it is believable too.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from functools import cache, partial
from typing import Any, NamedTuple

from workers.telemetry.event_schemas import Schema
from workers.telemetry.flatbuffer import BadMessage, decode

LONGEST_MESSAGE = 64 << 20  # bytes; a length beyond it is damage, so a hostile one never makes memory grow
LONGEST_GARBAGE = 16 << 20  # bytes of one Damage; above the 10 MiB at which MagAO-X begins a new file
_SHORTEST_MESSAGE = 12  # bytes of a table without fields: root offset, vtable, back reference
_LONG = 65_536  # bytes from which a message is decoded in place and not copied out
_NANOSECONDS = 1_000_000_000
_HEADER = struct.Struct("<bHIIB")
_FIRST_STEPS = 8  # records that are looked at behind a damaged one, until one is whole
_BELIEVABLE = 3  # damaged records in a row with sane headers that are believed without a whole one

_PRIORITIES = {
    0: "EMER", 1: "ALRT", 2: "CRIT", 3: "ERR ", 4: "WARN", 5: "NOTE", 6: "INFO", 7: "DBG ", 8: "DBG2",
    64: "TELM", 126: "DEF?",
}  # fmt: skip
_SANE_PRIORITIES = frozenset(_PRIORITIES)


class Record(NamedTuple):
    """A whole record: bytes `offset` to `end` of the file, its header, and its decoded message.

    The instant is `seconds` + `nanoseconds` / 1e9 since 1970-01-01 UTC. `unknown_slots` counts stored fields
    that the schema does not know (a later writer).
    """

    offset: int
    end: int
    priority: int
    code: int
    name: str
    seconds: int
    nanoseconds: int
    message: dict[str, Any]
    unknown_slots: int


class Damage(NamedTuple):
    """Bytes `offset` to `end` of the file that are no record, and why."""

    offset: int
    end: int
    reason: str


class Scan(NamedTuple):
    """What a buffer holds; the `consumed` first bytes are decided, the others belong into the next buffer."""

    records: list[Record]
    damage: list[Damage]
    consumed: int


class _Frame(NamedTuple):
    """A record as its header tells it; `end` may lie behind the buffer."""

    start: int  # of the message
    end: int
    priority: int
    code: int
    seconds: int
    nanoseconds: int


class _MoreBytes(Exception):  # noqa: N818  # a turn of the search, not an error
    """The answer depends on bytes that are not there yet."""


_record = partial(tuple.__new__, Record)


def priority_name(priority: int) -> str:
    """A priority as MagAO-X prints it, four characters; unlisted numbers are `UNK?`."""
    return _PRIORITIES.get(priority, "UNK?")


def scan(
    buffer: bytes | memoryview, *, base: int = 0, at_end: bool, schemas: Mapping[int, Schema]
) -> Scan:
    """Every record and every damaged range of a buffer that begins at byte `base` of a file.

    Present what is not consumed again, at the front of the next buffer and with more bytes; at least double
    the buffer when nothing is consumed, at most LONGEST_MESSAGE and a little are ever needed. With `at_end`
    there are no more bytes now: a last record that is not complete but sane so far is neither consumed nor
    damage. Where the file is cut into buffers makes no difference. Never raises for what the bytes are.
    """
    return _Scanner(bytes(buffer), base, at_end, schemas).run()


class _Scanner:
    def __init__(self, data: bytes, base: int, at_end: bool, schemas: Mapping[int, Schema]) -> None:
        self.data, self.base, self.at_end, self.schemas = data, base, at_end, schemas
        self.size = len(data)
        self.damage: list[Damage] = []

    def run(self) -> Scan:
        data, base, schema_of, size = self.data, self.base, self.schemas.get, self.size
        header, records = _HEADER.unpack_from, []
        last_header = size - _HEADER.size
        position = 0
        try:
            while position < size:
                if position <= last_header:
                    # The common case, in line: a short whole record with a message.
                    priority, code, seconds, nanoseconds, length = header(data, position)
                    end = position + 12 + length
                    schema = schema_of(code)
                    if 0 < length < 254 and end <= size and nanoseconds < _NANOSECONDS and schema is not None:
                        try:
                            message, unknown = decode(schema.table, data[position + 12 : end])
                        except BadMessage:
                            pass
                        else:
                            if schema.table.fields:
                                records.append(
                                    _record((base + position, base + end, priority, code, schema.name,
                                             seconds, nanoseconds, message, unknown))
                                )  # fmt: skip
                                position = end
                                continue
                position = self.step(position, records)
        except _MoreBytes:
            pass
        return Scan(records, self.damage, position)

    def step(self, position: int, records: list[Record]) -> int:
        """Any other case: one record or one damage from `position`; returns where it ends."""
        frame = self.frame(position)
        if isinstance(frame, str):
            return self.garbage(position, frame)
        if frame.end > self.size:
            return self.unfinished(position, frame)
        found = self.judge(frame)
        if not isinstance(found, str):
            message, unknown = found
            records.append(
                Record(self.base + position, self.base + frame.end, frame.priority, frame.code,
                       self.schemas[frame.code].name, frame.seconds, frame.nanoseconds, message, unknown)
            )  # fmt: skip
            return frame.end
        if self.leads_on(frame.end):
            self.damage.append(Damage(self.base + position, self.base + frame.end, found))
            return frame.end
        return self.garbage(position, found)

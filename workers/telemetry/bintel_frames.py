"""Frames of a `.bintel` buffer: what a header claims, and whether it can be believed.

The format has no mark between records and no checksum: a record is believed for what it says about itself,
and a doubtful one for what follows it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from workers.telemetry.event_schemas import Schema
from workers.telemetry.flatbuffer import BadMessage, decode

LONGEST_MESSAGE = 64 << 20  # bytes; a length beyond it is damage, so a hostile one never makes memory grow
HEADER = struct.Struct("<bHIIB")  # priority, event code, seconds, nanoseconds, length or how it is written
NANOSECONDS = 1_000_000_000
PRIORITIES = {
    0: "EMER", 1: "ALRT", 2: "CRIT", 3: "ERR ", 4: "WARN", 5: "NOTE", 6: "INFO", 7: "DBG ", 8: "DBG2",
    64: "TELM", 126: "DEF?",
}  # fmt: skip
_SHORTEST_MESSAGE = 12  # bytes of a table without fields: root offset, vtable, back reference
_LONG = 4096  # bytes from which a message is decoded in place and not copied out
_FAR = 65_536  # bytes from which a message behind a doubtful one is not decoded just to see if it can be
_BELIEVABLE = 3  # damaged records in a row with sane headers are believed without a whole one
_NEAR = 30 * 86_400  # seconds between neighbours, to believe a damaged one


class MoreBytes(Exception):
    """The answer depends on bytes that are not there yet."""


class Frame(NamedTuple):
    """A record as its header tells it; `end` may lie behind the buffer."""

    offset: int
    start: int  # of the message
    end: int
    priority: int
    code: int
    seconds: int
    nanoseconds: int


class Frames:
    """A buffer to look at; with `at_end` there is nothing behind it. Positions are in the buffer."""

    def __init__(self, data: bytes, at_end: bool, schemas: Mapping[int, Schema]) -> None:
        self.data, self.at_end, self.schemas = data, at_end, schemas
        self.size = len(data)

    def frame(self, position: int) -> Frame | str | None:
        """The record that the header claims; why it cannot be one; or None at a header cut by the end."""
        data, available = self.data, self.size - position
        size = 12
        if available >= size:
            priority, code, seconds, nanoseconds, length = HEADER.unpack_from(data, position)
            size += {254: 2, 255: 8}.get(length, 0)
        if available < size:
            if not self.at_end:
                raise MoreBytes
            return None
        if not any(data[position : position + 12]):
            return "zeros"
        if size > 12:
            length = int.from_bytes(data[position + 12 : position + size], "little")
            if length > LONGEST_MESSAGE:
                return f"a message of {length} bytes; {LONGEST_MESSAGE} is the most that is believed"
            if (length < 65_535) if size == 20 else not 254 <= length < 65_535:
                return f"a message of {length} bytes whose length is written in {size - 12} bytes"
        start = position + size
        return Frame(position, start, start + length, priority, code, seconds, nanoseconds)

    def judge(self, frame: Frame) -> tuple[dict[str, Any], int] | str:
        """The decoded message of a record that is all there, or why it is damaged."""
        schema = self.schemas.get(frame.code)
        length = frame.end - frame.start
        if schema is None:
            return f"unknown event code {frame.code}"
        if frame.nanoseconds >= NANOSECONDS:
            return f"{schema.name}: {frame.nanoseconds} nanoseconds are no fraction of a second"
        if not schema.table.fields:
            return f"{schema.name}: {length} bytes of message where there are none" if length else ({}, 0)
        view = memoryview(self.data) if length > _LONG else self.data
        try:
            return decode(schema.table, view[frame.start : frame.end])
        except BadMessage as error:
            return f"{schema.name}: {error}" if length else f"{schema.name}: an empty message"

    def doubt(self, position: int, frame: Frame | None) -> str | None:
        """Why the record at `position`, cut by the end, can never become one; None if it can."""
        head = self.data[position : position + 16]
        code = int.from_bytes(head[1:3], "little") if len(head) > 2 else -1
        if len(head) > 2 and not any(head):
            return "zeros"
        if code not in self.schemas and head[0] not in PRIORITIES:
            return "neither a known priority nor a known event code"
        if len(head) > 10 and int.from_bytes(head[7:11], "little") >= NANOSECONDS:
            return "more than a second of nanoseconds"
        if frame is None or code not in self.schemas:
            return None
        length = frame.end - frame.start
        if not self.schemas[code].table.fields or length < _SHORTEST_MESSAGE:
            return f"{self.schemas[code].name} cannot have {length} bytes of message"
        return None if self.rooted(frame) else f"{self.schemas[code].name}: the message has no root table"

    def rooted(self, frame: Frame) -> bool:
        """Whether the offset of the root table, as far as it is there, stays in the message."""
        if frame.start + 4 > self.size:
            return True
        root = int.from_bytes(self.data[frame.start : frame.start + 4], "little")
        return not root & 3 and 4 <= root <= frame.end - frame.start - 4

    def leads_on(self, position: int, seconds: int) -> bool:
        """Whether what follows a doubtful record can be believed: then the record's own length can be, too.

        A whole record proves it, also behind damaged ones of about the same time; so does the end of data.
        """
        for _ in range(_BELIEVABLE):
            if position == self.size and self.at_end:
                return True
            frame = self.frame(position)
            if isinstance(frame, str):
                return False
            if frame is None or frame.end > self.size:
                if not self.at_end:
                    raise MoreBytes
                return self.doubt(position, frame) is None and (frame is None or frame.code in self.schemas)
            far = frame.end - frame.start > _FAR and frame.code in self.schemas
            if self.rooted(frame) if far else not isinstance(self.judge(frame), str):
                return True
            sane = frame.priority in PRIORITIES and frame.nanoseconds < NANOSECONDS
            if not (sane or frame.code in self.schemas) or abs(frame.seconds - seconds) > _NEAR:
                return False
            position, seconds = frame.end, frame.seconds
        return True

"""Records of a MagAO-X `.bintel` or `.binlog` file: framing, and finding the way again after damage.

A record is a packed little-endian header (priority, event code, seconds, nanoseconds, length) and a message.
The format has no file header, no mark between records and no checksum, so a record is believed for what it
says, and a damaged one is stepped over only if what follows it is believable too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, partial
from typing import Any, NamedTuple

from workers.telemetry.bintel_frames import HEADER, LONGEST_MESSAGE, NANOSECONDS, PRIORITIES, Frame, Frames, MoreBytes
from workers.telemetry.event_schemas import Schema
from workers.telemetry.flatbuffer import BadMessage, decode

__all__ = ["LONGEST_GARBAGE", "LONGEST_MESSAGE", "Damage", "Record", "Scan", "priority_name", "scan"]

LONGEST_GARBAGE = 16 << 20  # bytes of one Damage; above the 10 MiB at which MagAO-X begins a new file
_LOOK = 32  # bytes from the start of a record that the search pattern may read
_SEARCH_ALLOWANCE = 16 << 20  # bytes of long candidates that a search decodes in vain before it wants short ones
_LOST = "a record whose rest is lost: whole records follow inside of it"


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


_record = partial(tuple.__new__, Record)


def priority_name(priority: int) -> str:
    """A priority as MagAO-X prints it, four characters; unlisted numbers are `UNK?`."""
    return PRIORITIES.get(priority, "UNK?")


def scan(buffer: bytes | memoryview, *, base: int = 0, at_end: bool, schemas: Mapping[int, Schema]) -> Scan:
    """Every record and every damaged range of a buffer that begins at byte `base` of a file.

    Present what is not consumed again, at the front of the next buffer and with more bytes: at least double
    when nothing was consumed. The last record of a buffer waits for what follows it. With `at_end` there are
    no more bytes for now: a last record that is incomplete but sane so far is neither consumed nor damage.
    Where a file is cut into buffers makes no difference. Never raises for what the bytes are.
    """
    return _Scanner(bytes(buffer), base, at_end, schemas).run()


class _Scanner(Frames):
    """One buffer; `base` is added to a position where it is reported."""

    def __init__(self, data: bytes, base: int, at_end: bool, schemas: Mapping[int, Schema]) -> None:
        super().__init__(data, at_end, schemas)
        self.base = base
        self.records: list[Record] = []
        self.damage: list[Damage] = []
        self.pattern: re.Pattern[bytes] | None = None

    def run(self) -> Scan:
        data, base, size, records = self.data, self.base, self.size, self.records
        header, schema_of = HEADER.unpack_from, self.schemas.get
        last_header = size - HEADER.size
        position = 0
        try:
            while position < size:
                if position <= last_header:
                    # The common case in line: a short, whole, sound record.
                    priority, code, seconds, nanoseconds, length = header(data, position)
                    schema = schema_of(code)
                    start = position + 12
                    end = start + length
                    if (
                        0 < length < 254 and end <= size and nanoseconds < NANOSECONDS
                        and schema is not None and schema.table.fields
                    ):  # fmt: skip
                        try:
                            message, unknown = decode(schema.table, data[start:end])
                        except BadMessage:
                            pass
                        else:
                            records.append(
                                _record((base + position, base + end, priority, code, schema.name, seconds,
                                         nanoseconds, message, unknown))
                            )  # fmt: skip
                            position = end
                            continue
                position = self.step(position)
        except MoreBytes:
            pass
        if not self.at_end and records and records[-1].end == base + position:
            # Bytes lost inside a record can leave one that looks sound but ends in the midst of its
            # neighbour. So a record is only decided once what follows it is.
            position = records.pop().offset - base
        return Scan(records, self.damage, position)

    def step(self, position: int) -> int:
        """Any other case: decide on one record or one damaged range and return where it ends."""
        frame = self.frame(position)
        if isinstance(frame, str):
            return self.garbage(position, frame)
        if frame is None or frame.end > self.size:
            if not self.at_end:
                raise MoreBytes
            doubt = self.doubt(position, frame)
            if doubt is not None:
                return self.garbage(position, doubt)
            if frame is None or self.search(position + 1, self.size, inside=True) is None:
                raise MoreBytes  # open: it may still be completed
            return self.garbage(position, _LOST)
        found = self.judge(frame)
        if isinstance(found, str):
            if not self.leads_on(frame.end, frame.seconds):
                return self.garbage(position, found)
            inside = self.search(position + 1, frame.end, inside=True)
            return self.skip(position, inside or frame.end, found)
        self.records.append(
            Record(self.base + position, self.base + frame.end, frame.priority, frame.code,
                   self.schemas[frame.code].name, frame.seconds, frame.nanoseconds, *found)
        )  # fmt: skip
        return frame.end

    def skip(self, position: int, end: int, reason: str) -> int:
        self.damage.append(Damage(self.base + position, self.base + end, reason))
        return end

    def garbage(self, position: int, reason: str) -> int:
        """One damage from `position` to the next record that can be believed."""
        records, limit = self.records, position + LONGEST_GARBAGE
        if records and records[-1].end == self.base + position:
            before = records[-1].offset - self.base
            inside = self.search(before + 1, position, inside=True)
            if inside is not None:
                records.pop()
                return self.skip(before, inside, _LOST)
        found = self.search(position + 1, limit, inside=False)
        return self.skip(position, min(limit, self.size) if found is None else found, reason)

    def search(self, start: int, limit: int, *, inside: bool) -> int | None:
        """Where the next believable record in `start` to `limit` begins; None if there is none.

        It must be whole, sound, and lead on to others. In open garbage a sound message is enough, or else a
        sane record that the end of data cuts; `inside` of another record it is not: texts may quote records.
        """
        if self.pattern is None:
            self.pattern = _pattern(tuple((code, bool(each.table.fields)) for code, each in self.schemas.items()))
        find = self.pattern.search
        position, cut, spent = start, None, 0
        while match := find(self.data, position, min(self.size, limit - 1 + _LOOK)):
            here = match.start()
            if here >= limit:
                break
            position = here + 1
            frame = self.frame(here)
            if not isinstance(frame, Frame):
                continue
            length = frame.end - frame.start
            if length > 253 and spent > _SEARCH_ALLOWANCE + here - start:
                continue
            if frame.end > self.size:
                if not self.at_end:
                    raise MoreBytes
                cut = here if cut is None and self.doubt(here, frame) is None else cut
                continue
            spent += length
            if isinstance(self.judge(frame), str):
                continue
            # A message that agrees with its schema is no accident; an empty one could be.
            if (length and not inside) or self.leads_on(frame.end, frame.seconds):
                return here
        if limit - 1 + _LOOK > self.size and not self.at_end:
            raise MoreBytes
        return None if inside else cut


@cache
def _pattern(codes: tuple[tuple[int, bool], ...]) -> re.Pattern[bytes]:
    """A header with a known priority and code, a fraction of a second, a length, and a root offset to match."""

    def one_of(with_message: bool) -> bytes:
        return b"|".join(re.escape(code.to_bytes(2, "little")) for code, has in codes if has is with_message)

    short, middle, long = rb"[\x0c-\xfd].\0\0\0", rb"\xfe....\0\0", rb"\xff...[\0-\x04]\0{4}...[\0-\x04]"
    priority = b"[" + b"".join(re.escape(bytes([each])) for each in PRIORITIES) + b"]"
    instant = rb".{7}[\0-\x3b]"
    full = b"(?:%b)%b(?:%b|%b|%b)" % (one_of(True), instant, short, middle, long)
    empty = b"(?:%b)%b\0" % (one_of(False), instant)
    return re.compile(priority + b"(?:%b|%b)" % (full, empty), re.DOTALL)

"""Readers: a telemetry file in batches of bounded size, each with the position that commits with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from time import gmtime, strftime
from typing import BinaryIO

import orjson

from workers.telemetry import bintel, ndjson
from workers.telemetry.event_schemas import Schema
from workers.telemetry.records import (
    EMPTY_FIELD,
    DeadLetter,
    Parsed,
    copy_field,
    copy_line,
    count_unreal,
    dead_letter,
    holds_nul,
)
from workers.telemetry.streams import Damage, Member, Piece, Position, Unfinished, gzip_pieces, plain_pieces

DOUBTFUL_BYTES = 65_536
SUFFIXES = (".ndjson", ".ndjson.gz", ".bintel", ".binlog")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a file is held at once, in bytes of content."""

    batch_bytes: int = 8_000_000
    max_record_bytes: int = 64_000_000


@dataclass(slots=True)
class Batch:
    """Records of one transaction. `quick` is ready to be copied if PostgreSQL accepts it; `careful` gives the same
    record by record. `after` is where the next batch begins; `open` says that the file ends half-way."""

    careful: Callable[[], Parsed]
    after: Position
    quick: tuple[bytes, int, int] | None = None
    dead: list[DeadLetter] = field(default_factory=list)
    open: bool = False


def batches(
    file: BinaryIO, name: str, device: str, position: Position, limits: Limits, schemas: Mapping[int, Schema]
) -> Iterator[Batch]:
    """The records of a file from a position to its present end; at least one batch, the last one says `open`."""
    owner = copy_field(device.encode()) or EMPTY_FIELD
    if name.endswith((".bintel", ".binlog")):
        return _bintel_batches(file, owner, position, limits, schemas)
    pieces = gzip_pieces if name.endswith(".gz") else plain_pieces
    return _Lines(pieces(file, position), owner, position, limits, plain=pieces is plain_pieces).batches()


class _Lines:
    """Cuts content into whole lines, and knows for each cut the position in the file."""

    def __init__(
        self, pieces: Iterator[Piece], device: bytes, position: Position, limits: Limits, *, plain: bool
    ) -> None:
        self.pieces = pieces
        self.device = device
        self.plain = plain
        self.limits = limits
        self.held: list[bytes] = []
        self.held_bytes = 0
        self.start = position.content  # content offset of the first byte held
        self.members = [(position.stream, position.raw)]
        self.dead: list[DeadLetter] = []
        self.dropping_from: int | None = None  # content offset of a line that is longer than allowed

    def batches(self) -> Iterator[Batch]:
        unfinished = False
        for piece in self.pieces:
            if isinstance(piece, bytes):
                self._hold(piece)
                if self.held_bytes >= self.limits.batch_bytes and (batch := self._cut()):
                    yield batch
            elif isinstance(piece, Member):
                if piece.raw != self.members[-1][1]:  # else: the member that a former reader left half-way
                    self.members.append((self.start + self.held_bytes, piece.raw))
            elif isinstance(piece, Damage):
                yield self._flush_before(piece)
            else:
                assert isinstance(piece, Unfinished)
                unfinished = True
        yield self._last(unfinished)

    def _hold(self, content: bytes) -> None:
        if self.dropping_from is not None:
            newline = content.find(b"\n")
            dropped = len(content) if newline < 0 else newline + 1
            self.start += dropped
            content = content[dropped:]
            if newline >= 0:
                self._bury_long_line(self.start)
        if content:
            self.held.append(content)
            self.held_bytes += len(content)

    def _cut(self) -> Batch | None:
        """The whole lines held, as a batch; the rest of the last line stays."""
        content = b"".join(self.held)
        end = content.rfind(b"\n") + 1
        if end == 0:
            self.held = [content]
            if len(content) > self.limits.max_record_bytes:
                self.dropping_from = self.start
                self.start += len(content)
                self.held, self.held_bytes = [], 0
            return None
        rest = content[end:]
        batch = self._batch(content[:end])
        self.held, self.held_bytes = ([rest] if rest else []), len(rest)
        return batch

    def _flush_before(self, damage: Damage) -> Batch:
        content = b"".join(self.held)
        end = content.rfind(b"\n") + 1
        end = min(end, self._first_doubt(content, end))
        lost = content[end:]
        batch = self._batch(content[:end])
        reason = f"{damage.reason} (bytes {damage.start} to {damage.end} of the file)"
        batch.dead.append(dead_letter(self.start, self.start + len(lost), reason, lost or damage.raw))
        self.start += len(lost)
        self.held, self.held_bytes = [], 0
        self.members.append((self.start, damage.end))
        batch.after = self._position()
        return batch

    def _last(self, unfinished: bool) -> Batch:
        if self.dropping_from is not None:
            self._bury_long_line(self.start)
        content = b"".join(self.held)
        end = content.rfind(b"\n") + 1
        if unfinished and (doubt := self._first_doubt(content, end)) < end:
            # Not consumed: should the file be completed after all, it is read again from here.
            batch = self._batch(content[:doubt])
            reason = "the file ends inside a gzip member, and its last content is no record: damaged, or half a copy"
            batch.dead.append(dead_letter(self.start, self.start + len(content) - doubt, reason, content[doubt:]))
            batch.open = True
            return batch
        tail = content[end:]
        verdict = "open" if unfinished or not tail else ndjson.judge_tail(tail)
        if verdict != "open":
            # A last line without its line end: whole as it is, or something that can never become a record.
            end, tail = len(content), b""
        batch = self._batch(content[:end])
        batch.open = unfinished or bool(tail.strip())
        return batch

    def _first_doubt(self, content: bytes, end: int) -> int:
        """Where what a decompressor gave shortly before a damage stops to be records; `end` if it does not.

        Deflate finds out late: bytes that it gave before may be wrong already, even in lines that look whole.
        """
        doubtful = content.rfind(b"\n", 0, max(0, end - DOUBTFUL_BYTES)) + 1
        dead = ndjson.parse_carefully(content[doubtful:end], self.start + doubtful, self.device).dead
        return dead[0].start - self.start if dead else end

    def _batch(self, content: bytes) -> Batch:
        base = self.start
        self.start += len(content)
        dead, self.dead = self.dead, []
        return Batch(
            careful=lambda: ndjson.parse_carefully(content, base, self.device),
            quick=ndjson.parse_quickly(content, self.device) if content else (b"", 0, 0),
            after=self._position(),
            dead=dead,
        )

    def _position(self) -> Position:
        if self.plain:
            return Position(raw=self.start, stream=self.start)
        while len(self.members) > 1 and self.members[1][0] <= self.start:
            self.members.pop(0)
        stream, raw = self.members[0]
        return Position(raw, self.start - stream, stream)

    def _bury_long_line(self, end: int) -> None:
        assert self.dropping_from is not None
        reason = f"a line longer than telemetry.max_record_bytes ({self.limits.max_record_bytes})"
        self.dead.append(dead_letter(self.dropping_from, end, reason, b""))
        self.dropping_from = None


def _bintel_batches(
    file: BinaryIO, device: bytes, position: Position, limits: Limits, schemas: Mapping[int, Schema]
) -> Iterator[Batch]:
    offset = position.raw + position.skip
    file.seek(offset)
    pending = b""
    while True:
        block = file.read(limits.batch_bytes)
        pending += block
        scan = bintel.scan(pending, base=offset, at_end=not block, schemas=schemas)
        parsed = _bintel_to_copy(scan, pending, offset, device)
        offset += scan.consumed
        pending = pending[scan.consumed :]
        if scan.consumed or not block:
            yield Batch(careful=partial(_same, parsed), after=Position(raw=offset, stream=offset), open=bool(pending))
        if not block:
            return


def _same(parsed: Parsed) -> Parsed:
    return parsed


def _bintel_to_copy(scan: bintel.Scan, buffer: bytes, base: int, device: bytes) -> Parsed:
    parsed = Parsed(
        dead=[dead_letter(d.offset, d.end, d.reason, buffer[d.offset - base : d.end - base]) for d in scan.damage]
    )
    for record in scan.records:
        message = orjson.dumps(record.message)
        if b"\\u0000" in message and holds_nul(record.message):
            raw = buffer[record.offset - base : record.end - base]
            reason = "a string holds U+0000, which jsonb cannot store"
            parsed.dead.append(dead_letter(record.offset, record.end, reason, raw))
            continue
        if b"null" in message:
            parsed.nulled += count_unreal(record.message)
        microseconds, nanoseconds = divmod(record.nanoseconds, 1000)
        parsed.lines.append(
            copy_line(
                device,
                b"%b.%06d" % (_second(record.seconds), microseconds),
                b"%d" % nanoseconds,
                bintel.priority_name(record.priority).encode(),
                record.name.encode(),
                message,
            )
        )
        parsed.spans.append((record.offset, record.end))
    return parsed


@lru_cache(maxsize=64)
def _second(seconds: int) -> bytes:
    """Unix seconds as `YYYY-MM-DDTHH:MM:SS` in UTC."""
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(seconds)).encode()

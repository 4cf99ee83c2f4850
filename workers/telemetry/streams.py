"""Content of a file, decompressed if need be, with positions from which a later reader can go on.

A position names a place in the file to start reading from (for a .gz the start of a member) and how many
bytes of content after it are taken already. So a file that grew costs only its new bytes, and a .gz only
the members that were not finished.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from isal import igzip_lib, isal_zlib

BLOCK_BYTES = 262_144
_MAGIC = b"\x1f\x8b\x08"
_GZIP_WBITS = 31


@dataclass(frozen=True, slots=True)
class Position:
    """Byte `raw` of the file, `skip` bytes of content after it, and `stream` bytes of content before it."""

    raw: int = 0
    skip: int = 0
    stream: int = 0

    @property
    def content(self) -> int:
        """How many bytes of the whole content lie before this position."""
        return self.stream + self.skip


@dataclass(frozen=True, slots=True)
class Member:
    """From here on content can be read by starting at byte `raw` of the file."""

    raw: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes `start` to `end` of the file are no content; `raw` is the first of them."""

    start: int
    end: int
    reason: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The file ends in the middle of a gzip member: more of it is still to come."""


Piece = bytes | Member | Damage | Unfinished


def plain_pieces(file: BinaryIO, position: Position) -> Iterator[Piece]:
    """Blocks of an uncompressed file from a position to its present end."""
    offset = position.raw + position.skip
    file.seek(offset)
    yield Member(offset)
    while block := file.read(BLOCK_BYTES):
        yield block


def gzip_pieces(file: BinaryIO, position: Position) -> Iterator[Piece]:
    """Content of a .gz from a position: any number of members, the last of which may be incomplete.

    Zeros between members are padding. Anything else that is no gzip is skipped up to the next member.
    """
    reader = _Blocks(file, position.raw)
    skip = position.skip
    while reader.fill(len(_MAGIC)):
        if reader.ahead.startswith(b"\0"):
            reader.take(len(reader.ahead) - len(reader.ahead.lstrip(b"\0")))
        elif reader.ahead.startswith(_MAGIC):
            yield Member(reader.offset)
            yield from _member(reader, skip)
            skip = 0
        elif len(reader.ahead) < len(_MAGIC) and _MAGIC.startswith(reader.ahead):
            yield Member(reader.offset)
            yield Unfinished()
            return
        else:
            yield reader.skip_to_member(reader.offset, "not gzip: no member starts here")


class _Blocks:
    """Bytes of a file: `ahead` is read but not taken, and begins at byte `offset`."""

    def __init__(self, file: BinaryIO, offset: int) -> None:
        self.file = file
        self.offset = offset
        self.ahead = b""
        file.seek(offset)

    def fill(self, least: int) -> bool:
        """Have at least so many bytes ahead if the file has them; whether there are any."""
        while len(self.ahead) < least and (block := self.file.read(BLOCK_BYTES)):
            self.ahead += block
        return bool(self.ahead)

    def take(self, count: int) -> None:
        self.offset += count
        self.ahead = self.ahead[count:]

    def skip_to_member(self, start: int, reason: str) -> Damage:
        """Drop bytes up to something that looks like the start of a member, or to the end of the file."""
        self.file.seek(start)
        raw = self.file.read(BLOCK_BYTES)
        self.file.seek(self.offset + len(self.ahead))
        if self.offset == start and self.fill(1):
            self.take(1)
        while self.fill(len(_MAGIC)):
            found = self.ahead.find(_MAGIC)
            if found >= 0:
                self.take(found)
                break
            # The last two bytes may be the beginning of a magic number, unless they are the file's last.
            keep = len(_MAGIC) - 1 if self.fill(len(self.ahead) + 1) and len(self.ahead) > BLOCK_BYTES else 0
            self.take(max(1, len(self.ahead) - keep))
        return Damage(start, self.offset, reason, raw[: self.offset - start])


def _member(reader: _Blocks, skip: int) -> Iterator[Piece]:
    start = reader.offset
    inflate = isal_zlib.decompressobj(wbits=_GZIP_WBITS)
    made = 0
    while reader.fill(1):
        block = reader.ahead
        try:
            content = inflate.decompress(block)
        except igzip_lib.error:  # type: ignore[misc] # isal types it as an instance
            content, bad, reason = _salvage(reader.file, start, reader.offset, made)
            yield content[max(0, skip - made) :]
            reader.offset, reader.ahead = bad, b""
            reader.file.seek(bad)
            yield reader.skip_to_member(bad, f"damaged gzip: {reason}")
            return
        reader.take(len(block) - len(inflate.unused_data) if inflate.eof else len(block))
        if made < skip:
            yield content[skip - made :]
        elif content:
            yield content
        made += len(content)
        if inflate.eof:
            yield Member(reader.offset)
            return
    yield Unfinished()


def _salvage(file: BinaryIO, start: int, bad_block: int, made: int) -> tuple[bytes, int, str]:
    """What a damaged member still gives beyond `made` bytes of content; where in the file it breaks, and why.

    The block that failed is fed byte by byte, because a decompressor keeps the output of a call that fails.
    """
    inflate = zlib.decompressobj(wbits=_GZIP_WBITS)
    file.seek(start)
    total = 0
    tail = bytearray()
    offset = start
    while True:
        block = file.read(min(BLOCK_BYTES, bad_block - offset) or BLOCK_BYTES)
        step = len(block) if offset < bad_block else 1
        for at in range(0, len(block), max(1, step)):
            try:
                content = inflate.decompress(block[at : at + step])
            except zlib.error as error:
                return bytes(tail), offset + at, str(error).removeprefix("Error ")
            total += len(content)
            if total > made:
                tail += content[max(0, len(content) - (total - made)) :]
        offset += len(block)
        if not block or inflate.eof:
            return bytes(tail), min(offset, bad_block + 1), "its two decoders disagree"

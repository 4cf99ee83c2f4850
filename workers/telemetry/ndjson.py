"""JSON lines as instruments write them, turned into COPY lines: quickly when they are regular, carefully else.

Both ways keep the message byte for byte as it stands in the file, so a record's digest does not depend on
the way it took. PostgreSQL checks the JSON of the quick way; a portion that it refuses goes the careful way.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from workers.telemetry.records import (
    DELIMITER,
    QUOTE,
    Parsed,
    copy_field,
    copy_line,
    dead_letter,
    holds_nul,
    split_timestamp,
)

_REGULAR = re.compile(
    rb'^\{"ts": ?"(\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):\d\d:\d\d\.\d{6})(\d{3})", ?"prio": ?"([^"\\\x00-\x1f]{0,16})"'
    rb', ?"ec": ?"([^"\\\x00-\x1f]*)", ?"msg": ?(\{.*\})\}\r?$',
    re.MULTILINE,
)
_UNREAL_WORDS = (b"nan", b"NaN", b"inf", b"Inf")
_UNREAL = re.compile(rb"[:\[,][ \t]*-?(?:nan|NaN|inf|Inf)")
_STRING_OR_UNREAL = re.compile(rb'"(?:[^"\\]|\\.)*"|-?(?:nan|NaN|infinity|Infinity|inf|Inf)\b')
_NUL_ESCAPE = b"\\u0000"
_BOM = b"\xef\xbb\xbf"
_DECODER = json.JSONDecoder(
    parse_int=float
)  # an integer of 5000 digits is one for PostgreSQL; here only its end counts


def parse_quickly(chunk: bytes, device: bytes) -> tuple[bytes, int, int] | None:
    """(COPY lines, how many, how many numbers became null) of whole lines, or None if any is irregular.

    `device` is ready for COPY. The JSON of the messages is not checked here.
    """
    if _NUL_ESCAPE in chunk or QUOTE in chunk:
        return None
    nulled = 0
    if any(word in chunk for word in _UNREAL_WORDS) and _UNREAL.search(chunk):
        chunk, nulled = _without_unreal_lines(chunk)
    found = _REGULAR.findall(chunk)
    if len(found) != chunk.count(b"\n") + (not chunk.endswith(b"\n")):
        return None
    head = device + DELIMITER  # the groups come in the order of the columns
    return head + (b"\n" + head).join(map(DELIMITER.join, found)) + b"\n", len(found), nulled


def parse_carefully(chunk: bytes, base: int, device: bytes) -> Parsed:
    """Line by line: what is a record becomes a COPY line, what is not becomes a dead letter with its reason.

    `base` is the offset of the chunk in its file (decompressed, for a .gz). Stretches of bytes that are no
    text at all are one dead letter, however many line ends they happen to hold.
    """
    parsed = Parsed()
    noise_start: int | None = None
    position = 0
    while position < len(chunk):
        newline = chunk.find(b"\n", position)
        end = len(chunk) if newline < 0 else newline + 1
        line = chunk[position:end]
        start, position = base + position, end
        stripped = line.strip(b" \t\r\n")
        if start == 0 and stripped.startswith(_BOM):
            stripped = stripped[len(_BOM) :].strip(b" \t\r\n")
        if not stripped:
            continue
        try:
            copy, nulled = _line_to_copy(stripped, device)
        except _NoTextError as reason:
            if noise_start is not None and parsed.dead and parsed.dead[-1].end == start:
                parsed.dead.pop()
                start = noise_start
            parsed.dead.append(dead_letter(start, base + end, str(reason), chunk[start - base : end]))
            noise_start = start
        except ValueError as reason:
            parsed.dead.append(dead_letter(start, base + end, str(reason), line))
            noise_start = None
        else:
            parsed.lines.append(copy)
            parsed.spans.append((start, base + end))
            parsed.nulled += nulled
            noise_start = None
    return parsed


def judge_tail(tail: bytes) -> str:
    """What bytes without a line end at the end of a file are: `record`, `open` (may still grow into one), `bad`."""
    stripped = tail.strip(b" \t\r\n").removeprefix(_BOM).strip(b" \t\r\n")
    if not stripped:
        return "open"
    try:
        _line_to_copy(stripped, b"")
        return "record"
    except ValueError:
        pass
    if not stripped.startswith(b"{") or re.search(rb"[\x00-\x08\x0b-\x1f]", stripped):
        return "bad"
    try:
        stripped.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character that is cut at the very end may still be completed.
        if error.reason != "unexpected end of data":
            return "bad"
    return "open"


class _NoTextError(ValueError):
    """Bytes that are not text: noise, whatever line ends it holds."""


def _line_to_copy(line: bytes, device: bytes) -> tuple[bytes, int]:
    nulled = 0
    if any(word in line for word in _UNREAL_WORDS) and _UNREAL.search(line):
        line, nulled = _without_unreal(line)
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _NoTextError(f"not UTF-8: {error.reason}") from error
    if re.search(r"[\x00-\x08\x0b-\x1f]", text):
        raise _NoTextError("control characters: not a line of text")
    try:
        record = _loads(line, text)
        message_text = _message_text(text) if isinstance(record, dict) else ""
        nul = _NUL_ESCAPE in line and holds_nul(record)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    for name in ("ts", "msg"):
        if name not in record:
            raise ValueError(f"the record has no {name!r}")
    if not isinstance(record["ts"], str):
        raise ValueError("'ts' is not a string")
    stamp, nanoseconds = split_timestamp(record["ts"])
    if nul:
        raise ValueError("a string holds U+0000, which jsonb cannot store")
    named = record.get("device")
    owner = copy_field(named.encode()) if isinstance(named, str) and named else device
    prio, event = (copy_field(_word(record, name)) for name in ("prio", "ec"))
    message = copy_field(message_text.encode())
    return copy_line(owner, stamp.encode(), b"%d" % nanoseconds, prio, event, message), nulled


def _loads(line: bytes, text: str) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            return json.loads(text, parse_int=float)  # numbers beyond 64 bits
        except ValueError:
            raise ValueError(f"not JSON: {error}") from error


def _word(record: dict[str, Any], name: str) -> bytes:
    value = record.get(name)
    if value is None:
        return b""
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is not a string")
    return value.encode()


def _message_text(text: str) -> str:
    """The value of the object's own last `msg` key, exactly as it stands in the line; empty if there is none."""
    found = ""
    position = _past_blanks(text, 1)
    while text[position : position + 1] == '"':
        key, position = _DECODER.raw_decode(text, position)
        start = _past_blanks(text, _past_blanks(text, position) + 1)
        _value, end = _DECODER.raw_decode(text, start)
        if key == "msg":
            found = text[start:end]
        position = _past_blanks(text, _past_blanks(text, end) + 1)
    return found


def _past_blanks(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t"):
        position += 1
    return position


def _without_unreal(line: bytes) -> tuple[bytes, int]:
    """The line with every NaN or infinity outside of strings as null, and how many there were."""
    count = 0

    def replace(match: re.Match[bytes]) -> bytes:
        nonlocal count
        word = match.group(0)
        if word.startswith(b'"'):
            return word
        count += 1
        return b"null"

    return _STRING_OR_UNREAL.sub(replace, line), count


def _without_unreal_lines(chunk: bytes) -> tuple[bytes, int]:
    """The same for a chunk, touching only the lines that seem to need it."""
    pieces: list[bytes] = []
    done = count = 0
    for match in _UNREAL.finditer(chunk):
        if match.start() < done:
            continue
        start = chunk.rfind(b"\n", 0, match.start()) + 1
        newline = chunk.find(b"\n", match.end())
        end = len(chunk) if newline < 0 else newline
        line, found = _without_unreal(chunk[start:end])
        pieces += [chunk[done:start], line]
        done, count = end, count + found
    return b"".join([*pieces, chunk[done:]]), count

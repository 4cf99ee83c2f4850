"""Framing of `.bintel` files, against files that MagAO-X's own classes wrote and against hostile bytes."""

import gzip
import hashlib
import json
import os
import random
import struct
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.telemetry import bintel
from workers.telemetry.bintel import Damage, Record, Scan, priority_name
from workers.telemetry.event_schemas import Table, load_schemas

SCHEMAS = load_schemas()
FIXTURES = Path(__file__).parents[3].parent / "shared" / "fixtures" / "telemetry" / "bintel"
FILES = sorted(path for path in FIXTURES.glob("*") if path.suffix in (".bintel", ".binlog"))
EMPTY_TABLE = struct.pack("<IHHi", 8, 4, 4, 4)
NOW = 1_713_220_250

needs_fixtures = pytest.mark.skipif(
    not FILES and "CI" not in os.environ, reason="the reference .bintel files are not beside this checkout"
)


def scan(data: bytes, *, at_end: bool = True, base: int = 0) -> Scan:
    """One scan with the built-in schemas."""
    return bintel.scan(data, base=base, at_end=at_end, schemas=SCHEMAS)


def in_pieces(data: bytes, cuts: list[int]) -> Scan:
    """What a reader gets that presents the bytes in pieces and carries over what is not consumed."""
    records: list[Record] = []
    damage: list[Damage] = []
    start = 0
    for cut in [*sorted(cuts), len(data), None]:
        found = scan(data[start:cut], at_end=cut is None, base=start)
        records += found.records
        damage += found.damage
        start += found.consumed
    return Scan(records, damage, start)


def record(code: int = 20065, message: bytes = EMPTY_TABLE, *, prio: int = 64, s: int = NOW, ns: int = 5) -> bytes:
    """A record as MagAO-X frames it."""
    size = len(message)
    if size < 254:
        length = struct.pack("<B", size)
    elif size < 65_535:
        length = struct.pack("<BH", 254, size)
    else:
        length = struct.pack("<BQ", 255, size)
    return struct.pack("<bHII", prio, code, s, ns) + length + message


def text(content: bytes) -> bytes:
    """A text_log record."""
    head = struct.pack("<IxxHHHiI", 12, 6, 8, 4, 6, 4)
    return record(10, head + struct.pack("<I", len(content)) + content + b"\0", prio=6)


@cache
def truth(path: Path) -> list[dict[str, Any]]:
    """The lines of the truth beside a file."""
    plain = path.with_name(path.name + ".truth.jsonl")
    lines = plain.read_text() if plain.exists() else gzip.decompress(Path(f"{plain}.gz").read_bytes()).decode()
    return [json.loads(line) for line in lines.split("\n") if line]


def small() -> bytes:
    """A short mixed file."""
    return next(path for path in FILES if path.name.startswith("mixed_small")).read_bytes()


def as_stored(value: Any, kind: str | Table) -> Any:
    """A value as its bytes, so that equal means bit-equal in its own width; long strings as their hash."""
    if isinstance(kind, Table):
        return {field.name: as_stored(value[field.name], field.table or field.kind)
                for field in kind.fields if field.name in value}  # fmt: skip
    if kind.startswith("["):
        return [as_stored(each, kind[1:-1]) for each in value]
    if kind == "string" and isinstance(value, str) and len(value.encode()) > 2000:
        return {"$bytes": len(value.encode()), "$sha256": hashlib.sha256(value.encode()).hexdigest()}
    if kind.startswith("float"):
        return struct.pack("<f" if kind == "float32" else "<d", value)
    return value if isinstance(value, dict) else (type(value), value)


@needs_fixtures
def test_the_reference_files_are_there() -> None:
    """Where reference files must exist, they do."""
    assert len(FILES) >= 40, f"no reference files in {FIXTURES}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_reference_file_is_read_as_it_was_written(path: Path) -> None:
    """Every record, value, garbage range and truncated tail is what the writing program says."""
    data = path.read_bytes()
    lines = truth(path)
    found = scan(data)
    sound = [
        line for line in lines if line["kind"] == "record" and line["fb_ok"] and line["ns"] < 10**9 and line["name"]
    ]
    assert [
        (r.offset, r.end, r.priority, priority_name(r.priority), r.code, r.name, r.seconds, r.nanoseconds)
        for r in found.records
    ] == [tuple(line[key] for key in ("off", "end", "prio", "prio_name", "ec", "name", "s", "ns")) for line in sound]
    for ours, line in zip(found.records, sound, strict=True):
        table = SCHEMAS[ours.code].table
        assert list(ours.message) == list(line["msg"])
        assert as_stored(ours.message, table) == as_stored(line["msg"], table)
        assert ours.unknown_slots == line.get("unknown_slots", 0)
    others = [line for line in lines if line not in sound and line["kind"] != "truncated"]
    assert [(d.offset, d.end) for d in found.damage] == [(line["off"], line["end"]) for line in others]
    assert found.consumed == (lines[-1]["off"] if lines[-1]["kind"] == "truncated" else len(data))


@pytest.mark.parametrize("path", [p for p in FILES if p.stat().st_size < 30_000][::3], ids=lambda path: path.name)
def test_a_reference_file_is_read_the_same_in_any_pieces(path: Path) -> None:
    """Where the reader cuts a file changes nothing."""
    data = path.read_bytes()
    rng = random.Random(path.name)
    for _ in range(3):
        assert repr(in_pieces(data, rng.sample(range(len(data)), 5))) == repr(scan(data))


@needs_fixtures
def test_a_truncated_file_resumes_where_it_stopped() -> None:
    """Whatever a file was cut at, its whole records come, then the rest once it is complete; nothing is damage."""
    data = small()[:3000]
    whole = scan(data, base=7)
    ends = {0, *(r.end - 7 for r in whole.records)}
    for cut in range(0, 2000, 7):
        first = scan(data[:cut], base=7)
        assert first.damage == [] and first.consumed == max(end for end in ends if end <= cut)
        rest = scan(data[first.consumed :], base=7 + first.consumed)
        assert [*first.records, *rest.records] == whole.records


def test_lengths_at_the_borders_of_the_header_forms() -> None:
    """253, 254, 65534 and 65535 bytes take a header of 12, 14, 14 and 20 bytes."""
    for size, header in ((253, 12), (254, 14), (65_534, 14), (65_535, 20), (70_000, 20)):
        message = EMPTY_TABLE.ljust(size, b"\x55")
        data = record(message=message) * 2
        found = scan(data)
        assert [(r.offset, r.end) for r in found.records] == [(0, size + header), (size + header, len(data))]
        assert found.damage == []


@pytest.mark.parametrize(
    "bad",
    [
        record(30_000, b"whatever it is"),
        record(65_535, b""),
        record(ns=1_000_000_000),
        record(ns=4_294_967_295),
        record(message=b""),
        record(1001, EMPTY_TABLE),
        record(message=bytes(40)),
        record(message=b"\xff" * 300),
        record(10, text(b"long")[12:28] + b"\xff\0\0\0" + b"long\0"),
        record(prio=99, message=bytes(70_000)),
    ],
    ids=["unknown", "65535", "ns", "ns-max", "empty", "not-empty", "zeros", "ones", "over-long-string", "big"],
)
def test_a_damaged_record_is_one_damage_and_the_next_is_read(bad: bytes) -> None:
    """A record whose frame is intact is damage of exactly its range, alone, twice in a row, or at either end."""
    good = record()
    for before, times, after in ((3, 1, 3), (0, 1, 1), (1, 1, 0), (2, 2, 2), (1, 3, 1)):
        data = good * before + bad * times + good * after
        found = scan(data)
        first = len(good) * before
        expected = [(first + len(bad) * i, first + len(bad) * (i + 1)) for i in range(times)]
        assert [(d.offset, d.end) for d in found.damage] == expected
        assert len(found.records) == before + after
        assert found.consumed == len(data)


def test_a_file_of_unknown_events_is_one_damage_for_each() -> None:
    """A device whose events are new to us gives dead letters record by record, not one heap."""
    data = b"".join(record(30_001, b"x" * (i % 50), s=NOW + i) for i in range(200))
    assert len(scan(data).damage) == 200


GARBAGE = {
    "random": random.Random(1).randbytes(137),
    "zeros": bytes(4096),
    "text": b"2024-04-15 INFO all is well, nothing to see here\n" * 9,
    "ones": b"\xff" * 500,
    "short": b"\x07",
    "header": record()[:11],
    "lost": text(b"half of this is lost" * 20)[:200],
    "hostile-length": struct.pack("<bHIIBQ", 64, 20065, NOW, 1, 255, 2**63),
    "wrong-form": struct.pack("<bHIIBQ", 64, 20065, NOW, 1, 255, 20),
}


@needs_fixtures
@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_between_records_is_one_damage(kind: str) -> None:
    """After a stretch that is no record the next whole record is found, and all between is one damage."""
    data, garbage = small(), GARBAGE[kind]
    records = scan(data).records
    for at in (0, *(records[i].end for i in (1, 40, 120, 297))):
        found = scan(data[:at] + garbage + data[at:])
        assert [(d.offset, d.end) for d in found.damage] == [(at, at + len(garbage))]
        assert [r.message for r in found.records] == [r.message for r in records]


@needs_fixtures
def test_lost_bytes_cost_only_the_record_that_lost_them() -> None:
    """A record whose end is lost is damage; it does not take its neighbours with it."""
    data = small()
    records = scan(data).records
    for number in range(5, 250, 3):
        victim = records[number]
        cut = victim.offset + (victim.end - victim.offset) * 2 // 3
        if victim.end - cut == records[number + 1].end - records[number + 1].offset:
            continue  # exactly the next record takes the place of what is lost: no reader can tell
        found = scan(data[:cut] + data[victim.end :])
        assert [(d.offset, d.end) for d in found.damage] == [(victim.offset, cut)], victim.name
        assert len(found.records) == len(records) - 1


def test_single_records_between_garbage_are_found() -> None:
    """A sound record with a message is read even if garbage is on both sides of it."""
    found = scan((text(b"alone") + GARBAGE["random"]) * 20)
    assert [r.message for r in found.records] == [{"message": "alone"}] * 20
    assert len(found.damage) == 20


@pytest.mark.parametrize(
    "tail", [bytes(4096), bytes(5), b"text that somebody appended\n", record()[:-4].ljust(30, b"\0")]
)
def test_a_tail_that_can_never_become_a_record_is_damage(tail: bytes) -> None:
    """Zeros and text at the end of a file are told, not waited for."""
    data = record() * 3
    found = scan(data + tail)
    assert len(found.records) >= 3
    assert found.consumed == len(data + tail)


def test_an_impossible_last_record_is_damage() -> None:
    """A cut record whose header or message already shows that it is none is not waited for."""
    for bad in (
        struct.pack("<bHIIBQ", 64, 20065, NOW, 1, 255, 2**40),
        struct.pack("<bHIIB", 64, 20065, NOW, 2**31, 200) + b"\x0c\0\0\0",
        struct.pack("<bHIIB", 64, 20065, NOW, 1, 200) + bytes(30),
        struct.pack("<bHIIB", 64, 1001, NOW, 1, 200) + b"\x0c\0\0\0",
        struct.pack("<bHIIB", 64, 20065, NOW, 1, 5) + b"\x0c",
    ):
        found = scan(record() + bad)
        assert [(d.offset, d.end) for d in found.damage] == [(24, 24 + len(bad))]


def test_a_cut_record_after_garbage_is_waited_for() -> None:
    """Garbage before a last, incomplete record is damage; the record stays for the next time."""
    data = record() + GARBAGE["random"]
    found = scan(data + text(b"to be continued")[:40])
    assert [(d.offset, d.end) for d in found.damage] == [(24, len(data))]
    assert found.consumed == len(data)


def test_a_record_inside_of_a_sound_message_is_not_found() -> None:
    """What a text quotes is text, even if it is records."""
    found = scan(text(record() * 5) + record())
    assert [r.name for r in found.records] == ["text_log", "telem_position"]


def test_priorities_have_the_names_that_magaox_prints() -> None:
    """Four characters each, blanks kept; unlisted numbers are unknown."""
    assert [priority_name(n) for n in (0, 3, 5, 6, 7, 8, 64, 126, 127, -128, 9)] == [
        "EMER", "ERR ", "NOTE", "INFO", "DBG ", "DBG2", "TELM", "DEF?", "UNK?", "UNK?", "UNK?"
    ]  # fmt: skip


PIECES = st.lists(
    st.one_of(
        st.sampled_from([record(), record(1001, b""), text(b"x"), text(b"y" * 300), record(30_000, b"?" * 40)]),
        st.sampled_from([record(ns=2**31), record(message=bytes(20)), record(message=b""), record()[:20], bytes(50)]),
        st.sampled_from([text(record() * 2)[:70], record(20828, EMPTY_TABLE.ljust(260, b"\0")), text(b"z" * 99)[:60]]),
        st.builds(lambda whole, start: whole[start:], st.sampled_from([text(b"w" * 50), record()]), st.integers(1, 60)),
        st.binary(max_size=60),
    ),
    max_size=14,
).map(b"".join)


@given(PIECES, st.lists(st.integers(0, 900), max_size=6))
@settings(max_examples=600, deadline=None)
def test_cutting_changes_nothing(data: bytes, cuts: list[int]) -> None:
    """Any bytes in any pieces give the records, the damage and the end that they give at once."""
    cuts = [min(cut, len(data)) for cut in cuts]
    assert in_pieces(data, cuts) == scan(data)


@given(PIECES)
@settings(max_examples=300, deadline=None)
def test_every_byte_is_accounted_for(data: bytes) -> None:
    """Records and damage cover what is consumed, without gap or overlap."""
    found = scan(data)
    ranges = sorted([(r.offset, r.end) for r in found.records] + [(d.offset, d.end) for d in found.damage])
    assert all(start < end for start, end in ranges)
    assert [start for start, _ in ranges] + [found.consumed] == [0, *(end for _, end in ranges)]


@needs_fixtures
def test_mutated_files_never_fail_and_lose_little() -> None:
    """Flipped, lost, doubled and inserted bytes raise nothing, and the records around them are kept."""
    rng = random.Random(5)
    data = small()
    for _ in range(60):
        mutated = bytearray(data)
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(mutated))
            match rng.randrange(3):
                case 0:
                    mutated[at] ^= 1 << rng.randrange(8)
                case 1:
                    del mutated[at : at + rng.randrange(1, 40)]
                case _:
                    mutated[at:at] = rng.randbytes(rng.randrange(1, 40))
        found = scan(bytes(mutated))
        assert len(found.records) > 270
        assert repr(in_pieces(bytes(mutated), rng.sample(range(len(mutated)), 2))) == repr(found)


VALID = text(b"x" * 200)
HOSTILE = {
    "zeros": bytes(10 << 20),
    "random": random.Random(2).randbytes(10 << 20),
    "text": b"the quick brown fox " * (1 << 19),
    "headers": struct.pack("<bHIIBQ", 64, 20065, NOW, 1, 255, 1 << 20) * ((4 << 20) // 20),
    "rooted": (struct.pack("<bHIIBQ", 64, 10, NOW, 1, 255, 1 << 20) + b"\x0c\0\0\0") * ((4 << 20) // 24),
    "nested": (VALID[:40]) * ((4 << 20) // 40),
    "bad": record(message=bytes(12)) * ((2 << 20) // 24),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_mebibytes_of_garbage_take_seconds(kind: str) -> None:
    """No content makes the search for the next record quadratic."""
    data = HOSTILE[kind]
    began = time.process_time()
    found = scan(data)
    assert time.process_time() - began < 20
    assert found.records == []

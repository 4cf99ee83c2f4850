"""Ingest of telemetry files into a real PostgreSQL: nothing lost, nothing doubled, the rest goes on."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workers.messages import IngestFile
from workers.settings import Settings

Ask = Callable[..., list[tuple[Any, ...]]]
Work = Callable[..., list[str]]

NAME = "cooler_20240416035000000000000.ndjson"


def line(number: int, **changes: Any) -> str:
    """One record as an instrument writes it."""
    record = {
        "ts": f"2024-04-16T03:{number // 60 % 60:02d}:{number % 60:02d}.{number * 1000 + 7:09d}",
        "prio": "TELM",
        "ec": "telem_cooler",
        "msg": {"liquidTemp": 20.5 + number, "flowRate": 1.25},
    } | changes
    return json.dumps(record) + "\n"


def lines(count: int, start: int = 0) -> str:
    """So many records."""
    return "".join(line(number) for number in range(start, start + count))


def message(path: Path, host: str = "here") -> IngestFile:
    """Ask for a file."""
    return IngestFile(host=host, path=str(path))


def rows(sql: Ask) -> int:
    """How many rows telem has."""
    return int(sql("SELECT count(*) FROM telem")[0][0])


def state(sql: Ask, path: Path) -> tuple[Any, ...]:
    """State and dead letters of a file."""
    return sql("SELECT state, dead_letters FROM headrace.telemetry_file WHERE path = %s", str(path))[0]


def test_plain_and_compressed_files_become_the_same_rows(data: Path, work: Work, sql: Ask) -> None:
    """The same lines in .ndjson and .ndjson.gz give the same rows, once."""
    (data / NAME).write_text(lines(100))
    (data / (NAME + ".gz")).write_bytes(gzip.compress(lines(100).encode()))
    assert work(message(data / NAME), message(data / (NAME + ".gz"))) == []
    assert rows(sql) == 100
    first = sql("SELECT device, ts::text, ts_ns, prio, ec, msg FROM telem ORDER BY ts LIMIT 1")
    assert first == [
        ("cooler", "2024-04-16 03:00:00+00", 7, "TELM", "telem_cooler", {"liquidTemp": 20.5, "flowRate": 1.25})
    ]


def test_an_unchanged_file_is_not_read_again(data: Path, work: Work, sql: Ask) -> None:
    """A second message for the same file changes nothing and reads nothing."""
    (data / NAME).write_text(lines(100))
    work(message(data / NAME))
    before = sql("SELECT xmin::text, ctid::text FROM telem ORDER BY ts")
    runs = sql("SELECT count(*) FROM headrace.run")
    assert work(message(data / NAME)) == []
    assert sql("SELECT xmin::text, ctid::text FROM telem ORDER BY ts") == before
    assert sql("SELECT count(*) FROM headrace.run") == runs


@pytest.mark.parametrize("compressed", [False, True])
def test_only_the_new_part_of_an_appended_file_is_read(data: Path, work: Work, sql: Ask, compressed: bool) -> None:
    """50 records appended to a file (a second member of a .gz) give 150 rows, and only they are read."""
    path = data / (NAME + ".gz" if compressed else NAME)
    pack = gzip.compress if compressed else bytes
    path.write_bytes(pack(lines(100).encode()))
    work(message(path))
    with path.open("ab") as file:
        file.write(pack(lines(50, 100).encode()))
    sql("UPDATE headrace.run SET started_at = started_at - interval '1 hour'")
    assert work(message(path)) == []
    assert rows(sql) == 150
    counters = sql("SELECT counters FROM headrace.run ORDER BY id DESC LIMIT 1")[0][0]
    assert counters["bytes_read"] == len(lines(50, 100))
    assert sql("SELECT size_bytes FROM file_origins") == [(path.stat().st_size,)]


def test_a_compressed_file_that_is_cut_is_open_until_it_is_whole(data: Path, work: Work, sql: Ask) -> None:
    """A .gz that ends in mid-stream gives its whole lines and is `open`; completed, it gives the rest once."""
    path = data / (NAME + ".gz")
    source = random.Random(1)
    text = "".join(line(number, msg={"value": source.random()}) for number in range(100))
    whole = gzip.compress(text.encode())
    path.write_bytes(whole[:-200])
    assert work(message(path)) == []
    assert state(sql, path) == ("open", 0)
    assert 0 < rows(sql) < 100
    path.write_bytes(whole)
    assert work(message(path)) == []
    assert (state(sql, path), rows(sql)) == (("done", 0), 100)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_corrupted_tail_costs_only_itself(data: Path, work: Work, sql: Ask, compressed: bool) -> None:
    """200 random bytes at the end are one dead letter with its place; the records before them are there."""
    path = data / (NAME + ".gz" if compressed else NAME)
    source = random.Random(7)
    text = "".join(line(number, msg={"value": source.random()}) for number in range(100)).encode()
    whole = gzip.compress(text) if compressed else text
    path.write_bytes(whole[:-200] + source.randbytes(200))
    work(message(path))
    assert state(sql, path) == ("damaged", 1), sql("SELECT start_byte, end_byte, reason FROM headrace.dead_letter")
    assert 80 < rows(sql) < 100
    assert sql("SELECT state FROM headrace.run") == [("failed",)]
    again = sql("SELECT count(*) FROM headrace.run")
    work(message(path))
    assert sql("SELECT count(*) FROM headrace.run") == again
    path.write_bytes(whole)
    os.utime(path, ns=(1, 1))
    assert work(message(path)) == []
    assert (state(sql, path), rows(sql)) == (("done", 0), 100)
    assert sql("SELECT count(*) FROM headrace.dead_letter") == [(0,)]


def test_bad_lines_are_dead_letters_and_odd_ones_are_not(data: Path, work: Work, sql: Ask) -> None:
    """A cut line and a NUL die alone; a 23-character ec, a timestamp `...:59000`, an empty line and a BOM live."""
    path = data / NAME
    path.write_text(
        "\ufeff" + lines(50) + line(500)[:40] + "\n" + "\n" + line(501, msg={"text": "a\u0000b"})
        + line(502, ec="telem_of_23_characters_") + line(503, ts="2024-03-20T05:56:59000") + lines(50, 50)
    )  # fmt: skip
    work(message(path))
    assert rows(sql) == 102
    assert state(sql, path) == ("damaged", 2)
    reasons = [row[0] for row in sql("SELECT reason FROM headrace.dead_letter ORDER BY start_byte")]
    assert reasons[0].startswith("not JSON") and "U+0000" in reasons[1]
    assert sql("SELECT ts::text, ts_ns FROM telem WHERE ts < '2024-04-01'") == [("2024-03-20 05:56:59+00", 0)]
    start, end, raw = sql("SELECT start_byte, end_byte, raw FROM headrace.dead_letter ORDER BY start_byte LIMIT 1")[0]
    assert path.read_bytes()[start:end] == bytes(raw)


def test_records_are_told_apart_by_time_code_and_message(data: Path, work: Work, sql: Ask) -> None:
    """Two nanoseconds in one microsecond are two rows, two codes at one instant too, an exact double is one."""
    same = "2024-04-16T03:00:00.000001001"
    path = data / NAME
    path.write_text(
        line(1, ts=same) + line(1, ts=same[:-1] + "2") + line(2, ts="2024-04-16T04:00:00.000000001")
        + line(2, ts="2024-04-16T04:00:00.000000001", ec="telem_other") + line(3) + line(3)
    )  # fmt: skip
    assert work(message(path)) == []
    assert rows(sql) == 5


def test_the_order_of_files_does_not_matter(data: Path, work: Work, sql: Ask) -> None:
    """Old, future and disordered timestamps all arrive; files in any order give the same table."""
    source = random.Random(3)
    moments = [f"{year}-01-0{day}T00:00:00.{day * 1001:09d}" for year in (1980, 2024, 2099) for day in range(1, 9)]
    files = []
    for number in range(6):
        chosen = source.sample(moments, 12)
        path = data / f"dev_2024041603500{number}000000000.ndjson"
        path.write_text("".join(line(number, ts=moment, msg={"v": moment}) for moment in chosen))
        files.append(path)
    hashes = set()
    for _order in range(3):
        source.shuffle(files)
        sql("TRUNCATE telem, headrace.telemetry_file")
        assert work(*(message(path) for path in files)) == []
        hashes.add(sql("SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM telem t")[0][0])
    assert len(hashes) == 1


def test_numbers_that_json_does_not_know_become_null(data: Path, work: Work, sql: Ask) -> None:
    """NaN, nan, -nan, inf and Infinity are null, as before, and are counted; the same words in text stay."""
    words = ["NaN", "nan", "-nan", "inf", "-inf", "Infinity", "-Infinity"]
    path = data / NAME
    text = "".join(
        line(n, msg={"v": "@", "note": "nan, inf: fine"}).replace('"@"', word) for n, word in enumerate(words)
    )
    path.write_text(lines(20, 100) + text)
    assert work(message(path)) == []
    assert sql("SELECT count(*), min(msg ->> 'note') FROM telem WHERE msg ? 'v' AND msg ->> 'v' IS NULL") == [
        (7, "nan, inf: fine")
    ]
    assert sql("SELECT counters -> 'nulled' FROM headrace.run") == [(7,)]


def test_a_record_of_8_megabytes_is_a_record(data: Path, work: Work, sql: Ask) -> None:
    """A vector of a million numbers arrives whole, and so do its neighbours."""
    path = data / NAME
    path.write_text(lines(2) + line(7, msg={"values": list(range(1_000_000))}) + lines(2, 10))
    assert work(message(path)) == []
    assert sql("SELECT max(jsonb_array_length(msg -> 'values')), count(*) FROM telem") == [(1_000_000, 5)]


def test_a_line_beyond_the_limit_costs_only_itself(data: Path, work: Work, sql: Ask, conf: Settings) -> None:
    """A line longer than telemetry.max_record_bytes is a dead letter; memory and neighbours are safe."""
    small = conf.model_copy(
        update={"telemetry": conf.telemetry.model_copy(update={"batch_bytes": 50_000, "max_record_bytes": 1_000_000})}
    )
    path = data / NAME
    path.write_text(lines(100) + line(500, msg={"x": "y" * 3_000_000}) + lines(100, 100))
    work(message(path), settings=small)
    assert rows(sql) == 200
    assert "max_record_bytes" in sql("SELECT reason FROM headrace.dead_letter")[0][0]


def test_a_value_that_only_postgresql_refuses_is_a_dead_letter(data: Path, work: Work, sql: Ask) -> None:
    """A number too large for numeric dies alone, with PostgreSQL's own reason."""
    path = data / NAME
    path.write_text(lines(30) + line(500, msg={"v": "@"}).replace('"@"', "1e200000") + lines(30, 30))
    work(message(path))
    assert rows(sql) == 60
    assert "PostgreSQL refuses it" in sql("SELECT reason FROM headrace.dead_letter")[0][0]


def test_a_line_without_its_end_waits(data: Path, work: Work, sql: Ask) -> None:
    """Half a record at the end is `open`, not an error; completed, it is a row."""
    path = data / NAME
    path.write_text(lines(10) + line(10)[:30])
    assert work(message(path)) == []
    assert (state(sql, path), rows(sql)) == (("open", 0), 10)
    path.write_text(lines(11))
    assert work(message(path)) == []
    assert (state(sql, path), rows(sql)) == (("done", 0), 11)


def test_a_renamed_file_is_not_read_again(data: Path, work: Work, sql: Ask) -> None:
    """A move after the ingest is one event, and no row more under its new name; a hard link neither."""
    path, moved = data / NAME, data / "renamed_20240416035000000000000.ndjson"
    path.write_text(lines(100))
    work(message(path))
    path.rename(moved)
    work(message(moved))
    linked = data / "linked_20240416035000000000000.ndjson"
    os.link(moved, linked)
    work(message(linked))
    assert rows(sql) == 100
    assert sql("SELECT event FROM headrace.file_event ORDER BY id") == [("moved",), ("linked",)]
    assert sql("SELECT origin_path FROM file_ingest_times") == [(str(moved),)]


def test_the_same_file_on_two_hosts_is_one_set_of_rows(data: Path, work: Work, sql: Ask, conf: Settings) -> None:
    """Equal files of two hosts give rows once and two origins; a different one is told as a conflict, both kept."""
    there = conf.model_copy(update={"host": "there"})
    (data / NAME).write_text(lines(100))
    work(message(data / NAME))
    work(message(data / NAME, host="there"), settings=there)
    assert rows(sql) == 100
    assert sql("SELECT origin_host FROM file_origins ORDER BY 1") == [("here",), ("there",)]
    assert sql("SELECT count(*) FROM headrace.file_event") == [(0,)]
    third = conf.model_copy(update={"host": "third"})
    (data / NAME).write_text(lines(50, 1000))
    work(message(data / NAME, host="third"), settings=third)
    assert rows(sql) == 150
    assert {row[0] for row in sql("SELECT event FROM headrace.file_event")} == {"conflict"}


def test_a_real_instruments_lines_arrive_exactly(data: Path, work: Work, sql: Ask, shared: Path) -> None:
    """160 lines of a real instrument: each is a row with its own device, time to the nanosecond, and message."""
    source = shared / "fixtures" / "telemetry" / "real_lines.ndjson"
    path = data / "all_20240125002106113874887.ndjson"
    path.write_bytes(source.read_bytes())
    assert work(message(path)) == []
    expected = {}
    for text in source.read_text().splitlines():
        record = json.loads(text)
        ts = record["ts"].ljust(29, "0")
        expected[
            (record["device"], ts, record["ec"], record.get("prio"), json.dumps(record["msg"], sort_keys=True))
        ] = 1
    found = {
        (device, f"{ts}{ns:03d}", ec, prio, json.dumps(msg, sort_keys=True))
        for device, ts, ns, ec, prio, msg in sql(
            "SELECT device, to_char(ts, 'YYYY-MM-DD\"T\"HH24:MI:SS.US'), ts_ns, ec, prio, msg FROM telem"
        )
    }
    assert found == set(expected)


def test_what_is_no_readable_file_is_said_and_costs_nothing(data: Path, work: Work, sql: Ask) -> None:
    """A FIFO, a folder, a missing file, a wrong ending and gzip garbage each give one line; others go on."""
    good = data / NAME
    good.write_text(lines(10))
    fifo = data / "fifo_20240416035000000000000.ndjson"
    os.mkfifo(fifo)
    folder = data / "folder_1.ndjson"
    folder.mkdir()
    garbage = data / "garbage_20240416035000000000000.ndjson.gz"
    garbage.write_bytes(random.Random(2).randbytes(5000))
    problems = work(message(fifo), message(folder), message(data / "x.txt"), message(garbage), message(good))
    assert [problem.split(": ", 1)[1].split(";")[0].split(",")[0] for problem in problems] == [
        "is a FIFO",
        "is a folder",
        "not a telemetry file",
        "byte 0: not gzip: no member starts here (bytes 0 to 5000 of the file)",
    ]
    assert state(sql, garbage) == ("damaged", 1)
    assert rows(sql) == 10


def test_an_unreadable_file_is_tried_again_once_it_is_readable(data: Path, work: Work, sql: Ask) -> None:
    """A file without permission is `failed` with the reason and a due time."""
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = data / NAME
    path.write_text(lines(10))
    path.chmod(0)
    assert "Permission denied" in work(message(path))[0]
    assert sql("SELECT due_at > now() FROM headrace.telemetry_file") == [(True,)]
    path.chmod(0o600)
    assert work(message(path)) == []
    assert rows(sql) == 10


def test_odd_paths_come_back_exactly(data: Path, work: Work, sql: Ask) -> None:
    """Names with blanks, newlines, quotes, a 0xFF byte or a text that looks like an escape are told apart."""
    from workers import paths

    names = ["a b.ndjson", "new\nline.ndjson", "-dash.ndjson", 'quo"te.ndjson']
    names += ["nfc_\u00e9.ndjson", "nfd_e\u0301.ndjson", "back\\xff.ndjson"]
    raw = [os.fsencode(data / name) for name in names] + [os.fsencode(data) + b"/bad\xff.ndjson"]
    for number, path in enumerate(raw):
        with open(path, "w") as file:
            file.write(lines(1, number))
    assert work(*(IngestFile(host="here", path=paths.to_text(path)) for path in raw)) == []
    assert rows(sql) == len(raw)
    stored = sql("SELECT origin_path, path_bytes FROM file_origins")
    assert {bytes(odd) if odd is not None else text.encode() for text, odd in stored} == set(raw)
    assert {paths.to_bytes(text) for text, _odd in stored} == set(raw)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_file_of_many_batches_is_read_once_through(
    data: Path, work: Work, sql: Ask, conf: Settings, ending: str
) -> None:
    """Each batch begins where the one before ended: every record once, every byte read once."""
    small = conf.model_copy(update={"telemetry": conf.telemetry.model_copy(update={"batch_bytes": 10_000})})
    path = data / (NAME + ending)
    text = "".join(line(number, ts=f"2024-04-16T03:00:00.{number:09d}") for number in range(20_000)).encode()
    path.write_bytes(gzip.compress(text[:999_999]) + gzip.compress(text[999_999:]) if ending else text)
    assert work(message(path), settings=small) == []
    assert rows(sql) == 20_000
    assert sql("SELECT counters -> 'records', counters -> 'bytes_read' FROM headrace.run") == [(20_000, len(text))]


def test_a_long_file_goes_on_in_slices_as_one_request(
    data: Path, work: Work, sql: Ask, conf: Settings, dsn: str
) -> None:
    """A file that takes longer than a slice is read in several, and a person's request stays one run."""
    from workers import database, runs

    slices = conf.model_copy(
        update={"telemetry": conf.telemetry.model_copy(update={"batch_bytes": 20_000, "slice_seconds": 1e-9})}
    )
    path = data / NAME
    path.write_text(lines(2000))
    for force in (False, True):
        sql("DELETE FROM headrace.run")
        with database.connection(conf.target(), purpose="tests") as conn:
            asked = runs.request(conn, [message(path).model_copy(update={"force": force})], by="somebody")
            conn.commit()
        assert work(*asked, settings=slices) == []
        assert sql("SELECT state, counters -> 'records' FROM headrace.run") == [("succeeded", 2000)]
        assert rows(sql) == 2000


def test_a_file_cancelled_before_its_first_row_stays_so(data: Path, work: Work, sql: Ask, conf: Settings) -> None:
    """A cancel in the very first statement leaves the file `cancelled`, and no sweep reads it."""
    from workers.messages import TakeInventory

    path = data / NAME
    path.write_text(lines(10))
    sql(
        "CREATE FUNCTION cancelled() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'by a person' USING ERRCODE = '57014'; END $$"
    )
    sql("CREATE TRIGGER cancelled BEFORE INSERT ON telem FOR EACH STATEMENT EXECUTE FUNCTION cancelled()")
    assert len(work(message(path))) == 1
    assert state(sql, path) == ("cancelled", 0)
    assert sql("SELECT state FROM headrace.run") == [("cancelled",)]
    sql("DROP TRIGGER cancelled ON telem")
    assert work(TakeInventory(host="here")) == []
    assert rows(sql) == 0

"""Files written by the instrument's own C++ logger become rows that say exactly what the logger said."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from workers.messages import IngestFile
from workers.settings import Settings
from workers.telemetry.event_schemas import load_schemas
from workers.telemetry.names import parse_name

Ask = Callable[..., list[tuple[Any, ...]]]
Work = Callable[..., list[str]]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def truth(path: Path) -> list[dict[str, Any]]:
    """What a file holds, as the maker of the file wrote it down."""
    plain = path.with_name(path.name + ".truth.jsonl")
    text = plain.read_text() if plain.exists() else gzip.decompress(Path(f"{plain}.gz").read_bytes()).decode()
    return [json.loads(line) for line in text.split("\n") if line]


def holds_nul(value: Any) -> bool:
    """Whether a string below has U+0000."""
    return "\\u0000" in json.dumps(value)


def comparable(value: Any) -> Any:
    """Integers exactly, floats as float32, what is not a number as null, long strings as their length."""
    if value is None or (isinstance(value, int) and abs(value) < 2**64):
        return value
    if isinstance(value, int | float):
        if not math.isfinite(value):
            return None
        try:
            return struct.unpack("<f", struct.pack("<f", float(value) + 0.0))[0]
        except OverflowError:
            return float(f"{value:.9g}")
    if isinstance(value, dict):
        if set(value) == {"$bytes", "$sha256"}:
            return value["$bytes"]
        return {key: comparable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    return len(value.encode()) if len(value.encode()) > 2000 else value


def test_every_reference_file_arrives_exactly(data: Path, work: Work, sql: Ask, shared: Path) -> None:
    """Each record that jsonb can hold is a row, each other one a dead letter with its bytes; partial tails wait."""
    folder = shared / "fixtures" / "telemetry" / "bintel"
    files = sorted(path for path in folder.iterdir() if path.suffix in (".bintel", ".binlog"))
    assert len(files) > 30
    for source in files:
        shutil.copy(source, data / source.name)
    work(*(IngestFile(host="here", path=str(data / source.name)) for source in files))
    for source in files:
        expected = truth(source)
        records = [item for item in expected if item["kind"] == "record"]
        good = [item for item in records if item["fb_ok"] and not holds_nul(item["msg"])]
        bad = [item for item in records if not item["fb_ok"] or holds_nul(item["msg"])]
        bad += [item for item in expected if item["kind"] == "garbage"]
        open_tail = any(item["kind"] == "truncated" for item in expected)
        path = str(data / source.name)
        letters = sql(
            "SELECT start_byte, end_byte, raw FROM headrace.dead_letter WHERE path = %s ORDER BY start_byte", path
        )
        content = source.read_bytes()
        assert [(start, end) for start, end, _raw in letters] == [(item["off"], item["end"]) for item in bad], source
        assert all(content[start : min(end, start + 65536)] == bytes(raw) for start, end, raw in letters)
        state = sql("SELECT state, records FROM headrace.telemetry_file WHERE path = %s", path)
        assert state == [("damaged" if bad else "open" if open_tail else "done", len(good))], source
        device = parse_name(source.name).device
        wanted = {
            (
                item["s"],
                item["ns"],
                item["prio_name"],
                item["name"],
                orjson.dumps(comparable(item["msg"]), option=orjson.OPT_SORT_KEYS),
            )
            for item in good
        }
        found = {
            (
                (ts - EPOCH) // timedelta(seconds=1),
                ts.microsecond * 1000 + ns,
                prio,
                ec,
                orjson.dumps(comparable(msg), option=orjson.OPT_SORT_KEYS),
            )
            for ts, ns, prio, ec, msg in sql("SELECT ts, ts_ns, prio, ec, msg FROM telem WHERE device = %s", device)
        }
        assert wanted <= found, (source, list(wanted - found)[:2], list(found - wanted)[:2])


def test_a_record_cut_at_the_end_is_completed_later(data: Path, work: Work, sql: Ask, shared: Path) -> None:
    """A partial last record is no row and no error; when its bytes arrive, it is read from its very first one."""
    source = next((shared / "fixtures" / "telemetry" / "bintel").glob("telem_telpos_*.bintel"), None) or next(
        (shared / "fixtures" / "telemetry" / "bintel").glob("telem_coretemps_*.bintel")
    )
    content = source.read_bytes()
    path = data / source.name
    last = [item for item in truth(source) if item["kind"] == "record"][-1]
    path.write_bytes(content[: last["off"] + 9])
    assert work(IngestFile(host="here", path=str(path))) == []
    before = sql("SELECT state, records, raw_offset FROM headrace.telemetry_file")
    assert before[0][0] == "open" and before[0][2] == last["off"]
    path.write_bytes(content)
    assert work(IngestFile(host="here", path=str(path))) == []
    assert sql("SELECT state, records FROM headrace.telemetry_file") == [("done", before[0][1] + 1)]


def test_the_same_records_in_both_formats_are_the_same_rows(
    data: Path, work: Work, sql: Ask, shared: Path, conf: Settings
) -> None:
    """A .bintel file and the JSON lines of the same records give one set of rows, whichever comes first."""
    folder = shared / "fixtures" / "telemetry" / "bintel"
    source = next(folder.glob("telem_coretemps_*.bintel"))
    path = data / source.name
    shutil.copy(source, path)
    work(IngestFile(host="here", path=str(path)))
    rows = sql("SELECT ts, ts_ns, prio, ec, msg::text FROM telem")
    lines = []
    for ts, ns, prio, ec, msg in rows:
        stamp = f"{ts:%Y-%m-%dT%H:%M:%S}.{ts.microsecond:06d}{ns:03d}"
        lines.append(f'{{"ts": "{stamp}", "prio": "{prio}", "ec": "{ec}", "msg": {msg}}}\n')
    twin = data / source.name.replace(".bintel", ".ndjson.gz")
    twin.write_bytes(gzip.compress("".join(lines).encode()))
    assert work(IngestFile(host="here", path=str(twin))) == []
    assert sql("SELECT count(*) FROM telem") == [(len(rows),)]
    assert sql("SELECT records FROM headrace.telemetry_file WHERE path = %s", str(twin)) == [(len(rows),)]


def test_a_site_may_add_its_own_event_codes(data: Path, work: Work, sql: Ask, tmp_path: Path, conf: Settings) -> None:
    """A second schema file is read with ours; a wrong one is told with file and key, and stops nothing else."""
    assert 30000 not in load_schemas()
    extra = tmp_path / "site.toml"
    extra.write_text("not toml at all = [")
    broken = conf.model_copy(update={"telemetry": conf.telemetry.model_copy(update={"event_schemas": extra})})
    (data / "x_20240416035000000000000.bintel").write_bytes(b"")
    problems = work(IngestFile(host="here", path=str(data / "x_20240416035000000000000.bintel")), settings=broken)
    assert len(problems) == 1 and "site.toml" in problems[0]

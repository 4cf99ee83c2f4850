"""Ingest of .ndjson.gz against two floors in the same run: COPY of parsed rows with ON CONFLICT, and executemany.

python bench/ingest_ndjson.py [--files 200] [--records 5000]
"""

from __future__ import annotations

import argparse
import gzip
import io
import random
import tempfile
from pathlib import Path

import orjson
import psycopg2
import psycopg2.extras
from measure import Meter, private_postgres, table

from workers import execution, migrations
from workers import settings as settings_module
from workers.database import connection
from workers.messages import IngestFile
from workers.settings import Settings
from workers.telemetry import api

DEVICES = ("cooler", "temps", "stagepiezo", "fxngensync", "telpos", "usage", "camwfs", "loopgain")


def make_files(folder: Path, files: int, records: int) -> list[Path]:
    """Telemetry of 8 devices, about 318 bytes a record, as the real software writes it."""
    source = random.Random(20240416)
    made = []
    for number in range(files):
        device = DEVICES[number % len(DEVICES)]
        lines = []
        for k in range(records):
            at = number * records + k
            fields = {f"value{i}": round(source.uniform(-180, 180), 12) for i in range(7)}
            message = orjson.dumps(fields).decode().replace('":', '": ')
            lines.append(
                f'{{"ts": "2024-04-{16 + at // 8_640_000:02d}T{at // 360_000 % 24:02d}:{at // 6000 % 60:02d}:'
                f'{at // 100 % 60:02d}.{at % 100 * 10_000_000 + at % 997:09d}", "prio": "TELM", '
                f'"ec": "telem_{device}", "msg": {message}}}\n'
            )
        path = folder / f"{device}_202404160000{number:04d}00000000000.ndjson.gz"
        path.write_bytes(gzip.compress("".join(lines).encode(), 6))
        made.append(path)
    return made


def parsed_rows(path: Path) -> list[tuple[str, str, int, str, str, str]]:
    """One file as rows, for the floors: parsing is not part of what they measure."""
    rows = []
    for line in gzip.decompress(path.read_bytes()).splitlines():
        record = orjson.loads(line)
        stamp = record["ts"]
        message = orjson.dumps(record["msg"]).decode()
        rows.append((path.name.split("_")[0], stamp[:26], int(stamp[26:]), record["prio"], record["ec"], message))
    return rows


def copy_floor(dsn: str, batches: list[str]) -> None:
    """A bare script: COPY into a temporary table, INSERT ... ON CONFLICT DO NOTHING, COMMIT."""
    conn = psycopg2.connect(dsn)
    cursor = conn.cursor()
    cursor.execute("SET timezone = 'UTC'")
    cursor.execute(
        "CREATE TEMP TABLE floor (device text, ts timestamptz, ts_ns smallint, prio text, ec text, msg jsonb)"
        " ON COMMIT DELETE ROWS"
    )
    for batch in batches:
        cursor.copy_expert(
            "COPY floor FROM STDIN WITH (FORMAT csv, DELIMITER E'\\x02', QUOTE E'\\x01')", io.StringIO(batch)
        )
        cursor.execute(
            "INSERT INTO telem (device, ts, ts_ns, prio, ec, msg)"
            " SELECT device, ts, ts_ns, prio, ec, msg FROM floor ON CONFLICT DO NOTHING"
        )
        conn.commit()
    conn.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--records", type=int, default=5000)
    options = parser.parse_args()
    with private_postgres() as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = make_files(folder, options.files, options.records)
        total = options.files * options.records
        raw = sum(len(gzip.decompress(path.read_bytes())) for path in files[:4]) / (4 * options.records)
        print(f"{total:,} records of {raw:.0f} bytes in {len(files)} files")
        conf = Settings(host="bench", data_dir=folder, control={"dsn": server.dsn()})  # type: ignore[arg-type]
        settings_module.use(conf)
        with connection(conf.target(), purpose="bench") as conn:
            migrations.migrate(conn, migrations.FOUNDATION)
        api.setup(conf)

        def empty() -> None:
            admin = psycopg2.connect(server.dsn())
            admin.autocommit = True
            cursor = admin.cursor()
            cursor.execute(
                "TRUNCATE telem, file_origins, file_ingest_times, file_replicas, headrace.telemetry_file, headrace.run"
            )
            admin.close()

        def count() -> int:
            admin = psycopg2.connect(server.dsn())
            cursor = admin.cursor()
            cursor.execute("SELECT count(*) FROM telem")
            row = cursor.fetchone()
            admin.close()
            return int(row[0]) if row else 0

        rows: list[tuple[object, ...]] = []

        def run(label: str, work: object, records: int, floor: float | None) -> float:
            empty()
            with Meter(server) as meter:
                work()  # type: ignore[operator]
            assert count() == records, (label, count(), records)
            rate = records / meter.cpu
            rows.append(
                (label, f"{records / meter.wall:,.0f}", f"{rate:,.0f}", f"{meter.own:.1f}", f"{meter.server:.1f}",
                 "" if floor is None else f"{rate / floor:.2f}")
            )  # fmt: skip
            return rate

        execution.run_here([], conf, timeout=execution.timedelta(seconds=1))
        batches = ["\n".join("\x02".join(map(str, row)) for row in parsed_rows(path)) + "\n" for path in files]
        floor = run("floor: COPY parsed, ON CONFLICT", lambda: copy_floor(server.dsn(), batches), total, None)
        messages = [IngestFile(host="bench", path=str(path)) for path in files]
        wait = execution.timedelta(seconds=60)
        ours = run("headrace ingest", lambda: execution.run_here(messages, conf, timeout=wait), total, floor)
        again = [message.model_copy(update={"force": True}) for message in messages]

        def reread() -> None:
            execution.run_here(messages, conf, timeout=wait)
            with Meter(server) as meter:
                execution.run_here(again, conf, timeout=wait)
            rows.append(("headrace reread, all known", f"{total / meter.wall:,.0f}", f"{total / meter.cpu:,.0f}",
                         f"{meter.own:.1f}", f"{meter.server:.1f}", ""))  # fmt: skip

        empty()
        reread()
        some = files[: max(1, len(files) // 10)]

        def executemany() -> None:
            conn = psycopg2.connect(server.dsn())
            cursor = conn.cursor()
            for path in some:
                cursor.executemany(
                    "INSERT INTO telem (device, ts, ts_ns, prio, ec, msg) VALUES (%s, %s, %s, %s, %s, %s)"
                    " ON CONFLICT DO NOTHING",
                    parsed_rows(path),
                )
                conn.commit()
            conn.close()

        slow = run("floor: executemany, row by row", executemany, len(some) * options.records, floor)
        table(
            "ndjson.gz ingest", ("way", "records/s", "records/CPU-s", "client CPU s", "server CPU s", "of floor"), rows
        )
        print(f"  headrace is {ours / floor:.0%} of the COPY floor and {ours / slow:.1f} x executemany")


if __name__ == "__main__":
    main()

"""Memory and rate of one large raw file: the reader must stay small whatever the file's size.

python bench/large_file.py [--gigabytes 2]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import Meter, peak_rss_bytes, private_postgres, table

CHILD = "--child"


def make_file(path: Path, size: int) -> int:
    """Records of about 318 bytes with ever new times, up to so many bytes; how many records."""
    fields = ", ".join(f'"value{number}": {number * 1.2345678901:.10f}' for number in range(8))
    number = 0
    with path.open("w", buffering=1 << 20) as file:
        written = 0
        while written < size:
            hour, rest = divmod(number // 1000, 3600)
            day = f"2024-{1 + hour // 24 // 28:02d}-{1 + hour // 24 % 28:02d}"
            stamp = f"{day}T{hour % 24:02d}:{rest // 60:02d}:{rest % 60:02d}"
            line = (
                f'{{"ts": "{stamp}.{number % 1000:03d}000000", "prio": "TELM", "ec": "telem_camwfs", '
                f'"msg": {{{fields}}}}}\n'
            )
            written += file.write(line)
            number += 1
    return number


def child(path: str, dsn: str, folder: str) -> None:
    """Ingest in a process of its own, so that its peak is the reader's and not the generator's."""
    from datetime import timedelta

    from workers import execution, migrations
    from workers import settings as settings_module
    from workers.database import connection
    from workers.messages import IngestFile
    from workers.settings import Settings
    from workers.telemetry import api

    conf = Settings(host="bench", data_dir=Path(folder), control={"dsn": dsn})  # type: ignore[arg-type]
    settings_module.use(conf)
    with connection(conf.target(), purpose="bench") as conn:
        migrations.migrate(conn, migrations.FOUNDATION)
    api.setup(conf)
    problems = execution.run_here([IngestFile(host="bench", path=path)], conf, timeout=timedelta(minutes=5))
    with connection(conf.target(), purpose="bench") as conn, conn.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM telem")
        row = cursor.fetchone()
    print(peak_rss_bytes(), row[0] if row else 0, *problems)


def main() -> None:
    if sys.argv[1:2] == [CHILD]:
        child(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=2.0)
    size = int(parser.parse_args().gigabytes * 1e9)
    with private_postgres() as server, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "camwfs_20240101000000000000000.ndjson"
        records = make_file(path, size)
        with Meter(server) as meter:
            found = subprocess.run(
                [sys.executable, __file__, CHILD, str(path), server.dsn(), folder],
                capture_output=True,
                text=True,
                check=True,
            )
        assert int(found.stdout.split()[1]) == records, found.stdout
        table(
            f"one file of {size / 1e9:.1f} GB, {records:,} records",
            ("what", "measured", "asked"),
            [
                ("peak resident memory", f"{int(found.stdout.split()[0]) / 1e6:.0f} MB", "300 MB"),
                ("records/s", f"{records / meter.wall:,.0f}", ""),
            ],
        )


if __name__ == "__main__":
    main()

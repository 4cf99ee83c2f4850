"""Inventory of many files against its floors in the same run: scandir + stat, and that plus a COPY upsert.

python bench/inventory.py [--folders 200] [--files 1000]
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from time import perf_counter

import psycopg2
from measure import private_postgres, table

from workers import execution, migrations
from workers import settings as settings_module
from workers.database import connection
from workers.messages import TakeInventory
from workers.settings import Settings
from workers.telemetry import api


def make_files(root: Path, folders: int, files: int) -> None:
    """Empty files as an image archive has them."""
    for folder in range(folders):
        path = root / f"cam{folder:03d}"
        path.mkdir()
        for number in range(files):
            (path / f"cam{folder:03d}_20240416{number:06d}000000000.xrif").touch()


def bare_scan(root: str) -> list[tuple[str, float, float, int]]:
    """scandir and stat of everything: the least that a look at the disk costs."""
    found = []
    waiting = [root]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    seen = entry.stat(follow_symlinks=False)
                    found.append((entry.path, seen.st_mtime, seen.st_ctime, seen.st_size))
    return found


def copy_upsert(dsn: str, found: list[tuple[str, float, float, int]]) -> None:
    """A bare script: COPY into a temporary table and INSERT ... ON CONFLICT DO UPDATE."""
    conn = psycopg2.connect(dsn)
    cursor = conn.cursor()
    cursor.execute("CREATE TEMP TABLE seen (path text, mtime float8, ctime float8, size bigint) ON COMMIT DROP")
    text = "\n".join(f"{path}\t{mtime}\t{ctime}\t{size}" for path, mtime, ctime, size in found)
    cursor.copy_expert("COPY seen FROM STDIN", io.StringIO(text))
    cursor.execute(
        "INSERT INTO file_origins AS o (origin_host, origin_path, modification_time, creation_time, size_bytes)"
        " SELECT 'floor', path, to_timestamp(mtime), to_timestamp(ctime), size FROM seen"
        " ON CONFLICT (origin_host, origin_path) DO UPDATE SET modification_time = excluded.modification_time,"
        " size_bytes = excluded.size_bytes"
        " WHERE (o.modification_time, o.size_bytes) IS DISTINCT FROM (excluded.modification_time, excluded.size_bytes)"
    )
    conn.commit()
    conn.close()


def timed(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    began = perf_counter()
    work()
    return perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folders", type=int, default=200)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    total = options.folders * options.files
    with private_postgres() as server, tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_files(root, options.folders, options.files)
        conf = Settings(
            host="bench", data_dir=root, control={"dsn": server.dsn()}, telemetry={"data_dirs": [str(root)]}  # type: ignore[arg-type]
        )  # fmt: skip
        settings_module.use(conf)
        with connection(conf.target(), purpose="bench") as conn:
            migrations.migrate(conn, migrations.FOUNDATION)
        api.setup(conf)
        bare_scan(name)
        message = TakeInventory(host="bench")
        wait = timedelta(seconds=60)
        execution.run_here([], conf, timeout=wait)

        def inventory() -> None:
            execution.run_here([message], conf, timeout=wait)

        def empty() -> None:
            admin = psycopg2.connect(server.dsn())
            admin.autocommit = True
            admin.cursor().execute("TRUNCATE file_origins, file_ingest_times, file_replicas, headrace.inventory_folder")
            admin.close()

        scan, floor, first, rescan = [], [], [], []
        for _round in range(options.rounds):
            empty()
            scan.append(timed(lambda: bare_scan(name)))
            floor.append(timed(lambda: copy_upsert(server.dsn(), bare_scan(name))))
            empty()
            first.append(timed(inventory))
            rescan.append(timed(inventory))
        best_scan, best_floor = statistics.median(scan), statistics.median(floor)
        best_first, best_rescan = statistics.median(first), statistics.median(rescan)
        table(
            f"inventory of {total:,} files in {options.folders} folders, median of {options.rounds}",
            ("step", "seconds", "files/s", "of floor"),
            [
                ("floor: scandir + stat", f"{best_scan:.2f}", f"{total / best_scan:,.0f}", ""),
                ("floor: scandir + stat + COPY upsert", f"{best_floor:.2f}", f"{total / best_floor:,.0f}", ""),
                (
                    "headrace, first",
                    f"{best_first:.2f}",
                    f"{total / best_first:,.0f}",
                    f"{best_first / best_floor:.2f}",
                ),
                (
                    "headrace, unchanged",
                    f"{best_rescan:.2f}",
                    f"{total / best_rescan:,.0f}",
                    f"{best_rescan / best_scan:.2f}",
                ),
            ],
        )


if __name__ == "__main__":
    main()

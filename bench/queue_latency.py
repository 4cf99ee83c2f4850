"""The queue: latency from enqueue to start, a burst of new files, and what an idle deployment costs.

    python bench/queue_latency.py [--seconds 15] [--burst 10000] [--idle 30]

Real Valkey, PostgreSQL, worker and beat processes, started and stopped by this script.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import psycopg2
from measure import table

from workers.services.postgres import PostgresServer
from workers.services.valkey import ValkeyServer

LINE = '{"ts": "2024-04-16T03:50:00.000000001", "prio": "TELM", "ec": "e", "msg": {"a": 1}}\n'


def cpu(processes: list[psutil.Process]) -> dict[str, float]:
    """CPU seconds so far of processes and all below them, by name."""
    used = {}
    for process in processes:
        times = process.cpu_times()
        total = times.children_user + times.children_system  # of those that it has reaped
        for each in [process, *process.children(recursive=True)]:
            times = each.cpu_times()
            total += times.user + times.system
        used[" ".join(process.cmdline()[:6])[-40:]] = total
    return used


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--burst", type=int, default=10_000)
    parser.add_argument("--idle", type=float, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        data = folder / "telem"
        data.mkdir()
        postgres, valkey = PostgresServer(folder), ValkeyServer(folder)
        postgres.start()
        valkey.start()
        os.environ.update(
            HEADRACE_CONTROL__DSN=postgres.dsn(),
            HEADRACE_BROKER__URL=valkey.url(),
            HEADRACE_HOST="bench",
            HEADRACE_DATA_DIR=name,
            HEADRACE_TELEMETRY__DATA_DIRS=f'["{data}"]',
        )
        command = [sys.executable, "-m", "producers.cli"]
        subprocess.run([*command, "db", "migrate"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*command, "telemetry", "setup"], check=True, stdout=subprocess.DEVNULL)
        celery = [sys.executable, "-m", "celery", "-A", "workers"]
        log = (folder / "log").open("wb")
        worker = subprocess.Popen([*celery, "worker"], stdout=log, stderr=log)
        beat = subprocess.Popen([*celery, "beat"], stdout=log, stderr=log)
        flower = subprocess.Popen([*celery, "flower", "--port=0"], stdout=log, stderr=log)
        watcher = subprocess.Popen([*command, "telemetry", "watch"], stdout=log, stderr=log)
        try:
            measure(
                options, postgres.dsn(), data, [worker, beat, flower, watcher], [postgres.pid or 0, valkey.pid or 0]
            )
        finally:
            for process in (flower, beat, worker, watcher):
                process.terminate()
            for process in (flower, beat, worker, watcher):
                process.wait(30)
            valkey.stop()
            postgres.stop()


def measure(
    options: argparse.Namespace, dsn: str, data: Path, processes: list[subprocess.Popen[bytes]], servers: list[int]
) -> None:
    from workers.app import send
    from workers.messages import IngestFile

    conn = psycopg2.connect(dsn)
    conn.autocommit = True
    cursor = conn.cursor()

    def ask(statement: str) -> list[tuple[object, ...]]:
        cursor.execute(statement)
        return list(cursor.fetchall())

    while not ask("SELECT 1 FROM headrace.worker WHERE cardinality(queues) > 0"):
        time.sleep(0.1)
    outside = data.parent / "outside"  # not watched: each file has exactly the message that is timed
    outside.mkdir()
    for number in range(20):
        (outside / f"warm{number}.ndjson").write_text(LINE)
        send([IngestFile(host="bench", path=str(outside / f"warm{number}.ndjson"))], slot=str(number))
    time.sleep(2)
    sent = {}
    count = int(options.seconds * 20)
    for number in range(count):
        path = outside / f"dev_{number}.ndjson"
        path.write_text(LINE)
        sent[str(path)] = time.time()
        send([IngestFile(host="bench", path=str(path))], slot=str(number))
        time.sleep(max(0.0, 0.05 - (time.time() - sent[str(path)])))
    time.sleep(2)
    started = {
        str(key).split(":", 1)[1]: float(str(at))
        for key, at in ask("SELECT key, extract(epoch FROM started_at) FROM headrace.run WHERE started_at IS NOT NULL")
    }
    delays = sorted((started[path] - at) * 1000 for path, at in sent.items() if path in started)
    assert len(delays) == count, f"{count - len(delays)} messages were not started"
    quantiles = statistics.quantiles(delays, n=100)
    rows: list[tuple[object, ...]] = [
        ("enqueue to start at 20/s, p50", f"{quantiles[49]:.1f} ms", "10 ms"),
        ("enqueue to start at 20/s, p99", f"{quantiles[98]:.1f} ms", "30 ms"),
    ]
    time.sleep(3)
    family = [psutil.Process(process.pid) for process in processes] + [psutil.Process(pid) for pid in servers]
    before = cpu(family)
    began = time.monotonic()
    time.sleep(options.idle)
    wall = time.monotonic() - began
    after = cpu(family)
    parts = {label: (used - before[label]) / wall for label, used in after.items()}
    rows.append(("idle deployment, of one core", f"{sum(parts.values()):.1%}", "2 %"))
    rows += [(f"  {label}", f"{share:.2%}", "") for label, share in parts.items()]
    messages = [IngestFile(host="bench", path=f"{data}/burst_{number:05d}.ndjson") for number in range(options.burst)]
    began = time.perf_counter()
    send(messages, slot="burst")
    rows.append(
        (f"burst of {options.burst:,} enqueued", f"{options.burst / (time.perf_counter() - began):,.0f}/s", "2,000/s")
    )
    table("queue", ("what", "measured", "asked"), rows)


if __name__ == "__main__":
    main()

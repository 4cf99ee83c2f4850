"""The postprocessing room: what a run costs above its bare CALL, what a look costs, and a live worker and beat.

    python bench/postprocessing.py [overhead] [due] [throughput] [look] [idle] [--runs 200] [--profile]

Without a part: all of them, in less than five minutes. Real PostgreSQL, Valkey, worker and beat processes, started
and stopped by this script; `postprocessing_live.py` has the parts that need worker and beat.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import postprocessing_live as live
import psycopg2
from measure import private_postgres, table
from postprocessing_live import Row, ask, milliseconds, quantile
from psycopg2 import extensions

from workers import database, execution, logs
from workers import settings as settings_module
from workers.messages import RunJob
from workers.postprocessing import api, store
from workers.services.postgres import PostgresServer
from workers.settings import Logs, Settings
from workers.sql_files import queries

DUE = queries("postprocessing")["due_jobs"].text
MANY = 100_000
PARTS = ("overhead", "due", "throughput", "look", "idle")
LIVE: dict[str, Callable[[], list[Row]]] = {
    "due": live.due_to_start,
    "throughput": live.throughput,
    "idle": live.idle,
}


@contextmanager
def our_settings(server: PostgresServer) -> Iterator[Settings]:
    """A migrated control database with jobs of its own, and the settings for it, in force for this process."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        conf = Settings(control={"dsn": server.dsn()}, host="bench", data_dir=Path(folder))
        settings_module.use(conf)
        logs.configure(Logs(level="WARNING"))
        live.set_up(conf)
        yield conf
        database.close_all()


def overhead(runs: int, profile: bool) -> list[Row]:
    """Run a no-op procedure as a worker does, in turn with a new connection's CALL and with an open one's."""
    with private_postgres() as server, our_settings(server) as conf, closing(psycopg2.connect(server.dsn())) as conn:
        conn.autocommit = True
        ask(conn, live.PROCEDURES)
        ask(conn, "INSERT INTO headrace.job (job_id, proc_schema, proc_name) VALUES (7, 'public', 'noop')")

        def request() -> RunJob:
            return api.request(conf, "control", 7, by="bench")

        def run(message: RunJob) -> float:
            return _seconds(lambda: execution.run_here([message], conf, timeout=timedelta(seconds=5)))

        def new_connection() -> None:
            with closing(psycopg2.connect(server.dsn())) as other:
                other.autocommit = True
                ask(other, "CALL noop(1, '{}')")

        for _ in range(10):
            run(request())
        taken = [
            (run(request()), _seconds(new_connection), _seconds(lambda: ask(conn, "CALL noop(1, '{}')")))
            for _ in range(runs)
        ]
        assert ask(conn, "SELECT DISTINCT state FROM headrace.job_run") == [("succeeded",)]
        rows: list[Row] = []
        for label, values, target in (
            ("one run of a no-op", [ours for ours, _new, _open in taken], ""),
            ("floor: connect, CALL, close", [new for _ours, new, _open in taken], ""),
            ("floor: CALL, connection open", [bare for _ours, _new, bare in taken], ""),
            ("above connect, CALL, close", [ours - new for ours, new, _open in taken], ""),
            ("above the open CALL", [ours - bare for ours, _new, bare in taken], "25 ms"),
        ):
            rows.append((label, milliseconds(quantile(values, 50)), milliseconds(quantile(values, 90)), target))
        ratio = statistics.median(ours / new for ours, new, _open in taken)
        rows.append(("run : connect, CALL, close", f"{ratio:.1f} x", "", ""))
        if profile:
            _breakdown(request, run, min(runs, 100))
    return rows


def _seconds(do: Callable[[], object]) -> float:
    began = perf_counter()
    do()
    return perf_counter() - began


class _Ledger:
    """Seconds and times of each thing that a run asks of PostgreSQL, by the name of its query, in order."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = defaultdict(list)
        self.names = {
            query.text: f"{room}.{query.name}"
            for room in ("foundation", "postprocessing")
            for query in queries(room).values()
        }

    @contextmanager
    def entry(self, name: str) -> Iterator[None]:
        """Book what happens inside under this name."""
        began = perf_counter()
        try:
            yield
        finally:
            self.spent[name].append(perf_counter() - began)

    def name_of(self, statement: object) -> str:
        """The query's name; the first words of a statement that has none, `call` for a composed one."""
        text = statement if isinstance(statement, str) else "call"
        return self.names.get(text) or " ".join(text.split()[:2]).rstrip(";")

    def connect(self, dsn: str, connect: Callable[..., extensions.connection], **words: Any) -> extensions.connection:
        """psycopg2.connect, with every round trip of the new connection booked."""
        ledger = self

        class Cursor(extensions.cursor):
            def execute(self, statement: Any, arguments: Any = None) -> None:
                with ledger.entry(ledger.name_of(statement)):
                    super().execute(statement, arguments)

        class Connection(extensions.connection):
            def commit(self) -> None:
                with ledger.entry("commit"):
                    super().commit()

            def close(self) -> None:
                with ledger.entry("close"):
                    super().close()

        with self.entry("connect"):
            conn = connect(dsn, connection_factory=Connection, **words)
        conn.cursor_factory = Cursor
        return conn


def _breakdown(request: Callable[[], RunJob], run: Callable[[RunJob], float], runs: int) -> None:
    ledger = _Ledger()
    connect = psycopg2.connect
    database.close_all()
    with patch.object(psycopg2, "connect", lambda dsn, **words: ledger.connect(dsn, connect, **words)):
        run(request())  # the borrowed connections are made here, and kept
        total = 0.0
        spent: dict[str, list[float]] = defaultdict(list)
        for _ in range(runs):
            message = request()
            ledger.spent.clear()
            total += run(message)
            for name, values in ledger.spent.items():
                spent[name].extend(values)
    database.close_all()
    waited = sum(sum(values) for values in spent.values())
    rows: list[Row] = [
        (name, f"{len(values) / runs:.0f}", milliseconds(sum(values) / runs), f"{sum(values) / total:.0%}")
        for name, values in spent.items()
    ]
    trips = sum(len(values) for values in spent.values()) / runs
    rows.append(("Python, threads and the log", "", milliseconds((total - waited) / runs), f"{1 - waited / total:.0%}"))
    rows.append(("all", f"{trips:.0f}", milliseconds(total / runs), ""))
    table("where one run's time goes (mean)", ("what", "times", "takes", "share"), rows)


def look() -> list[Row]:
    """What the scheduler's question, and a whole look, cost beside a hundred thousand jobs."""
    with private_postgres() as server, our_settings(server) as conf, closing(psycopg2.connect(server.dsn())) as conn:
        conn.autocommit = True
        ask(conn, live.PROCEDURES)
        api.look(conf, "control")  # the first one sees what the database has
        rows: list[Row] = [_look_row("a look without a job", _looks(conf, conn, None))]
        ask(
            conn,
            "ALTER TABLE headrace.job DISABLE TRIGGER USER; INSERT INTO headrace.job (proc_schema, proc_name, "
            f"schedule_interval) SELECT 'public', 'noop', '1 day' FROM generate_series(1, {MANY}); "
            "ALTER TABLE headrace.job ENABLE TRIGGER USER; INSERT INTO headrace.job_state (job_id, replan, next_start, "
            "slot, planned_at) SELECT job_id, false, now() + interval '1 day' + job_id % 86400 * interval '1 s', "
            "now() + interval '1 day', now() FROM headrace.job",
        )
        ask(conn, "VACUUM ANALYZE")
        rows.append(_look_row("a look, none of 100,000 due", _looks(conf, conn, None)))
        _make_due(conn, 10)
        rows.append(_explained("due_jobs, 10 of 100,000 due", conn))
        rows.append(_look_row("a look that queues 10", _looks(conf, conn, 10)))
        _make_due(conn, MANY)
        ask(conn, "VACUUM ANALYZE headrace.job_state")
        rows.append(_explained("due_jobs, all 100,000 due", conn))
        rows.append(_look_row("a look, all due, 200 in flight", _full_looks(conf, conn)))
        rows.append(_look_row("a look that queues 200 of them", _looks(conf, conn, MANY, times=5)))
    return rows + _mirror()


def _explained(label: str, conn: extensions.connection) -> Row:
    taken = []
    for _ in range(7):
        with conn.cursor() as cursor:
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {DUE}", {"limit": 1000})
            found = cursor.fetchone()
        assert found is not None
        plan = found[0][0]
        taken.append((plan["Planning Time"] + plan["Execution Time"]) / 1000)
    node = plan["Plan"]["Plans"][0]["Node Type"]
    return (label, milliseconds(statistics.median(taken)), f"{node}, {milliseconds(max(taken))} at most", "20 ms")


def _look_row(label: str, taken: list[float]) -> Row:
    return (label, milliseconds(statistics.median(taken)), f"{milliseconds(max(taken))} at most", "")


def _make_due(conn: extensions.connection, count: int) -> None:
    """So many jobs are due, and nothing is queued."""
    ask(
        conn,
        "TRUNCATE headrace.job_run; UPDATE headrace.job_state SET live_run = NULL, slot = now() - interval '1 s', "
        "next_start = now() - interval '1 s' WHERE job_id IN (SELECT job_id FROM headrace.job_state "
        f"WHERE next_start > now() OR live_run IS NOT NULL ORDER BY job_id LIMIT {count})",
    )


def _looks(conf: Settings, conn: extensions.connection, due: int | None, times: int = 15) -> list[float]:
    """Seconds of looks; before each, `due` jobs are made due again."""
    taken = []
    for _ in range(times):
        if due is not None:
            _make_due(conn, due)
        taken.append(_seconds(lambda: api.look(conf, "control")))
    return taken


def _full_looks(conf: Settings, conn: extensions.connection) -> list[float]:
    """Seconds of looks while as many runs are queued as may be."""
    api.look(conf, "control")
    live_runs = ask(conn, "SELECT count(*) FROM headrace.job_run WHERE state = 'queued'")[0][0]
    assert live_runs == conf.postprocessing.in_flight, live_runs
    return _looks(conf, conn, None)


def _mirror() -> list[Row]:
    """The mirror of a hundred thousand rows of hdbpp's table: the first, one with nothing new, and the planning."""
    # A server of its own: in a table known to be empty the checks of the foreign key are planned as scans.
    with private_postgres() as server, our_settings(server) as conf, closing(psycopg2.connect(server.dsn())) as conn:
        conn.autocommit = True
        ask(
            conn,
            "INSERT INTO public.postprocessing_jobs (application_name, proc_name, config) "
            f"SELECT 'HDB++ postprocessing', 'noop', '{{}}' FROM generate_series(1, {MANY})",
        )

        def mirror() -> None:
            with database.connection(conf.target(), purpose="bench") as other:
                store.mirror(other)
                other.commit()

        first = _seconds(mirror)
        ask(conn, "VACUUM ANALYZE")
        again = [_seconds(mirror) for _ in range(7)]
        planning = _looks(conf, conn, None, times=5)[1:]  # the first one sees what the database has
    return [
        ("mirror_hdbpp, 100,000 rows, all new", milliseconds(first), "once", ""),
        _look_row("mirror_hdbpp, 100,000 rows, nothing new", again),
        _look_row("a look that plans 2,000 of them", planning),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="part", help=", ".join(PARTS))
    parser.add_argument("--runs", type=int, default=200, help="of a no-op, for the overhead")
    parser.add_argument("--profile", action="store_true", help="where the overhead goes, round trip by round trip")
    options = parser.parse_args()
    for part in options.parts or PARTS:
        if part == "overhead":
            rows = overhead(options.runs, options.profile)
            table("overhead of a run", ("what", "median", "p90", "asked"), rows)
        else:
            rows = look() if part == "look" else LIVE[part]()
            table(part, ("what", "measured", "", "asked"), rows)


if __name__ == "__main__":
    main()

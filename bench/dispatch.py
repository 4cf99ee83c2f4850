"""The dispatch room: events per CPU second against the shortest program that does it, memory, and live processes.

    python bench/dispatch.py [drain] [memory] [latency] [slices] [idle] [--rounds 3] [--profile]

Without a part: all of them, in about ten minutes. Real PgQ in C on Debian's PostgreSQL (postgresql-15-pgq3), real
worker and beat processes; `dispatch_live.py` has the parts that need those.

The floors do nothing but the work: a cursor of PgQ's with fetches of 2000 rows, the same decoder in C, COPY; no
checks, no position, no partitions. The figures of cube_dispatcher were measured on another machine: 13,000 events per
CPU second in keep_all, 10,800 in keep_latest, for events of the same number and size. Tables of keep_all have no index
here, the floor's nor ours.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import pstats
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from time import perf_counter, process_time
from typing import Any

import dispatch_live as live
import psycopg2
from dispatch_live import Site, consumer, site
from measure import Meter, family_cpu, peak_rss_bytes, table
from postprocessing_live import Row, ask
from skytools.quoting import db_urldecode, quote_copy

from workers import execution, logs
from workers import settings as settings_module
from workers.dispatch import positions, pump, urlencoded
from workers.settings import Logs, Settings

INSERTS, UPDATES, TICKS = 200_000, 100_000, 50
EVENTS = INSERTS + UPDATES
BATCH = (700_000, 300_000)
FETCH = 2000
CUBE = {"keep_all": 13_000, "keep_latest": 10_800}
ASKED_OF_CUBE = {"keep_all": 3.5, "keep_latest": 3.0}
WITHOUT_C = """
import pathlib, runpy, sys
sys.modules["skytools._cquoting"] = None
sys.path[0] = str(pathlib.Path(sys.argv[1]).parent)
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LIVE: dict[str, Callable[[], list[Row]]] = {"latency": live.latency, "slices": live.slices, "idle": live.idle}
PARTS = ("drain", "memory", *LIVE)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one drain of the queue took, in seconds."""

    wall: float
    client: float
    server: float

    @property
    def cpu(self) -> float:
        """CPU seconds of client and server."""
        return self.client + self.server


def floor_keep_all(source: Any, target: Any, consumer_name: str) -> None:
    """Decode, escape, COPY."""
    for fetches in _floor_batches(source, target, consumer_name):
        lines: list[str] = []
        for rows in fetches:
            for row in rows:
                values = db_urldecode(row[5])
                lines.append("\t".join(map(quote_copy, values.values())))
        with target.cursor() as cursor:
            columns = ", ".join(values)
            cursor.copy_expert(f"COPY floor_all.measurement ({columns}) FROM STDIN", _text(lines), 1 << 20)


def floor_keep_latest(source: Any, target: Any, consumer_name: str) -> None:
    """Decode, keep the last version of each key, COPY it beside the table, DELETE USING, INSERT."""
    with target.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE newest (LIKE floor_latest.measurement) ON COMMIT DELETE ROWS")
    target.commit()
    for fetches in _floor_batches(source, target, consumer_name):
        newest: dict[str | None, str] = {}
        for rows in fetches:
            for row in rows:
                values = db_urldecode(row[5])
                newest[values["id"]] = "\t".join(map(quote_copy, values.values()))
        with target.cursor() as cursor:
            columns = ", ".join(values)
            cursor.copy_expert(f"COPY newest ({columns}) FROM STDIN", _text(list(newest.values())), 1 << 20)
            cursor.execute("DELETE FROM floor_latest.measurement AS t USING newest AS n WHERE t.id = n.id")
            cursor.execute("INSERT INTO floor_latest.measurement SELECT * FROM newest")


def _text(lines: list[str]) -> io.StringIO:
    return io.StringIO("\n".join(lines) + "\n")


def _floor_batches(source: Any, target: Any, consumer_name: str) -> Iterator[Iterator[list[Any]]]:
    """The batches, each as its fetches; what was done with one is committed before the next."""
    with source.cursor() as cursor:
        while True:
            cursor.execute("SELECT pgq.next_batch('q', %s)", (consumer_name,))
            (batch,) = cursor.fetchone()
            source.commit()
            if batch is None:
                return
            cursor.execute("SELECT * FROM pgq.get_batch_cursor(%s, 'events', %s)", (batch, FETCH))
            if rows := cursor.fetchall():  # a batch may be empty
                yield _fetches(cursor, rows)
                target.commit()
            cursor.execute("SELECT pgq.finish_batch(%s)", (batch,))
            source.commit()


def _fetches(cursor: Any, rows: list[Any]) -> Iterator[list[Any]]:
    while rows:
        yield rows
        cursor.execute(f"FETCH {FETCH} FROM events")
        rows = cursor.fetchall()


def apply(settings: Settings, name: str) -> None:
    """Ours: everything that a worker does, in this process, until nothing is due."""
    messages = pump.look(settings, name)
    problems = execution.run_here(messages, settings, timeout=timedelta(seconds=60))
    if problems or not messages:
        raise SystemExit(f"{name}: {problems or 'nothing was due'}")


def drain(rounds: int, profile: bool) -> list[Row]:
    """All changes, by the floors and by ours in turn; who has other rows than the floor fails."""
    wanted = {
        "ours_all": consumer("keep_all", "ours_all"), "ours_latest": consumer("keep_latest", "ours_latest"),
        "python_all": consumer("keep_all", "python_all"), "python_latest": consumer("keep_latest", "python_latest"),
    }  # fmt: skip
    floors = {"floor_all": floor_keep_all, "floor_latest": floor_keep_latest}
    with site() as made:
        settings = made.use(wanted)
        made.queue()
        made.logged_table()
        first, _last = made.fill(INSERTS, UPDATES, TICKS)
        size = ask(made.source, "SELECT count(*), avg(length(ev_data))::float8 FROM pgq.event_1")[0]
        assert size[0] == EVENTS, size
        print(f"{EVENTS:,} events of {size[1]:.0f} characters, {TICKS} ticks")
        for name in wanted:
            positions.register(settings, name)
        for name in floors:
            ask(made.target, f"CREATE SCHEMA {name}")
            ask(made.target, live.TABLE.replace("measurement", f"{name}.measurement"))
        ask(made.target, "ALTER TABLE floor_latest.measurement ADD PRIMARY KEY (id)")
        costs: dict[str, list[Cost]] = {name: [] for name in (*floors, *wanted)}
        for _ in range(rounds):
            for name, found in costs.items():
                made.empty(name)
                if name in floors:
                    ask(made.source, "SELECT pgq.register_consumer_at('q', %s, %s)", name, first)
                    found.append(_floor(made, floors[name], name))
                else:
                    positions.rewind(settings, name, to_tick=first)
                    found.append(_ours(made, settings, name))
        _compare(made, [*floors, *wanted])
        if profile:
            for name in ("ours_all", "ours_latest"):
                made.empty(name)
                positions.rewind(settings, name, to_tick=first)
                _profile(settings, name)
    return [_row(name, costs) for name in costs]


def _floor(made: Site, program: Callable[[Any, Any, str], None], name: str) -> Cost:
    with (
        Meter(made.postgres) as meter,
        closing(psycopg2.connect(made.postgres.dsn("source"))) as source,
        closing(psycopg2.connect(made.postgres.dsn("target"))) as target,
    ):
        program(source, target, name)
    return Cost(meter.wall, meter.own, meter.server)


def _ours(made: Site, settings: Settings, name: str) -> Cost:
    if name.startswith("python"):
        cost, _peak, decoder = _child(made, name, "-c", WITHOUT_C)
        assert decoder == "decode_python", decoder
        return cost
    assert urlencoded.decode is not urlencoded.decode_python
    execution.load_rooms()
    with Meter(made.postgres) as meter:
        apply(settings, name)
    return Cost(meter.wall, meter.own, meter.server)


def _compare(made: Site, names: list[str]) -> None:
    """Fail loudly unless every drain left the same rows: in keep_latest by md5, in keep_all their number."""
    contents = {name: made.contents(name) for name in names}
    failed = ask(made.target, "SELECT count(*) FROM headrace.failed_event")[0][0]
    latest = {found for name, found in contents.items() if name.endswith("latest")}
    counts = {found[0] for name, found in contents.items() if name.endswith("all")}
    if len(latest) > 1 or counts != {EVENTS} or failed or next(iter(latest))[0] != INSERTS:
        raise SystemExit(f"the tables differ, or {failed} events failed: {contents}")


def _row(name: str, costs: dict[str, list[Cost]]) -> Row:
    who, _, short = name.partition("_")
    mode = f"keep_{short}"
    rate = statistics.median(EVENTS / cost.cpu for cost in costs[name])
    parts = [f"{statistics.median(getattr(c, part) for c in costs[name]):.2f}" for part in ("wall", "client", "server")]
    cells: list[object] = [f"{who} {mode}", f"{rate:,.0f}", *parts]
    if who == "floor":
        return (*cells, "", "", f"{rate / CUBE[mode]:.1f}", "")
    paired = zip(costs[f"floor_{short}"], costs[name], strict=True)
    ratio = statistics.median(floor.cpu / ours.cpu for floor, ours in paired)
    asked = ("0.80", f"{ASKED_OF_CUBE[mode]}") if who == "ours" else ("", "2")
    return (*cells, f"{ratio:.2f}", asked[0], f"{rate / CUBE[mode]:.1f}", asked[1])


def _profile(settings: Settings, name: str) -> None:
    profiler = cProfile.Profile()
    profiler.runcall(apply, settings, name)
    print(f"where {name} spends its own time")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(22)


def memory() -> list[Row]:
    """One transaction of a million events is one batch: the largest resident set of a process that applies it."""
    modes = {"keep_all": "ours_all", "keep_latest": "ours_latest"}
    rows: list[Row] = []
    with site() as made:
        settings = made.use({name: consumer(mode, name) for mode, name in modes.items()})
        made.queue()
        made.logged_table()
        first, _last = made.fill(*BATCH, ticks=1)
        for mode, name in modes.items():
            positions.register(settings, name)
            positions.rewind(settings, name, to_tick=first)
            cost, (before, peak), _decoder = _child(made, name)
            count = made.contents(name)[0]
            if count != (sum(BATCH) if mode == "keep_all" else BATCH[0]):
                raise SystemExit(f"{mode} left {count} rows")
            mib = f"{peak / 2**20:.0f} MiB"
            rows.append((mode, mib, f"{before / 2**20:.0f} MiB before", f"{cost.wall:.1f} s", "300 MB"))
    return rows


def _child(made: Site, name: str, *program: str) -> tuple[Cost, tuple[int, int], str]:
    """Apply in a process of its own: what it took without its start, resident sets before and at most, decoder."""
    argv = [sys.executable, *program, __file__, "--apply", name]
    before = family_cpu(made.postgres.pid or 0)
    done = subprocess.run(argv, env=live.environment(made), check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    server = family_cpu(made.postgres.pid or 0) - before
    return Cost(found["wall"], found["cpu"], server), (found["before"], found["peak"]), found["decoder"]


def _be_child(name: str) -> None:
    settings = settings_module.use(settings_module.load())
    logs.configure(Logs(level="WARNING"))
    execution.load_rooms()
    before, cpu, wall = peak_rss_bytes(), process_time(), perf_counter()
    apply(settings, name)
    found = {"wall": perf_counter() - wall, "cpu": process_time() - cpu, "before": before, "peak": peak_rss_bytes()}
    print(json.dumps(found | {"decoder": getattr(urlencoded.decode, "__name__", "")}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="part", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="of each drain")
    parser.add_argument("--profile", action="store_true", help="where the drains spend their time")
    parser.add_argument("--apply", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.apply:
        _be_child(options.apply)
        return
    for part in options.parts or PARTS:
        if part == "drain":
            header = ("what", "events/CPU-s", "wall", "client", "server", ": floor", "asked", ": cube", "asked")
            table(
                "drain; medians, seconds; cube: as measured on another machine",
                header,
                drain(options.rounds, options.profile),
            )
        elif part == "memory":
            table("a million events in one batch", ("what", "peak", "", "wall", "asked"), memory())
        else:
            table(part, ("what", "measured", "", "asked"), LIVE[part]())


if __name__ == "__main__":
    main()

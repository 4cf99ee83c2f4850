"""`headrace dispatch run --here --legacy-config cube.ini` in the place of cube_dispatcher, against real PgQ."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.conftest import Site
from tests.integration.dispatch.conftest import Queue, run

NOBODY = "host=127.0.0.1 port=9 dbname=x"
ZONE = "Asia/Kolkata"  # half an hour off: no hour there is an hour of UTC
# pgq_ext as Skytools has it at cube_dispatcher's target
PGQ_EXT = """
CREATE SCHEMA pgq_ext;
CREATE TABLE pgq_ext.completed_tick (
    consumer_id text NOT NULL, subconsumer_id text NOT NULL, last_tick_id bigint NOT NULL,
    PRIMARY KEY (consumer_id, subconsumer_id));
CREATE FUNCTION pgq_ext.get_last_tick(a_consumer text) RETURNS bigint LANGUAGE sql AS $$
    SELECT last_tick_id FROM pgq_ext.completed_tick WHERE consumer_id = a_consumer AND subconsumer_id = '' $$;
CREATE FUNCTION pgq_ext.set_last_tick(a_consumer text, a_tick_id bigint) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    IF a_tick_id IS NULL THEN
        DELETE FROM pgq_ext.completed_tick WHERE consumer_id = a_consumer AND subconsumer_id = '';
    ELSE
        UPDATE pgq_ext.completed_tick SET last_tick_id = a_tick_id
         WHERE consumer_id = a_consumer AND subconsumer_id = '';
        IF NOT FOUND THEN
            INSERT INTO pgq_ext.completed_tick VALUES (a_consumer, '', a_tick_id);
        END IF;
    END IF;
    RETURN 1;
END $$;
"""


@dataclass
class Cube:
    """A source with PgQ, an empty target, and the old program's file between them."""

    site: Site
    queue: Queue
    target: str
    file: Path
    keys: dict[str, str] = field(default_factory=dict)

    def says(self, **keys: str) -> None:
        """Write the file, with these keys besides the necessary ones."""
        self.keys = {
            "job_name": "cube",
            "src_db": self.queue.dsn,
            "dst_db": self.target,
            "pgq_queue_name": self.queue.name,
            "logfile": "~/log/%(job_name)s.log",
            "loop_delay": "2",
        } | keys
        lines = [f"{key} = {value.replace('%', '%%')}" for key, value in self.keys.items() if key != "logfile"]
        self.file.write_text("\n".join(["[cube_dispatcher]", f"logfile = {self.keys['logfile']}", *lines]) + "\n")

    def words(self, *words: str) -> tuple[str, ...]:
        """The drop-in command."""
        return ("dispatch", "run", "--here", "--legacy-config", str(self.file), *words)

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """The drop-in to its end."""
        return self.site.run(*self.words(*words), timeout=90, **more)

    def drained(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """The drop-in, which must end well."""
        done = self.run(*words, **more)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def ask(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Ask the target."""
        return run(self.target, statement, *parameters)

    def log(self, columns: str, table: str = "public.t", truncate: bool = False) -> None:
        """A table at the source whose changes are logged, and the same at the target."""
        self.queue.logged(table, columns, truncate=truncate)
        self.ask(f"CREATE TABLE {table} ({columns})")

    def part(self, tick: int, dateformat: str = "YYYY_MM_DD", table: str = "t", zone: str = ZONE) -> str:
        """The name that a tick's partition must have."""
        statement = "SELECT to_char(tick_time AT TIME ZONE %s, %s) FROM pgq.tick WHERE tick_id = %s"
        return f"{table}_{self.queue.ask(statement, zone, dateformat, tick)[0][0]}"

    def tables(self) -> list[str]:
        """The tables in public at the target."""
        rows = self.ask("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'")
        return sorted(row[0] for row in rows)

    def failed(self) -> list[tuple[Any, ...]]:
        """The failed events at the target: type and reason."""
        return self.ask("SELECT ev_type, error FROM headrace.failed_event ORDER BY id")


def _cube(site: Site, queue: Queue, target: str, tmp_path: Path) -> Cube:
    made = Cube(site, queue, target, tmp_path / "cube.ini")
    name = queue.ask("SELECT current_database()")[0][0]
    queue.ask(f"ALTER DATABASE \"{name}\" SET timezone = '{ZONE}'")
    there = made.ask("SELECT current_database()")[0][0]
    made.ask(f"ALTER DATABASE \"{there}\" SET timezone = 'America/New_York'")
    made.says()
    return made


@pytest.fixture
def cube(site: Site, queue: Queue, empty_dsn: str, tmp_path: Path) -> Cube:
    """PgQ in PL/pgSQL at the source; the target is another database. Neither server is in UTC."""
    return _cube(site, queue, empty_dsn, tmp_path)


@pytest.fixture(params=["pgq_dsn", "c_pgq_dsn"])
def either(
    request: pytest.FixtureRequest, site: Site, make_queue: Callable[..., Queue], empty_dsn: str, tmp_path: Path
) -> Cube:
    """The same with PgQ in PL/pgSQL, and in C on another server."""
    return _cube(site, make_queue(request.getfixturevalue(request.param)), empty_dsn, tmp_path)


@pytest.fixture
def held(cube: Cube) -> Iterator[Any]:
    """A session at the target that holds what a test locks until the test lets go."""
    conn = psycopg2.connect(cube.target)
    yield conn
    conn.close()


def start(cube: Cube, *words: str, **more: str) -> subprocess.Popen[bytes]:
    """The drop-in, while the test goes on."""
    return cube.site.start("headrace", *cube.words(*words), **more)


def until_blocked(cube: Cube) -> None:
    """Wait until the drop-in stands before a lock at the target."""
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    cube.site.until(lambda: cube.ask(waits) == [(1,)], "the drop-in waits for a lock")


def test_the_newest_version_of_each_row_lands_in_the_day_of_the_sources_zone(either: Cube) -> None:
    """keep_latest: one row per key in the partition named by the source session's zone; a second run does nothing."""
    either.says(dateformat="YYYY_MM_DD_HH24_MI")
    either.log("id integer PRIMARY KEY, v text")
    assert either.run().returncode == 0  # registers, as cube_dispatcher did: what was before is not its business
    either.queue.ask("INSERT INTO public.t SELECT n, 'first' FROM generate_series(1, 5) n")
    either.queue.ask("UPDATE public.t SET v = 'second' WHERE id = 2")
    either.queue.ask("DELETE FROM public.t WHERE id = 3")
    tick = either.queue.tick()
    done = either.drained()
    part = either.part(tick, "YYYY_MM_DD_HH24_MI")
    assert either.tables() == ["t", part]
    rows = either.ask(f'SELECT id, v FROM public."{part}" ORDER BY id')
    assert rows == [(1, "first"), (2, "second"), (4, "first"), (5, "first")]
    assert either.ask("SELECT count(*) FROM public.t") == [(0,)]
    assert (done.stdout, "7 events" in done.stderr) == ("1 succeeded\n", True)
    assert either.queue.consumer_info("cube")[0]["last_tick"] == tick
    again = either.drained()
    assert again.stdout == "nothing to do\n"


def test_what_the_old_file_says_is_told_in_one_line(cube: Cube) -> None:
    """The first line on stderr names each setting that has no meaning here, with what replaces it."""
    first = cube.drained().stderr.splitlines()[0]
    assert first.startswith("'cube.ini': ")
    assert "loop_delay: replaced by dispatch.poll_seconds" in first and "logfile: replaced by logs.file" in first


def test_every_version_is_kept_by_a_template_with_all_magic_words(cube: Cube) -> None:
    """keep_all with _DEST_TABLE, _PARENT, _PKEY and _SCHEMA_TABLE: the site's SQL makes the table and its index."""
    template = (
        "create table _DEST_TABLE (like _PARENT); create index _SCHEMA_TABLE_key on _DEST_TABLE (_PKEY);"
        " comment on table _DEST_TABLE is 'of _PARENT'"
    )
    cube.says(mode="keep_all", part_template=template)
    cube.log('"Id" integer, v text, "Än" date, PRIMARY KEY ("Id", "Än")', 'public."My Table"')
    cube.drained()
    cube.queue.ask("""INSERT INTO public."My Table" VALUES (1, 'a', '2026-01-31')""")
    cube.queue.ask("""UPDATE public."My Table" SET v = NULL""")
    tick = cube.queue.tick()
    cube.drained()
    part = cube.part(tick, table="My Table")
    assert cube.ask(f'SELECT "Id", v, "Än"::text FROM public."{part}" ORDER BY v NULLS LAST') == [
        (1, "a", "2026-01-31"),
        (1, None, "2026-01-31"),
    ]
    indexes = cube.ask("SELECT indexdef FROM pg_indexes WHERE tablename = %s", part)
    assert len(indexes) == 1 and '("Id", "Än")' in indexes[0][0]
    assert cube.ask("SELECT obj_description(%s::regclass)", f'public."{part}"') != [(None,)]


def test_without_a_dateformat_rows_go_into_the_table_itself(cube: Cube) -> None:
    """An empty dateformat: no suffix, no table is made, the parent holds the newest rows."""
    cube.says(dateformat="")
    cube.log("id integer PRIMARY KEY, v text")
    cube.drained()
    cube.queue.ask("INSERT INTO public.t VALUES (1, 'a'), (2, 'b')")
    cube.queue.tick()
    cube.queue.ask("UPDATE public.t SET v = 'c' WHERE id = 1")
    cube.queue.ask("DELETE FROM public.t WHERE id = 2")
    cube.queue.tick()
    cube.drained()
    assert (cube.tables(), cube.ask("SELECT * FROM public.t")) == (["t"], [(1, "c")])


def test_an_update_after_an_insert_is_kept_by_the_default_template(cube: Cube) -> None:
    """keep_all without a template: two versions of a row on one day, where the old program stuck on its own key."""
    cube.says(mode="keep_all")
    cube.log("id integer PRIMARY KEY, v text")
    cube.drained()
    cube.queue.ask("INSERT INTO public.t VALUES (1, 'a')")
    cube.queue.ask("UPDATE public.t SET v = 'b'")
    tick = cube.queue.tick()
    cube.drained()
    assert cube.ask(f"SELECT v FROM public.{cube.part(tick)} ORDER BY v") == [("a",), ("b",)]


def _delete(cube: Cube) -> None:
    cube.queue.ask("DELETE FROM public.t WHERE id = 1")


def _truncate(cube: Cube) -> None:
    cube.queue.ask("TRUNCATE public.t")


def _unknown(cube: Cube) -> None:
    cube.queue.insert("weather", "sunny", "public.t")


def _unnamed(cube: Cube) -> None:
    cube.queue.insert("x:id", "id=1", "public.t")


def _no_key(cube: Cube) -> None:
    cube.queue.logged("public.keyless", "v text")
    cube.ask("CREATE TABLE public.keyless (v text)")
    cube.queue.ask("INSERT INTO public.keyless VALUES ('lost?')")


def _new_column(cube: Cube) -> None:
    cube.queue.ask("ALTER TABLE public.t ADD COLUMN extra text")
    cube.queue.ask("INSERT INTO public.t VALUES (7, 'g', 'new')")
    cube.queue.ask("ALTER TABLE public.t DROP COLUMN extra")


@pytest.mark.parametrize(
    ("mode", "odd", "why"),
    [
        ("keep_all", _delete, "delete"),
        ("keep_latest", _truncate, "truncate"),
        ("keep_latest", _unknown, "unknown event"),
        ("keep_latest", _unnamed, "unknown event"),
        ("keep_latest", _no_key, "key"),
        ("keep_latest", _new_column, "extra"),
    ],
)
def test_what_stuck_the_old_program_ends_with_1_and_all_the_rest_is_applied(
    cube: Cube, mode: str, odd: Callable[[Cube], None], why: str
) -> None:
    """The event is kept with its reason, which is told; the ones before and after it are applied, and once."""
    cube.says(mode=mode)
    cube.log("id integer PRIMARY KEY, v text", truncate=True)
    cube.drained()
    cube.queue.ask("INSERT INTO public.t VALUES (1, 'a'), (2, 'b')")
    odd(cube)
    cube.queue.ask("INSERT INTO public.t VALUES (8, 'h')")
    tick = cube.queue.tick()
    done = cube.run()
    assert done.returncode == 1
    assert why in done.stderr.lower() and "headrace dispatch failed cube" in done.stderr
    assert [why in row[1].lower() for row in cube.failed()] == [True]
    assert cube.ask(f"SELECT id FROM public.{cube.part(tick)} ORDER BY id") == [(1,), (2,), (8,)]
    again = cube.drained()
    assert (again.stdout, "events that failed wait" in again.stderr) == ("nothing to do\n", True)
    assert cube.ask(f"SELECT count(*) FROM public.{cube.part(tick)}") == [(3,)]


def test_it_goes_on_at_the_old_programs_mark_and_keeps_it_in_step(cube: Cube) -> None:
    """A batch that cube_dispatcher applied but did not finish is not applied again; the mark moves with ours."""
    cube.log("id integer PRIMARY KEY, v text")
    cube.ask(PGQ_EXT)
    cube.queue.call("register_consumer", "cube")
    cube.queue.ask("INSERT INTO public.t VALUES (1, 'by the old one')")
    applied = cube.queue.tick()
    cube.queue.call("next_batch", "cube")
    cube.ask("SELECT pgq_ext.set_last_tick('cube', %s)", applied)
    cube.queue.ask("INSERT INTO public.t VALUES (2, 'by ours')")
    tick = cube.queue.tick()
    done = cube.drained()
    assert f"begins at cube_dispatcher's mark, at tick {applied}" in done.stderr
    assert cube.ask(f"SELECT id FROM public.{cube.part(tick)}") == [(2,)]
    assert cube.ask("SELECT consumer_id, last_tick_id FROM pgq_ext.completed_tick") == [("cube", tick)]
    assert cube.queue.consumer_info("cube")[0]["last_tick"] == tick


def test_adopt_goes_on_for_good_where_the_old_program_stopped(cube: Cube) -> None:
    """`register` points to `adopt`, which takes the mark over; with nothing to adopt it says so."""
    words = ("--legacy-config", str(cube.file))
    cube.log("id integer PRIMARY KEY, v text")
    nothing = cube.site.run("dispatch", "adopt", *words)
    assert (nothing.returncode, "cube is not registered" in nothing.stderr) == (1, True), nothing.stderr
    cube.ask(PGQ_EXT)
    cube.queue.call("register_consumer", "cube")
    cube.queue.ask("INSERT INTO public.t VALUES (1, 'by the old one')")
    applied = cube.queue.tick()
    cube.queue.call("next_batch", "cube")
    cube.ask("SELECT pgq_ext.set_last_tick('cube', %s)", applied)
    refused = cube.site.run("dispatch", "register", *words)
    assert (refused.returncode, "headrace dispatch adopt cube" in refused.stderr) == (1, True)
    for what in (
        "adopted from cube_dispatcher: its last batch is applied, and will be finished",
        "was adopted already",
    ):
        adopted = cube.site.run("dispatch", "adopt", *words)
        assert (adopted.returncode, adopted.stdout) == (0, f"cube: {what}, at tick {applied}\n"), adopted.stderr
    cube.drained()
    assert cube.tables() == ["t"]


def test_a_lost_place_is_not_guessed(cube: Cube) -> None:
    """A mark that does not fit the registration parks the consumer: exit 1, nothing applied, and each time again."""
    cube.log("id integer PRIMARY KEY, v text")
    cube.ask(PGQ_EXT)
    early = cube.queue.tick()
    cube.queue.tick()
    cube.queue.call("register_consumer", "cube")
    cube.ask("SELECT pgq_ext.set_last_tick('cube', %s)", early)
    cube.queue.ask("INSERT INTO public.t VALUES (1, 'a')")
    cube.queue.tick()
    for _time in range(2):
        done = cube.run()
        assert done.returncode == 1
        assert "lost its place" in done.stderr and "headrace dispatch rewind cube" in done.stderr
    assert cube.tables() == ["t"]
    rewound = cube.site.run("dispatch", "rewind", "--legacy-config", str(cube.file))
    assert rewound.returncode == 0, rewound.stderr
    cube.drained()
    assert len(cube.tables()) == 2


def test_a_batch_that_another_process_opened_is_found(cube: Cube) -> None:
    """What somebody opened and never applied is applied, with all ticks after it."""
    cube.log("id integer PRIMARY KEY, v text")
    cube.drained()
    for number in range(3):
        cube.queue.ask("INSERT INTO public.t VALUES (%s, 'a')", number)
        tick = cube.queue.tick()
    assert cube.queue.call("next_batch", "cube") is not None
    cube.drained()
    assert cube.ask(f"SELECT count(*) FROM public.{cube.part(tick)}") == [(3,)]
    assert cube.queue.consumer_info("cube")[0]["last_tick"] == tick


def test_killed_in_the_middle_it_leaves_nothing_and_comes_again(cube: Cube, held: Any) -> None:
    """kill -9 while rows go in: none of them stays, and the next run has each of them once."""
    cube.says(dateformat="")
    cube.log("id integer PRIMARY KEY, v text")
    cube.drained()
    cube.queue.ask("INSERT INTO public.t SELECT n, 'a' FROM generate_series(1, 500) n")
    tick = cube.queue.tick()
    with held.cursor() as cursor:
        cursor.execute("LOCK TABLE public.t IN SHARE MODE")
    process = start(cube)
    until_blocked(cube)
    process.kill()
    process.wait()
    assert cube.queue.consumer_info("cube")[0]["current_batch"] is not None
    held.rollback()
    cube.drained()
    assert cube.ask("SELECT count(*), count(DISTINCT id) FROM public.t") == [(500, 500)]
    assert cube.ask("SELECT tick, events FROM headrace.dispatch_position") == [(tick, 500)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(cube: Cube, held: Any, number: signal.Signals) -> None:
    """SIGTERM and ctrl-C: one word, no traceback, no run left open, nothing applied; the next run does it."""
    cube.says(dateformat="")
    cube.log("id integer PRIMARY KEY, v text")
    cube.drained()
    cube.queue.ask("INSERT INTO public.t VALUES (1, 'a')")
    cube.queue.tick()
    with held.cursor() as cursor:
        cursor.execute("LOCK TABLE public.t IN SHARE MODE")
    process = start(cube, HEADRACE_DISPATCH__LOCK_SECONDS="1")
    until_blocked(cube)
    process.send_signal(number)
    assert process.wait(20) == 130
    assert "Traceback" not in cube.site.log(process) and cube.site.log(process).endswith("interrupted\n")
    held.rollback()
    states = "SELECT count(*) FROM headrace.run WHERE state IN ('queued', 'running')"
    assert (cube.site.ask(states), cube.ask("SELECT count(*) FROM public.t")) == ([(0,)], [(0,)])
    cube.drained()
    assert cube.ask("SELECT id FROM public.t") == [(1,)]


@pytest.mark.parametrize("batch", ["the first", "the second"])
def test_a_session_that_is_lost_later_is_waited_for(cube: Cube, held: Any, batch: str) -> None:
    """The target's server ends the session in the middle of a batch: it is applied by another one, exit 0."""
    cube.says(dateformat="")
    cube.log("id integer PRIMARY KEY, v text")
    cube.log("id integer PRIMARY KEY", "public.first")
    cube.drained()
    if batch == "the second":
        cube.queue.ask("INSERT INTO public.first VALUES (1)")
        cube.queue.tick()
    cube.queue.ask("INSERT INTO public.t SELECT n, 'a' FROM generate_series(1, 50) n")
    cube.queue.tick()
    with held.cursor() as cursor:
        cursor.execute("LOCK TABLE public.t IN SHARE MODE")
    process = start(cube)
    until_blocked(cube)
    cube.ask(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    held.rollback()
    assert process.wait(60) == 0, cube.site.log(process)
    assert cube.ask("SELECT count(*) FROM public.t") == [(50,)]


def test_two_at_once_apply_each_event_once(cube: Cube) -> None:
    """Two drop-ins side by side both end with 0, and no row is there twice."""
    cube.says(mode="keep_all", dateformat="")
    cube.log("id integer PRIMARY KEY, v text")
    cube.ask("ALTER TABLE public.t DROP CONSTRAINT t_pkey")
    cube.drained()
    for number in range(10):
        cube.queue.ask("INSERT INTO public.t VALUES (%s, 'a')", number)
        cube.queue.tick()
    answers: list[subprocess.CompletedProcess[str]] = []
    threads = [threading.Thread(target=lambda: answers.append(cube.run())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.returncode for answer in answers] == [0, 0], [answer.stderr for answer in answers]
    assert cube.ask("SELECT count(*), count(DISTINCT id) FROM public.t") == [(10, 10)]


def test_it_leaves_a_batch_to_the_one_that_is_at_it(cube: Cube, held: Any) -> None:
    """Another process holds the position: this one says so and ends with 0, without having applied anything."""
    cube.log("id integer PRIMARY KEY, v text")
    cube.drained()
    cube.queue.ask("INSERT INTO public.t VALUES (1, 'a')")
    cube.queue.tick()
    with held.cursor() as cursor:
        cursor.execute("SELECT FROM headrace.dispatch_position FOR UPDATE")
    done = cube.run()
    assert (done.returncode, "another one is at the same work" in done.stderr) == (0, True), done.stderr
    assert cube.tables() == ["t"]


@pytest.mark.parametrize("which", ["src_db", "dst_db", "control"])
def test_a_server_that_cannot_be_reached_ends_it_at_once(cube: Cube, which: str) -> None:
    """Source, target or control database is away: exit 3, and one line names it."""
    if which == "control":
        done = cube.run(HEADRACE_CONTROL__DSN=NOBODY)
    else:
        cube.says(**{which: NOBODY})
        done = cube.run()
    assert done.returncode == 3
    assert "cannot be reached" in done.stderr and "Traceback" not in done.stderr


def test_a_queue_that_is_not_there_is_named(cube: Cube) -> None:
    """A misspelt queue is exit 1 with its name; nothing is made."""
    cube.says(pgq_queue_name="nowhere")
    done = cube.run()
    assert done.returncode == 1
    assert "no queue 'nowhere'" in done.stderr


@pytest.mark.parametrize("switch", ["-r", "-s", "-k", "--register", "--rewind"])
def test_the_old_programs_other_switches_are_refused_by_name(cube: Cube, switch: str) -> None:
    """They end with exit 2 and what has taken their place."""
    done = cube.run(switch)
    assert done.returncode == 2
    assert f"{switch} of cube_dispatcher has become" in done.stderr


def test_the_harmless_switches_are_honoured(cube: Cube) -> None:
    """-d, -v and -q change what is said, not what is done."""
    cube.log("id integer PRIMARY KEY, v text")
    cube.drained("-q")
    cube.queue.ask("INSERT INTO public.t VALUES (1, 'a')")
    tick = cube.queue.tick()
    quiet = cube.drained("-q")
    assert (quiet.stderr, cube.ask(f"SELECT id FROM public.{cube.part(tick)}")) == ("", [(1,)])
    cube.queue.tick()
    loud = cube.drained("-d", "-v")
    assert "dispatch.batch" in loud.stderr and "-d: this run ends" in loud.stderr


def test_the_document_has_counts_runs_and_problems(cube: Cube) -> None:
    """`--json`: the runs with their counters, and why one failed."""
    cube.says(mode="keep_all")
    cube.log("id integer PRIMARY KEY, v text")
    cube.drained()
    for number in range(3):
        cube.queue.ask("INSERT INTO public.t VALUES (%s, 'a')", number)
        cube.queue.tick()
    document = json.loads(cube.drained("--json").stdout)
    counts = {key: document[key] for key in ("succeeded", "failed", "skipped", "lost", "timeout")}
    # The first batch is what was asked for; those that follow from it are one line.
    assert counts == {"succeeded": 2, "failed": 0, "skipped": 0, "lost": 0, "timeout": 0}
    assert [(one["room"], one["key"], one["counters"]["events"]) for one in document["runs"]] == [
        ("dispatch", "cube", 1),
        ("dispatch", "cube", 2),
    ]
    cube.queue.ask("DELETE FROM public.t")
    cube.queue.tick()
    done = cube.run("--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["failed"]) == (1, 1)
    assert "3 events could not be applied" in document["runs"][0]["error"]["message"]

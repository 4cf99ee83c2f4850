"""The triggers are put where they are missing, call the real PgQ, and write values in one form."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest
from psycopg2 import sql

from tests.conftest import Servers
from tests.integration.dispatch.conftest import Queue, run
from workers import database
from workers.dispatch import triggers
from workers.dispatch.names import Table
from workers.dispatch.setup_catalog import Step
from workers.errors import PermanentFailure, RetryLater
from workers.targets import Target

MakeQueue = Callable[..., Queue]
T = Table("public", "t")
AWKWARD = Table('My "Schema".é', "Ta\"b.l'e %s " + "n" * 51)
# A session as an application somewhere may have it.
ODD_SESSION = (
    "SET DateStyle = German; SET TimeZone = 'America/New_York'; SET bytea_output = escape;"
    "SET extra_float_digits = 0; SET IntervalStyle = sql_standard"
)
VALUES = "id int PRIMARY KEY, d date, ts timestamp, tz timestamptz, b bytea, f float8, i interval"
ROW = r"(1, '2026-02-03', '2026-02-03 04:05:06', '2026-02-03 04:05:06+00', '\x00ff', 0.1::float8 + 0.2, '1 day 02:00')"


@dataclass
class Source:
    """A source database: its queue as our login sees it, and the login that owns PgQ's functions."""

    queue: Queue
    owner_dsn: str

    def plan(self, *tables: Table, owner: bool = True, **choices: Any) -> list[Step]:
        """What is missing, seen by the functions' owner or by our login."""
        words = {"schema": self.queue.schema, "queue": self.queue.name, **choices}
        with closing(database.connect(self.target(owner), purpose="tests")) as conn:
            return triggers.plan(conn, tables=tables, **words)

    def put(self, *tables: Table, **choices: Any) -> list[Step]:
        """Plan and apply as the functions' owner; what was done."""
        steps = self.plan(*tables, **choices)
        triggers.apply(self.target(), steps)
        return steps

    def target(self, owner: bool = True) -> Target:
        """Where it is."""
        return Target("src", self.owner_dsn if owner else self.queue.dsn)

    def happened(self) -> list[tuple[str, str, str]]:
        """(type, data, table) of every event."""
        return [(event["ev_type"], event["ev_data"], event["ev_extra1"]) for event in self.queue.events()]


@pytest.fixture
def plain(queue: Queue) -> Source:
    """PgQ in PL/pgSQL, which our login owns."""
    return Source(queue, queue.dsn)


@pytest.fixture(params=["PL/pgSQL", "C"])
def source(request: pytest.FixtureRequest, make_queue: MakeQueue) -> Source:
    """PgQ of both kinds."""
    if request.param == "PL/pgSQL":
        dsn = request.getfixturevalue("pgq_dsn")
        return Source(make_queue(dsn), dsn)
    made = make_queue(request.getfixturevalue("c_pgq_dsn"))
    servers: Servers = request.getfixturevalue("c_servers")
    return Source(made, servers.postgres.superuser_dsn(urlsplit(made.dsn).path[1:]))


def to_run(steps: Sequence[Step]) -> list[str]:
    """The statements of a plan, but for the lock timeout."""
    return [step.statement for step in steps if not step.is_note][1:]


def notes(steps: Sequence[Step]) -> str:
    """What a plan has to say, one note a line."""
    return "\n".join(step.what for step in steps if step.is_note)


def test_every_change_of_a_table_becomes_an_event(source: Source) -> None:
    """Rows and TRUNCATE are logged, with the table's own key."""
    source.queue.ask("CREATE TABLE public.t (id int PRIMARY KEY, v text)")
    source.put(T)
    for change in ("INSERT INTO t VALUES (1, 'a')", "UPDATE t SET v = NULL", "DELETE FROM t", "TRUNCATE t"):
        source.queue.ask(change)
    assert [(type_, data) for type_, data, _ in source.happened()] == [
        ("I:id", "id=1&v=a"), ("U:id", "id=1&v"), ("D:id", "id=1&v"), ("R", ""),
    ]  # fmt: skip


def test_a_second_time_there_is_nothing_to_do(source: Source) -> None:
    """Triggers and pins that are there are left, and the script for psql has only comments."""
    source.queue.ask("CREATE TABLE public.t (id int PRIMARY KEY)")
    source.put(T, options=["backup"])
    steps = source.plan(T, options=["backup"])
    assert (
        notes(steps)
        == "public.t has it already: trigger headrace_q\npublic.t has it already: trigger headrace_q_truncate"
    )
    assert [line[:3] for line in triggers.script(steps).splitlines()] == ["-- ", "-- "]


def test_the_script_does_what_apply_does(plain: Source) -> None:
    """Run as one text, it makes the triggers; the lock timeout comes first."""
    plain.queue.ask("CREATE TABLE public.t (id int PRIMARY KEY)")
    steps = plain.plan(T, lock_wait=timedelta(seconds=1.5))
    assert steps[0].statement == "SET LOCAL lock_timeout = 1500"
    run(plain.queue.dsn, triggers.script(steps))
    assert to_run(plain.plan(T)) == []


def test_awkward_names_of_tables_queues_and_options(source: Source, make_queue: MakeQueue) -> None:
    """Quotes, dots, spaces, percent signs, backslashes and 63 bytes are passed on as they are."""
    assert len(AWKWARD.name.encode()) == 63
    queue = make_queue(source.queue.dsn, name="Q'u\"e\\u.e %s é")
    awkward = Source(queue, source.owner_dsn)
    table = sql.Identifier(*AWKWARD)
    queue.ask(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(AWKWARD.schema)))
    queue.ask(sql.SQL('CREATE TABLE {} (id int PRIMARY KEY, "a\'\\b" text, v text)').format(table))
    awkward.put(AWKWARD, options=["ignore=a'\\b"])
    queue.ask(sql.SQL("INSERT INTO {} VALUES (1, 'left out', 'x')").format(table))
    queue.ask(sql.SQL("TRUNCATE {}").format(table))
    assert awkward.happened() == [("I:id", "id=1&v=x", str(AWKWARD)), ("R", "", str(AWKWARD))]
    assert to_run(awkward.plan(AWKWARD, options=["ignore=a'\\b"])) == []


def test_long_queue_names_give_each_trigger_a_name_of_its_own(plain: Source, make_queue: MakeQueue) -> None:
    """Two queues that differ after 63 bytes only do not collide, nor do their two triggers."""
    plain.queue.ask("CREATE TABLE public.t (id int PRIMARY KEY)")
    for end in ("1", "2"):
        other = Source(make_queue(plain.queue.dsn, name="é" * 40 + end), plain.queue.dsn)
        other.put(T)
        assert to_run(other.plan(T)) == []
    [(count, longest)] = plain.queue.ask(
        "SELECT count(*), max(octet_length(tgname::text)) FROM pg_trigger WHERE tgrelid = 't'::regclass"
    )
    assert (count, longest <= 63) == (4, True)


def test_values_are_written_in_one_form_whatever_the_session_has_set(source: Source) -> None:
    """Before the functions are pinned a German session in New York writes German dates; afterwards ISO in UTC."""
    source.queue.ask(f"CREATE TABLE public.t ({VALUES})")
    source.put(T, pin=False)
    source.queue.ask(ODD_SESSION)
    source.queue.ask(f"INSERT INTO t VALUES {ROW}")
    source.put(T)
    source.queue.ask("TRUNCATE t")
    source.queue.ask(f"INSERT INTO t VALUES {ROW}")
    odd, _, pinned = [data for _, data, _ in source.happened()]
    assert odd == (
        "id=1&d=03.02.2026&ts=03.02.2026+04%3a05%3a06&tz=02.02.2026+23%3a05%3a06+EST&b=%5c000%5c377"
        "&f=0.3&i=1+2%3a00%3a00"
    )
    assert pinned == (
        "id=1&d=2026-02-03&ts=2026-02-03+04%3a05%3a06&tz=2026-02-03+04%3a05%3a06%2b00&b=%5cx00ff"
        "&f=0.30000000000000004&i=1+day+02%3a00%3a00"
    )


def test_jsontriga_is_pinned_and_called_alike(source: Source) -> None:
    """The other trigger function is another function to pin: its dates are ISO anyway, zones and bytes are not."""
    source.queue.ask("CREATE TABLE public.t (id int PRIMARY KEY, d date, tz timestamptz, b bytea)")
    source.put(T, kind="jsontriga", pin=False)
    source.queue.ask(ODD_SESSION)
    source.queue.ask(r"INSERT INTO t VALUES (1, '2026-02-03', '2026-02-03 04:05:06+00', '\x00ff')")
    source.put(T, kind="jsontriga")
    source.queue.ask(r"INSERT INTO t VALUES (2, '2026-02-03', '2026-02-03 04:05:06+00', '\x00ff')")
    assert [json.loads(data) for _, data, _ in source.happened()] == [
        {"id": 1, "d": "2026-02-03", "tz": "2026-02-02T23:05:06-05:00", "b": r"\000\377"},
        {"id": 2, "d": "2026-02-03", "tz": "2026-02-03T04:05:06+00:00", "b": r"\x00ff"},
    ]
    assert json.loads(source.happened()[0][0]) == {"op": "INSERT", "table": ["public", "t"], "pkey": ["id"]}


def test_who_does_not_own_the_function_is_told_whom_to_ask(c_pgq_dsn: str, make_queue: MakeQueue) -> None:
    """Our login makes the triggers all the same; the pins are a note with the statement."""
    queue = make_queue(c_pgq_dsn)
    queue.ask("CREATE TABLE public.t (id int PRIMARY KEY)")
    source = Source(queue, c_pgq_dsn)
    steps = source.put(T)
    assert "pgq.logutriga() belongs to postgres" in notes(steps)
    assert 'ALTER FUNCTION "pgq"."logutriga"() SET datestyle = \'ISO,YMD\'' in notes(steps)
    assert queue.ask("SELECT tgname FROM pg_trigger WHERE tgrelid = 't'::regclass ORDER BY 1") == [
        ("headrace_q",), ("headrace_q_truncate",),
    ]  # fmt: skip


def test_only_what_is_not_pinned_is_pinned(plain: Source) -> None:
    """A site's own choice stays, and is named where values written so cannot be read."""
    plain.queue.ask("ALTER FUNCTION pgq.logutriga() SET timezone = 'Europe/Paris' SET datestyle = 'iso, ymd'")
    steps = plain.plan()
    assert "has timezone set to Europe/Paris" in notes(steps)
    assert "datestyle" not in notes(steps)
    [statement] = to_run(steps)
    assert statement.startswith('ALTER FUNCTION "pgq"."logutriga"() SET bytea_output = \'hex\' SET extra_float_digits')


def test_a_table_without_a_key_gets_no_trigger(source: Source) -> None:
    """Because with one its updates and deletes would fail, as they do with the real one."""
    source.queue.ask("CREATE TABLE public.t (id int, v text)")
    steps = source.plan(T, pin=False)
    assert "public.t has no primary key" in notes(steps)
    assert to_run(steps) == []
    source.queue.ask("INSERT INTO t VALUES (1, 'a')")
    source.queue.trigger("public.t")
    for change in ("UPDATE t SET v = 'b'", "DELETE FROM t"):
        with pytest.raises(psycopg2.Error, match="on table without pkey"):
            source.queue.ask(change)


def test_a_table_without_a_key_can_be_given_one_or_be_logged_by_its_inserts(source: Source) -> None:
    """The option pkey= names a key; inserts need none, and updates then go through unlogged."""
    source.queue.ask("CREATE TABLE public.t (id int, v text); CREATE TABLE public.log (v text)")
    source.put(T, options=["pkey=id"])
    source.put(Table("public", "log"), insert_only=True, truncate=False)
    source.queue.ask("INSERT INTO t VALUES (1, 'a')")
    source.queue.ask("UPDATE t SET v = 'b'")
    source.queue.ask("INSERT INTO log VALUES ('a')")
    source.queue.ask("UPDATE log SET v = 'b'")
    assert source.happened() == [
        ("I:id", "id=1&v=a", "public.t"), ("U:id", "id=1&v=b", "public.t"), ("I:", "v=a", "public.log"),
    ]  # fmt: skip


@pytest.mark.parametrize("option", ["ignore=v", "pkey=v", "backup", "when=true", "ev_type='x'", "ev_extra3=v"])
def test_truncate_goes_through_whatever_options_the_rows_have(source: Source, option: str) -> None:
    """The trigger for TRUNCATE gets none of them, as the one in C would make each TRUNCATE fail."""
    source.queue.ask("CREATE TABLE public.t (id int PRIMARY KEY, v text)")
    source.put(T, options=[option])
    source.queue.ask("INSERT INTO t VALUES (1, 'a')")
    source.queue.ask("TRUNCATE t")
    assert [type_ for type_, _, _ in source.happened()][1:] == ["R"]
    assert to_run(source.plan(T, options=[option])) == []


def test_a_table_can_be_closed_to_changes(source: Source) -> None:
    """The option deny is for TRUNCATE, too."""
    source.queue.ask("CREATE TABLE public.t (id int PRIMARY KEY)")
    source.put(T, options=["deny"])
    for change in ("INSERT INTO t VALUES (1)", "TRUNCATE t"):
        with pytest.raises(psycopg2.Error, match="change not allowed"):
            source.queue.ask(change)


@pytest.mark.parametrize("option", ["SKIP", "skip", "ignore", "ignore=", "colour=red", "ev_extra5=1"])
def test_options_with_which_every_change_would_fail_are_refused(source: Source, option: str) -> None:
    """The real trigger objects at the application's statement; here it is the plan that does."""
    with pytest.raises(PermanentFailure, match=rf"'{option}' is no option of logutriga"):
        source.plan(options=[option])


def test_a_partitioned_table_is_logged_at_its_root(source: Source) -> None:
    """Rows come by the partition's name, of later partitions too; TRUNCATE only of the root, which is said."""
    source.queue.ask("CREATE TABLE public.t (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    source.queue.ask("CREATE TABLE public.t_1 PARTITION OF t FOR VALUES FROM (0) TO (10)")
    steps = source.put(T)
    assert "TRUNCATE of a single partition of public.t makes no event" in notes(steps)
    source.queue.ask("CREATE TABLE public.t_2 PARTITION OF t FOR VALUES FROM (10) TO (20)")
    source.queue.ask("INSERT INTO t VALUES (1), (11)")
    source.queue.ask("TRUNCATE t_1")
    source.queue.ask("TRUNCATE t")
    assert [(type_, table) for type_, _, table in source.happened()] == [
        ("I:id", "public.t_1"), ("I:id", "public.t_2"), ("R", "public.t"),
    ]  # fmt: skip
    assert "public.t_2 has it already: trigger headrace_q" in notes(source.plan(Table("public", "t_2"), truncate=False))


def test_logins_whose_changes_would_fail_are_named(source: Source) -> None:
    """Whoever writes into a logged table must be able to write into the queue; GRANT pgq_writer is enough."""
    role = f"app_{urlsplit(source.queue.dsn).path[1:]}"
    source.queue.ask("CREATE TABLE public.t (id int PRIMARY KEY)")
    source.queue.ask(f"CREATE ROLE {role} LOGIN; GRANT {role} TO current_user; GRANT INSERT ON t TO {role}")
    try:
        assert f"GRANT pgq_writer TO {role} before" in notes(source.put(T))
        with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="insert_event"):
            source.queue.ask(f"SET ROLE {role}; INSERT INTO public.t VALUES (1)")
        run(source.owner_dsn, f"GRANT pgq_writer TO {role}")
        source.queue.ask(f"SET ROLE {role}; INSERT INTO public.t VALUES (1); RESET ROLE")
        source.queue.ask("CREATE TABLE public.t2 (id int PRIMARY KEY)")
        source.queue.ask(f"GRANT INSERT ON t2 TO {role}")
        assert role not in notes(source.plan(Table("public", "t2")))
    finally:
        source.queue.ask(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (
            "CREATE TRIGGER mine AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW {}('q')",
            "has it already: trigger mine",
        ),
        ("CREATE TRIGGER mine BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW {}('q')", "already: trigger mine"),
        ("CREATE TRIGGER mine AFTER INSERT ON t FOR EACH ROW {}('q')", "has the trigger mine into the same queue"),
        (
            "CREATE TRIGGER mine AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW {}('q', 'backup')",
            "trigger mine into",
        ),
        ("CREATE TRIGGER mine AFTER UPDATE OF id ON t FOR EACH ROW {}('q')", "has the trigger mine into"),
        ("CREATE TRIGGER mine AFTER INSERT ON t FOR EACH ROW WHEN (new.id > 1) {}('q')", "has the trigger mine into"),
        (
            "CREATE TRIGGER mine AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW {}('q');"
            "ALTER TABLE t DISABLE TRIGGER mine",
            "but it is disabled",
        ),
        (
            "CREATE TRIGGER headrace_q AFTER INSERT ON t FOR EACH ROW {}('other')",
            "a trigger headrace_q that does something",
        ),
    ],
)
def test_triggers_that_are_there_are_never_doubled(plain: Source, made: str, says: str) -> None:
    """The same one is enough; another one into the same queue, or one with our name, is for a person to judge."""
    plain.queue.ask("CREATE TABLE public.t (id int PRIMARY KEY)")
    plain.queue.ask(made.format("EXECUTE FUNCTION pgq.logutriga"))
    steps = plain.plan(T, truncate=False, pin=False)
    assert says in notes(steps)
    assert to_run(steps) == []


def test_a_trigger_into_another_queue_is_no_hindrance(plain: Source, make_queue: MakeQueue) -> None:
    """Not even one whose name begins alike: each queue gets the change once."""
    plain.queue.ask("CREATE TABLE public.t (id int PRIMARY KEY)")
    other = Source(make_queue(plain.queue.dsn, name="q2"), plain.queue.dsn)
    other.put(T)
    plain.put(T)
    plain.queue.ask("INSERT INTO t VALUES (1)")
    assert len(plain.happened()) == len(other.happened()) == 1


def test_a_locked_table_stops_all_of_it_in_time(plain: Source) -> None:
    """No trigger is made while one table is locked; it can be tried again."""
    plain.queue.ask("CREATE TABLE public.t (id int PRIMARY KEY); CREATE TABLE public.u (id int PRIMARY KEY)")
    steps = plain.plan(T, Table("public", "u"), lock_wait=timedelta(milliseconds=50))
    with closing(psycopg2.connect(plain.queue.dsn)) as other:
        other.cursor().execute("INSERT INTO public.u VALUES (1)")
        with pytest.raises(RetryLater, match="lock"):
            triggers.apply(plain.target(), steps)
    assert plain.queue.ask("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'headrace%'") == [(0,)]


def test_a_login_that_may_not_learns_what_it_needs(c_pgq_dsn: str, c_servers: Servers, make_queue: MakeQueue) -> None:
    """Somebody else's table is named, with the rights that are missing."""
    superuser = c_servers.postgres.superuser_dsn(urlsplit(c_pgq_dsn).path[1:])
    run(superuser, "CREATE TABLE public.t (id int PRIMARY KEY)")
    source = Source(make_queue(c_pgq_dsn), c_pgq_dsn)
    with pytest.raises(PermanentFailure, match=r"public\.t .*permission denied for table t; .*TRIGGER on the table"):
        source.put(T)


def test_pgq_in_another_schema(pgque_dsn: str, make_queue: MakeQueue) -> None:
    """The schema of PgQ is a setting: its function is called and pinned there."""
    source = Source(make_queue(pgque_dsn, "pgque"), pgque_dsn)
    source.queue.ask("CREATE TABLE public.t (id int PRIMARY KEY)")
    source.put(T)
    source.queue.ask("INSERT INTO t VALUES (1)")
    assert source.happened() == [("I:id", "id=1", "public.t")]
    with pytest.raises(PermanentFailure, match=r"there is no pgq\.logutriga\(\) in the database .*install-pgq"):
        source.plan(T, schema="pgq")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (Table("public", "nothing"), "there is no table public.nothing"),
        (Table("public", "v"), "public.v is no table"),
        (Table("pgq", "queue"), "pgq.queue is a table of PgQ's or Headrace's own"),
        (Table("headrace", "dispatch_position"), "its events would make events"),
    ],
)
def test_what_cannot_be_logged_is_refused_by_name(plain: Source, table: Table, says: str) -> None:
    """Nothing is planned for the other tables either."""
    plain.queue.ask("CREATE TABLE public.t (id int PRIMARY KEY); CREATE VIEW public.v AS SELECT 1 AS id")
    with pytest.raises(PermanentFailure, match=says):
        plain.plan(T, table)

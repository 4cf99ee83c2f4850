"""Partitions: found whoever made them, made once whoever needs them, and gone only where they are ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from threading import Barrier
from time import monotonic
from typing import Any

import psycopg2
import pytest

from tests.conftest import Servers
from workers import database, migrations
from workers.database import Connection
from workers.dispatch import partitions
from workers.dispatch.names import Table
from workers.dispatch.partitions import NoPlace
from workers.dispatch_settings import Partition
from workers.errors import RetryLater
from workers.settings import Settings
from workers.targets import Target

Ask = Callable[..., list[tuple[Any, ...]]]

DAY = Partition(kind="native", by="field:at")
LIKE = Partition()
T = Table("public", "t")
NATIVE = "CREATE TABLE t (id bigint, at timestamptz NOT NULL, v text) PARTITION BY RANGE (at)"
SUFFIX = "2026_11_21"
BOUNDS = """
SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
 WHERE i.inhparent = %s::regclass ORDER BY c.relname
"""
SHORT = timedelta(milliseconds=300)


@pytest.fixture
def target(conf: Settings) -> Target:
    """The database with the destinations."""
    with database.connection(conf.target(), purpose="tests") as conn:
        migrations.migrate(conn, "dispatch")
    return conf.target()


@pytest.fixture
def main(target: Target) -> Iterator[Connection]:
    """The transaction that has a batch's rows."""
    with closing(database.connect(target, purpose="tests")) as conn:
        yield conn


def utc(text: str) -> datetime:
    """An instant, written in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def clock(text: str) -> datetime:
    """What a clock shows, without a zone."""
    return datetime.fromisoformat(text)


NOON = utc("2026-11-21 12:00")


def place(
    main: Connection, target: Target, layout: Partition = DAY, parent: Table = T, *, moment: datetime = NOON,
    suffix: str | None = None, key: tuple[str, ...] = (), mode: str = "plain", lock: timedelta = partitions.LOCK,
) -> Table:  # fmt: skip
    """The table for rows of a moment."""
    return partitions.place(main, target, layout, parent, moment=moment, suffix=suffix, key=key, mode=mode, lock=lock)


def write(conn: Connection, statement: str) -> None:
    """Do something within a transaction that stays open."""
    with conn.cursor() as cursor:
        cursor.execute(statement)


def read(conn: Connection, statement: str) -> Any:
    """One value, as a transaction sees it."""
    with conn.cursor() as cursor:
        cursor.execute(statement)
        row = cursor.fetchone()
        return row and row[0]


def held(target: Target, statement: str) -> Connection:
    """Another session that holds a lock; closing it gives the lock back."""
    other = database.connect(target, purpose="tests")
    write(other, statement)
    return other


# Tables like their parent


def test_without_partitions_the_parent_is_the_place(main: Connection, target: Target, sql: Ask) -> None:
    """Kind none, and like without a suffix: the parent, if it is there."""
    with pytest.raises(NoPlace, match=r"public\.t does not exist in control; create the table"):
        place(main, target, Partition(kind="none"))
    sql("CREATE TABLE t (id bigint)")
    assert place(main, target, Partition(kind="none")) == T
    assert place(main, target, LIKE, suffix="") == place(main, target, LIKE, suffix=None) == T


@pytest.mark.parametrize(
    ("mode", "key", "indexes"),
    [
        ("keep_latest", ("b", "a"), [(True, True, ["b", "a"])]),
        ("plain", ("a",), [(True, True, ["a"])]),
        ("keep_all", ("a",), [(False, False, ["a"])]),
        ("keep_all", (), []),
        ("keep_latest", (), []),
    ],
)
def test_a_like_table_has_the_index_that_its_mode_needs(
    main: Connection,
    target: Target,
    sql: Ask,
    mode: str,
    key: tuple[str, ...],
    indexes: list[tuple[bool, bool, list[str]]],
) -> None:
    """A primary key where a row has one version, a plain index where it has many; made at once, and on record."""
    sql("CREATE TABLE t (a int, b text, v text)")
    table = place(main, target, LIKE, suffix=SUFFIX, key=key, mode=mode)
    assert table == Table("public", "t_2026_11_21")
    found = sql("""SELECT indisprimary, indisunique, ARRAY(SELECT attname::text FROM pg_attribute
                   WHERE attrelid = indexrelid ORDER BY attnum) FROM pg_index
                   WHERE indrelid = 't_2026_11_21'::regclass""")
    assert found == indexes
    register = "SELECT table_name, parent_name, kind, covers_from, covers_until FROM headrace.dispatch_partition"
    assert sql(register) == [("t_2026_11_21", "t", "like", NOON, None)]
    main.rollback()
    assert place(main, target, LIKE, suffix=SUFFIX, key=key, mode=mode) == table


@pytest.mark.parametrize("stem", ["t", 'a"b.c', "Größe", "_DEST_TABLE", "x_PKEY_PARENT y", "_SCHEMA_TABLE'", "n" * 52])
def test_a_template_has_all_four_magic_words(main: Connection, target: Target, sql: Ask, stem: str) -> None:
    """A template of Skytools makes table, key and index, whatever the names are made of; up to 63 bytes of name."""
    quoted = '"' + stem.replace('"', '""') + '"'
    sql('CREATE SCHEMA "My Schema"')
    sql(f'CREATE TABLE "My Schema".{quoted} ("Id" int, "_PKEY" int, "a""b" text)')
    template = """create table _DEST_TABLE (like _PARENT);
        alter table only _DEST_TABLE add primary key (_PKEY);
        create index _SCHEMA_TABLE_i on _DEST_TABLE ("a""b");
        insert into _DEST_TABLE select 1, 2, '100%';"""
    layout = Partition(part_template=template)
    table = place(main, target, layout, Table("My Schema", stem), suffix=SUFFIX, key=("Id", "_PKEY"))
    assert table == Table("My Schema", f"{stem}_{SUFFIX}")
    found = sql(
        """SELECT ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = i.indexrelid
                          ORDER BY a.attnum), i.indisprimary
                     FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE c.relname = %s
                    ORDER BY i.indisprimary""",
        table.name,
    )
    assert found == [(['a"b'], False), (["Id", "_PKEY"], True)]
    assert place(main, target, layout, Table("My Schema", stem), suffix=SUFFIX, key=("Id",)) == table


def test_a_template_finds_what_its_login_would_find(main: Connection, target: Target, sql: Ask) -> None:
    """Unqualified functions and types are looked for on the login's own path; ours is as safe as before afterwards."""
    sql("CREATE TABLE t (a int); CREATE DOMAIN shade AS text")
    sql("CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'")
    template = """create table _DEST_TABLE (like _PARENT, colour shade); set search_path = public;
        create trigger x before insert on _DEST_TABLE for each row execute function touch();"""
    write(main, "SET LOCAL lock_timeout = '7s'")
    write(main, "LOCK TABLE public.t IN ACCESS EXCLUSIVE MODE")  # so that it is made within this transaction
    place(main, target, Partition(part_template=template), suffix="1")
    assert read(main, "SHOW search_path") == "pg_catalog, pg_temp"
    assert read(main, "SHOW lock_timeout") == "7s"
    main.commit()
    assert read(main, "SHOW search_path") == "pg_catalog, pg_temp"
    assert read(main, "SHOW lock_timeout") == "0"
    place(main, target, Partition(part_template=template), suffix="2")
    with database.connection(target, purpose="tests") as side:  # the one that made it
        assert read(side, "SHOW search_path") == "pg_catalog, pg_temp"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("create table _DEST_TABLE (like _PARENT", r"public\.t: no table can be made for its rows: syntax error"),
        ("create table _DEST_TABLE (like _PARENT); alter table _DEST_TABLE add primary key (_PKEY)", "no key"),
        ("create table if not exists other ()", "its part_template made no table public.t_1"),
        ("create table _DEST_TABLE (like _PARENT); commit", "no table can be made"),
        ("rollback", "no table can be made"),
    ],
)
@pytest.mark.parametrize("within", [False, True], ids=["aside", "within"])
def test_a_template_that_fails_spoils_nothing(
    main: Connection, target: Target, sql: Ask, text: str, problem: str, within: bool
) -> None:
    """The reason is said, nothing of it remains, and the batch's transaction goes on: nor can a template end it."""
    sql("CREATE TABLE t (a int); CREATE TABLE loaded (a int)")
    write(main, "INSERT INTO public.loaded VALUES (1)")
    if within:
        write(main, "LOCK TABLE public.t IN ACCESS EXCLUSIVE MODE")
    with pytest.raises(NoPlace, match=problem):
        place(main, target, Partition(part_template=text), suffix="1")
    assert sql("SELECT * FROM loaded") == []
    main.commit()
    assert sql("SELECT * FROM loaded") == [(1,)]
    assert sql("SELECT to_regclass('t_1'), count(*) FROM headrace.dispatch_partition") == [(None, 0)]


@pytest.mark.parametrize(
    ("ddl", "suffix", "problem"),
    [
        ("CREATE TABLE t (a int)", "x" * 62, "longer than a name may be"),
        ("CREATE TABLE t (a int); CREATE VIEW t_1 AS SELECT 1", "1", "has the name of one"),
        ("CREATE VIEW t AS SELECT 1", "1", "public.t is a view"),
        (
            "CREATE TABLE p (a int) PARTITION BY LIST (a); CREATE TABLE t PARTITION OF p DEFAULT",
            "1",
            "a partition itself",
        ),
        ("CREATE SEQUENCE t", "1", "public.t is no table"),
    ],
)
def test_what_cannot_have_tables_like_it_is_said(
    main: Connection, target: Target, sql: Ask, ddl: str, suffix: str, problem: str
) -> None:
    """No name is cut, nothing is taken for a table that is none."""
    sql(ddl)
    with pytest.raises(NoPlace, match=problem):
        place(main, target, LIKE, suffix=suffix)


def test_tables_of_others_are_used_and_never_ours(main: Connection, target: Target, sql: Ask) -> None:
    """What cube_dispatcher, pg_partman or a person made takes rows, and is not on record."""
    sql("CREATE TABLE t (a int); CREATE TABLE t_2026_11_21 (LIKE t)")
    assert place(main, target, LIKE, suffix=SUFFIX).name == "t_2026_11_21"
    sql("DROP TABLE t, t_2026_11_21; " + NATIVE)
    sql("CREATE TABLE week PARTITION OF t FOR VALUES FROM ('2026-11-16') TO ('2026-11-23')")
    sql("CREATE TABLE old PARTITION OF t FOR VALUES FROM (MINVALUE) TO ('0044-03-15 BC')")
    sql("CREATE TABLE coming PARTITION OF t FOR VALUES FROM ('2030-01-01') TO ('infinity')")
    assert place(main, target).name == "week"
    assert place(main, target, moment=utc("9999-12-31 23:59:59")).name == "coming"
    assert sql("SELECT * FROM headrace.dispatch_partition") == []


# PostgreSQL's own partitions


@pytest.mark.parametrize(
    ("zone", "moment", "lower", "upper", "name"),
    [
        ("UTC", "2026-11-21 23:59:59", "2026-11-21 00:00:00+00", "2026-11-22 00:00:00+00", "t_p2026_11_21"),
        ("UTC", "2026-11-22 00:00:01", "2026-11-22 00:00:00+00", "2026-11-23 00:00:00+00", "t_p2026_11_22"),
        ("Europe/Paris", "2026-03-29 12:00", "2026-03-28 23:00:00+00", "2026-03-29 22:00:00+00", "t_p2026_03_29"),
        ("America/New_York", "2026-11-01 12:00", "2026-11-01 04:00:00+00", "2026-11-02 05:00:00+00", "t_p2026_11_01"),
        ("Asia/Kathmandu", "2026-11-21 18:14:59", "2026-11-20 18:15:00+00", "2026-11-21 18:15:00+00", "t_p2026_11_21"),
    ],
)
def test_a_day_begins_at_its_own_midnight(
    dsn: str, target: Target, sql: Ask, zone: str, moment: str, lower: str, upper: str, name: str
) -> None:
    """Bounds are instants of the layout's zone, of whatever zone and style the server and its sessions are."""
    sql(NATIVE)
    sql("""DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET timezone TO ''Pacific/Apia''', current_database());
                 EXECUTE format('ALTER DATABASE %I SET datestyle TO ''German''', current_database()); END $$""")
    database.close_all()
    layout = DAY.model_copy(update={"timezone": zone})
    with closing(database.connect(target, purpose="tests")) as main:
        assert place(main, target, layout, moment=utc(moment)).name == name
    sql("SET datestyle TO 'ISO'")
    assert sql(BOUNDS, "t") == [(name, f"FOR VALUES FROM ('{lower}') TO ('{upper}')")]
    register = "SELECT table_name, kind, covers_from, covers_until FROM headrace.dispatch_partition"
    ends = [datetime.fromisoformat(f"{end}:00") for end in (lower, upper)]
    assert sql(register) == [(name, "native", *ends)]


@pytest.mark.parametrize(
    ("type_", "period", "moment", "name", "bounds"),
    [
        ("timestamp", "day", clock("2026-10-25 02:30"), "t_p2026_10_25", "2026-10-25 00:00:00 2026-10-26 00:00:00"),
        ("timestamp", "hour", clock("2026-10-25 02:30"), "t_p2026_10_25_02", "2026-10-25 02:00:00 2026-10-25 03:00:00"),
        ("timestamp", "day", utc("2026-10-25 23:30"), "t_p2026_10_26", "2026-10-26 00:00:00 2026-10-27 00:00:00"),
        ("date", "day", clock("2026-10-25"), "t_p2026_10_25", "2026-10-25 2026-10-26"),
        ("date", "month", clock("2026-12-25"), "t_p2026_12", "2026-12-01 2027-01-01"),
        ("timestamptz", "hour", utc("2026-10-25 01:30"), "t_p2026_10_25_02_utc0100",
         "2026-10-25 01:00:00+00 2026-10-25 02:00:00+00"),
    ],
)  # fmt: skip
def test_columns_of_other_types_go_by_their_own_clock(
    main: Connection, target: Target, sql: Ask, type_: str, period: str, moment: datetime, name: str, bounds: str
) -> None:
    """A date or timestamp is what a clock shows; an instant is put on the clock of the layout's zone."""
    sql(f"CREATE TABLE t (at {type_}) PARTITION BY RANGE (at)")
    layout = DAY.model_copy(update={"timezone": "Europe/Paris", "period": period})
    assert place(main, target, layout, moment=moment).name == name
    ends = sql(BOUNDS, "t")[0][1].split("'")[1::2]
    assert " ".join(ends) == bounds
    assert place(main, target, layout, moment=moment).name == name


def test_a_partition_has_everything_of_its_parent(main: Connection, target: Target, sql: Ask) -> None:
    """Indexes are attached to the parent's, row triggers fire, keys, checks, generated and identity columns hold."""
    sql("""CREATE TABLE site (name text PRIMARY KEY); INSERT INTO site VALUES ('aoc');
           CREATE TABLE t (id bigint GENERATED BY DEFAULT AS IDENTITY, at timestamptz, v int CHECK (v > 0),
                           twice int GENERATED ALWAYS AS (v * 2) STORED, site text REFERENCES site,
                           w int DEFAULT 7, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
           CREATE INDEX t_v ON t (v);
           CREATE FUNCTION mark() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.w = NEW.w + 1; RETURN NEW; END';
           CREATE TRIGGER marks BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION mark()""")
    name = place(main, target).name
    sql("INSERT INTO t (id, at, v, site) VALUES (1, '2026-11-21', 3, 'aoc')")
    sql(f"INSERT INTO {name} (id, at, v) VALUES (2, '2026-11-21', 4)")
    assert sql("SELECT id, v, twice, w FROM t ORDER BY id") == [(1, 3, 6, 8), (2, 4, 8, 8)]
    indexes = """SELECT count(*), count(i.inhrelid) FROM pg_index x LEFT JOIN pg_inherits i ON i.inhrelid = x.indexrelid
                  WHERE x.indrelid = %s::regclass"""
    assert sql(indexes, name) == [(2, 2)]
    with pytest.raises(psycopg2.errors.CheckViolation):
        sql(f"INSERT INTO {name} (id, at, v) VALUES (3, '2026-11-21', -1)")
    with pytest.raises(psycopg2.errors.ForeignKeyViolation):
        sql(f"INSERT INTO {name} (id, at, v, site) VALUES (3, '2026-11-21', 1, 'nowhere')")


def test_columns_that_make_their_own_values_stay_so(main: Connection, target: Target, sql: Ask) -> None:
    """PostgreSQL 18: the parent's identity and virtual columns work in a partition that is written to directly."""
    sql("""CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY, at timestamptz, v int,
                           twice int GENERATED ALWAYS AS (v * 2) VIRTUAL) PARTITION BY RANGE (at)""")
    name = place(main, target).name
    sql(f"INSERT INTO {name} (at, v) VALUES ('2026-11-21', 3); INSERT INTO t (at, v) VALUES ('2026-11-21', 4)")
    assert sql("SELECT id, v, twice FROM t ORDER BY id") == [(1, 3, 6), (2, 4, 8)]


def test_only_what_is_free_is_taken(main: Connection, target: Target, sql: Ask) -> None:
    """Between partitions of others a day shrinks, twice if need be, and a name that is taken gets a number."""
    sql(NATIVE)
    sql("CREATE TABLE night PARTITION OF t FOR VALUES FROM ('2026-11-20') TO ('2026-11-21 06:00')")
    sql("CREATE TABLE evening PARTITION OF t FOR VALUES FROM ('2026-11-21 18:00') TO ('2026-11-21 20:00')")
    assert place(main, target).name == "t_p2026_11_21"
    assert place(main, target, moment=utc("2026-11-21 21:00")).name == "t_p2026_11_21_2"
    assert dict(sql(BOUNDS, "t")) == {
        "night": "FOR VALUES FROM ('2026-11-20 00:00:00+00') TO ('2026-11-21 06:00:00+00')",
        "evening": "FOR VALUES FROM ('2026-11-21 18:00:00+00') TO ('2026-11-21 20:00:00+00')",
        "t_p2026_11_21": "FOR VALUES FROM ('2026-11-21 06:00:00+00') TO ('2026-11-21 18:00:00+00')",
        "t_p2026_11_21_2": "FOR VALUES FROM ('2026-11-21 20:00:00+00') TO ('2026-11-22 00:00:00+00')",
    }


def test_a_partition_that_is_partitioned_is_the_place(main: Connection, target: Target, sql: Ask) -> None:
    """PostgreSQL itself knows where its rows go."""
    sql(NATIVE)
    sql("CREATE TABLE day PARTITION OF t FOR VALUES FROM ('2026-11-21') TO ('2026-11-22') PARTITION BY HASH (id)")
    sql("CREATE TABLE half PARTITION OF day FOR VALUES WITH (MODULUS 1, REMAINDER 0)")
    assert place(main, target).name == "day"


def test_late_rows_go_into_the_default_partition_if_they_shall(main: Connection, target: Target, sql: Ask) -> None:
    """What is older than the newest partition goes there; what is newer, or where there is none, gets a partition."""
    sql(NATIVE)
    late = DAY.model_copy(update={"late": "default"})
    assert place(main, target, late).name == "t_p2026_11_21"
    assert place(main, target, late, moment=utc("2026-11-20")).name == "t_p2026_11_20"
    sql("CREATE TABLE rest PARTITION OF t DEFAULT")
    assert place(main, target, late, moment=utc("2026-11-19")).name == "rest"
    assert place(main, target, late, moment=utc("2026-11-22")).name == "t_p2026_11_22"
    assert place(main, target, DAY, moment=utc("2026-11-19")).name == "t_p2026_11_19"


DRAINED = """
CREATE TABLE t (gone int, id bigint, at timestamptz NOT NULL, "v %" text,
                twice bigint GENERATED ALWAYS AS (id * 2) STORED) PARTITION BY RANGE (at);
ALTER TABLE t DROP COLUMN gone;
CREATE TABLE rest (at timestamptz NOT NULL, twice bigint GENERATED ALWAYS AS (id * 2) STORED, "v %" text, id bigint);
ALTER TABLE t ATTACH PARTITION rest DEFAULT;
INSERT INTO t (id, at, "v %")
SELECT n, '2026-11-20'::timestamptz + n * interval '6 hours', 'x' FROM generate_series(0, 11) n
"""


def test_the_default_partition_is_drained(main: Connection, target: Target, sql: Ask) -> None:
    """Its rows of the period move into the new partition, by name, and no other row does."""
    sql(DRAINED)
    assert place(main, target).name == "t_p2026_11_21"
    assert sql('SELECT id, "v %%", twice FROM t_p2026_11_21 ORDER BY id'.replace("%%", "%")) == [
        (n, "x", 2 * n) for n in range(4, 8)
    ]
    assert sql("SELECT count(*) FROM rest") == [(8,)]


def test_rows_that_this_batch_put_into_the_default_are_no_deadlock(
    main: Connection, target: Target, sql: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another session would wait for us for ever: then it is made within the batch's own transaction, at once."""
    monkeypatch.setattr(partitions, "SIDE_LOCK", timedelta(minutes=1))
    began = monotonic()
    sql(DRAINED)
    write(main, "INSERT INTO public.t (id, at) VALUES (99, '2026-11-21 13:00+00')")
    assert place(main, target, lock=timedelta(minutes=5)).name == "t_p2026_11_21"
    assert place(main, target, moment=utc("2026-11-20"), lock=timedelta(minutes=5)).name == "t_p2026_11_20"
    assert read(main, "SELECT count(*) FROM public.t_p2026_11_21") == 5
    assert sql("SELECT to_regclass('t_p2026_11_21')") == [(None,)]
    main.rollback()
    assert sql("SELECT count(*) FROM rest") == [(12,)]
    write(main, "INSERT INTO public.t (id, at) VALUES (99, '2026-11-21 13:00+00')")
    place(main, target)
    main.commit()
    assert sql("SELECT count(*) FROM t_p2026_11_21") == [(5,)]
    assert sql("SELECT count(*) FROM headrace.dispatch_partition") == [(1,)]
    assert monotonic() - began < 50  # nobody has waited for a lock in vain


def test_locks_of_our_own_that_nobody_foresaw_cost_a_moment(
    main: Connection, target: Target, sql: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A foreign key wants a lock on a table that this batch has written: after a short wait it is made within."""
    monkeypatch.setattr(partitions, "SIDE_LOCK", SHORT)
    sql("CREATE TABLE site (name text PRIMARY KEY)")
    sql("CREATE TABLE t (at timestamptz, site text REFERENCES site) PARTITION BY RANGE (at)")
    write(main, "INSERT INTO public.site VALUES ('aoc')")
    name = place(main, target).name
    assert sql("SELECT to_regclass(%s)", name) == [(None,)]
    write(main, f"INSERT INTO public.{name} VALUES ('2026-11-21 01:00+00', 'aoc')")
    main.commit()
    assert sql("SELECT count(*) FROM t") == [(1,)]


@pytest.mark.parametrize("kind", ["native", "like"])
def test_locks_of_others_are_waited_for_later(
    main: Connection, target: Target, sql: Ask, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """RetryLater, and the batch's transaction has all that it had."""
    monkeypatch.setattr(partitions, "SIDE_LOCK", SHORT)
    sql(f"{NATIVE}; CREATE TABLE l (a int); CREATE TABLE loaded (a int)")
    write(main, "INSERT INTO public.loaded VALUES (1)")
    layout, parent = (DAY, T) if kind == "native" else (LIKE, Table("public", "l"))
    with (
        closing(held(target, f"LOCK TABLE ONLY public.{parent.name} IN ACCESS EXCLUSIVE MODE")),
        pytest.raises(RetryLater),
    ):
        place(main, target, layout, parent, suffix="1", lock=SHORT)
    assert place(main, target, layout, parent, suffix="1").name in ("t_p2026_11_21", "l_1")
    main.commit()
    assert sql("SELECT * FROM loaded") == [(1,)]


@pytest.mark.parametrize("kind", ["like", "template", "native", "default"])
def test_many_who_meet_a_missing_table_make_it_once(target: Target, sql: Ask, kind: str) -> None:
    """Twenty at once, several times: each gets the same table, nobody an error, and it is on record once."""
    sql(DRAINED if kind == "default" else NATIVE)
    sql("CREATE TABLE l (a int)")
    template = "create table _DEST_TABLE (like _PARENT); create index _SCHEMA_TABLE_i on _DEST_TABLE (_PKEY)"
    layout = DAY if kind in ("native", "default") else Partition(part_template=template if kind == "template" else None)
    parent = T if layout is DAY else Table("public", "l")
    rounds, crowd = 4, 20
    barrier = Barrier(crowd)

    def meet(_: int) -> list[Table]:
        found = []
        with closing(database.connect(target, purpose="tests")) as main:
            for day in range(rounds):
                moment = utc("2026-11-20 12:00") + timedelta(days=day)
                barrier.wait(60)
                found.append(place(main, target, layout, parent, moment=moment, suffix=f"{day}", key=("a",)))
                write(main, f"SELECT count(*) FROM public.{found[-1].name}")
                main.commit()
        database.close_all()
        return found

    with ThreadPoolExecutor(crowd) as pool:
        results = list(pool.map(meet, range(crowd)))
    assert all(found == results[0] for found in results)
    names = {table.name for table in results[0]}
    assert {row[0] for row in sql("SELECT table_name FROM headrace.dispatch_partition")} == names
    assert len(names) == rounds


@pytest.mark.parametrize("kind", ["like", "native"])
def test_whoever_knows_nothing_of_our_lock_may_be_first(target: Target, sql: Ask, kind: str) -> None:
    """Somebody else makes the same table while ours waits for him: his is used, and not on record."""
    sql(f"{NATIVE}; CREATE TABLE l (a int)")
    layout, parent = (DAY, T) if kind == "native" else (LIKE, Table("public", "l"))
    name = "theirs" if kind == "native" else "l_1"
    made = "PARTITION OF public.t FOR VALUES FROM ('2026-11-21') TO ('2026-11-22')"
    made = made if kind == "native" else "(LIKE public.l)"

    def ours() -> Table:
        with closing(database.connect(target, purpose="tests")) as main:
            found = place(main, target, layout, parent, suffix="1")
        database.close_all()
        return found

    waiting = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.datname = current_database() WHERE NOT granted"
    with closing(held(target, f"CREATE TABLE public.{name} {made}")) as other, ThreadPoolExecutor(1) as pool:
        result = pool.submit(ours)
        deadline = monotonic() + 30
        while sql(waiting) == [(0,)] and monotonic() < deadline and not result.done():
            pass
        other.commit()
        assert result.result(60) == Table("public", name)
    assert sql("SELECT * FROM headrace.dispatch_partition") == []


def test_batches_that_all_hold_rows_of_the_default_come_through(target: Target, sql: Ask) -> None:
    """They are in each other's way: whoever loses is told to come again, and in the end there is one partition."""
    sql(DRAINED)
    crowd = 3
    barrier = Barrier(crowd)

    def batch(number: int) -> int:
        with closing(database.connect(target, purpose="tests")) as main:
            for attempt in range(20):
                try:
                    with database.translated(target, main):
                        write(main, f"INSERT INTO public.t (id, at) VALUES ({100 + number}, '2026-11-21 01:00+00')")
                    if attempt == 0:
                        barrier.wait(60)
                    place(main, target)
                    main.commit()
                    return attempt
                except (RetryLater, psycopg2.errors.CheckViolation):
                    # The latter if the rows were routed to the default partition just before the new one came.
                    main.rollback()
        raise AssertionError("never came through")

    with ThreadPoolExecutor(crowd) as pool:
        list(pool.map(batch, range(crowd)))
    assert sql("SELECT count(*) FROM t_p2026_11_21") == [(4 + crowd,)]
    assert sql("SELECT count(*) FROM headrace.dispatch_partition") == [(1,)]


@pytest.mark.parametrize(
    ("ddl", "changes", "problem"),
    [
        ("CREATE TABLE t (at timestamptz)", {}, "not partitioned; create it with PARTITION BY RANGE"),
        ("CREATE TABLE t (at timestamptz) PARTITION BY LIST (at)", {}, "not partitioned by the range of one column"),
        ("CREATE TABLE t (at timestamptz, b int) PARTITION BY RANGE (at, b)", {}, "the range of one column"),
        ("CREATE TABLE t (at timestamp) PARTITION BY RANGE (date_trunc('day', at))", {}, "the range of one column"),
        ("CREATE TABLE t (at bigint) PARTITION BY RANGE (at)", {}, "partitioned by at of type bigint"),
        ("CREATE TABLE t (at date) PARTITION BY RANGE (at)", {"period": "hour"}, "which has no hours"),
        ("CREATE TABLE t (ts date) PARTITION BY RANGE (ts)", {}, "set by: field:ts"),
        (f"CREATE TABLE {'t' * 60} (at date) PARTITION BY RANGE (at)", {}, "longer than a name may be"),
    ],
)
def test_what_cannot_be_partitioned_by_time_is_said(
    main: Connection, target: Target, sql: Ask, ddl: str, changes: dict[str, str], problem: str
) -> None:
    """Which table, what is wrong with it, and what to do."""
    sql(ddl)
    name = ddl.split()[2]
    with pytest.raises(NoPlace, match=problem):
        place(main, target, DAY.model_copy(update=changes), Table("public", name))


def test_whoever_owns_the_parent_owns_its_partitions(
    servers: Servers, dsn: str, main: Connection, target: Target, sql: Ask
) -> None:
    """Where our login is a member of that role; else PostgreSQL's refusal is what the person reads."""
    role = f"keeper_{dsn.rpartition('/')[2].split('?')[0]}"
    sql(NATIVE)
    with closing(psycopg2.connect(servers.postgres.superuser_dsn(dsn.rpartition("/")[2].split("?")[0]))) as admin:
        admin.autocommit = True
        with admin.cursor() as cursor:
            cursor.execute(
                f"CREATE ROLE {role}; GRANT CREATE ON SCHEMA public TO {role}; ALTER TABLE public.t OWNER TO {role}"
            )
            try:
                cursor.execute("GRANT SELECT ON public.t TO headrace")
                with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="must be owner of"):
                    place(main, target)
                main.rollback()
                cursor.execute(f"GRANT {role} TO headrace")
                name = place(main, target).name
                assert sql("SELECT tableowner FROM pg_tables WHERE tablename = %s", name) == [(role,)]
            finally:
                main.rollback()
                cursor.execute(f"DROP TABLE public.t; DROP OWNED BY {role}; DROP ROLE {role}")


# Ahead, and behind


def test_partitions_are_made_ahead(main: Connection, target: Target, sql: Ask) -> None:
    """This day's and the next ones', around what is there; the plan is what is run, and then there is none."""
    sql(NATIVE + "; CREATE TABLE rest PARTITION OF t DEFAULT; INSERT INTO t (at) VALUES ('2026-11-22 03:00+00')")
    sql("CREATE TABLE other PARTITION OF t FOR VALUES FROM ('2026-11-22 12:00') TO ('2026-11-23 12:00')")
    layout = DAY.model_copy(update={"premake": 2})
    plan = partitions.premake(main, layout, T, now=NOON)
    main.rollback()
    assert plan[0].statement == "SET LOCAL lock_timeout = 10000"
    assert [step.table and step.table.name for step in plan] == [
        None, None, "t_p2026_11_21", "t_p2026_11_22", "t_p2026_11_23",
    ]  # fmt: skip
    assert sql("SELECT count(*) FROM pg_inherits WHERE inhparent = 't'::regclass") == [(2,)]
    for _ in range(2):  # as if two had made the same plan
        assert [result.problem for result in partitions.run(target, plan)] == [None, None, None]
    assert dict(sql(BOUNDS, "t")) == {
        "rest": "DEFAULT",
        "other": "FOR VALUES FROM ('2026-11-22 12:00:00+00') TO ('2026-11-23 12:00:00+00')",
        "t_p2026_11_21": "FOR VALUES FROM ('2026-11-21 00:00:00+00') TO ('2026-11-22 00:00:00+00')",
        "t_p2026_11_22": "FOR VALUES FROM ('2026-11-22 00:00:00+00') TO ('2026-11-22 12:00:00+00')",
        "t_p2026_11_23": "FOR VALUES FROM ('2026-11-23 12:00:00+00') TO ('2026-11-24 00:00:00+00')",
    }
    assert sql("SELECT count(*) FROM t_p2026_11_22") == [(1,)]
    assert partitions.premake(main, layout, T, now=NOON) == []
    assert partitions.premake(main, LIKE, T, now=NOON) == []


def days(main: Connection, target: Target, sql: Ask, kind: str) -> tuple[Partition, Table]:
    """A parent with four days, 18 to 21 November, and one of 17 November that somebody else made."""
    if kind == "native":
        sql(f"{NATIVE}; CREATE TABLE rest PARTITION OF t DEFAULT")
        sql("CREATE TABLE t_p2026_11_17 PARTITION OF t FOR VALUES FROM ('2026-11-17') TO ('2026-11-18')")
        parent, layout = T, DAY
    else:
        sql("CREATE TABLE l (a int); CREATE TABLE l_17 (a int)")
        parent, layout = Table("public", "l"), LIKE
    for day in (18, 19, 20, 21):
        place(main, target, layout, parent, moment=utc(f"2026-11-{day} 09:00"), suffix=f"{day}")
    main.rollback()
    return layout, parent


@pytest.mark.parametrize("kind", ["native", "like"])
@pytest.mark.parametrize("how", ["detach", "drop"])
def test_old_partitions_of_ours_leave(main: Connection, target: Target, sql: Ask, kind: str, how: str) -> None:
    """Those that ended by the cutoff: detached tables stay, dropped ones go, and what others made is not touched."""
    layout, parent = days(main, target, sql, kind)
    prefix = "t_p2026_11_" if kind == "native" else "l_"
    layout = layout.model_copy(update={"retention_days": 1, "retention": how})
    plan = partitions.retention(main, layout, parent, now=NOON, cutoff=utc("2026-11-20 08:59:59"))
    main.rollback()
    gone = ["18", "19"] if kind == "native" else ["18"]  # a like table ends when the next one's first row comes
    assert [step.table.name for step in plan if step.table] == [f"{prefix}{day}" for day in gone]
    for _ in range(2):
        assert [result.problem for result in partitions.run(target, plan)] == [None] * len(gone)
    there = {day for day in range(17, 22) if sql("SELECT to_regclass(%s)", f"{prefix}{day}") != [(None,)]}
    assert there == ({17, 18, 19, 20, 21} if how == "detach" else {17, 20, 21} | ({19} if kind == "like" else set()))
    register = "SELECT count(*), count(detached_at) FROM headrace.dispatch_partition"
    assert sql(register) == [(4, len(gone)) if how == "detach" else (4 - len(gone), 0)]
    if kind == "native":
        assert [name for name, _ in sql(BOUNDS, "t")] == ["rest", *(f"{prefix}{day}" for day in (17, 20, 21))]
    assert partitions.retention(main, layout, parent, now=NOON, cutoff=utc("2026-11-20 08:59:59")) == []


@pytest.mark.parametrize("kind", ["native", "like"])
def test_the_newest_partition_never_leaves(main: Connection, target: Target, sql: Ask, kind: str) -> None:
    """However long nothing has come; and the cutoff is never in the future."""
    layout, parent = days(main, target, sql, kind)
    layout = layout.model_copy(update={"retention_days": 1})
    plan = partitions.retention(main, layout, parent, now=utc("2036-01-01"), cutoff=utc("2036-01-01"))
    assert [step.table.name[-2:] for step in plan if step.table] == ["18", "19", "20"]
    plan = partitions.retention(main, layout, parent, now=utc("2026-11-19 12:00"), cutoff=utc("2036-01-01"))
    assert [step.table.name[-2:] for step in plan if step.table] == ["18"]
    assert partitions.retention(main, LIKE, parent, now=NOON, cutoff=NOON) == []


def test_what_people_took_out_is_never_dropped(main: Connection, target: Target, sql: Ask) -> None:
    """A partition that was detached by hand is kept, one that was dropped by hand is forgotten."""
    layout, _ = days(main, target, sql, "native")
    sql("ALTER TABLE t DETACH PARTITION t_p2026_11_18; DROP TABLE t_p2026_11_19")
    layout = layout.model_copy(update={"retention_days": 1, "retention": "drop"})
    plan = partitions.retention(main, layout, T, now=NOON, cutoff=NOON)
    main.rollback()
    assert [result.problem for result in partitions.run(target, plan)] == [None] * 3
    assert sql("SELECT table_name, detached_at IS NULL FROM headrace.dispatch_partition ORDER BY 1") == [
        ("t_p2026_11_18", False), ("t_p2026_11_21", True),
    ]  # fmt: skip
    assert sql("SELECT to_regclass('t_p2026_11_18') IS NULL, to_regclass('t_p2026_11_20') IS NULL") == [(False, True)]


def test_a_row_that_is_later_than_retention_has_a_place(main: Connection, target: Target, sql: Ask) -> None:
    """The day's name is taken by its detached table: the new partition has a number, and is ours as well."""
    layout, _ = days(main, target, sql, "native")
    layout = layout.model_copy(update={"retention_days": 1})
    partitions.run(target, partitions.retention(main, layout, T, now=NOON, cutoff=utc("2026-11-19")))
    assert place(main, target, moment=utc("2026-11-18 23:00")).name == "t_p2026_11_18_2"


@pytest.mark.parametrize("how", ["detach", "drop"])
def test_a_locked_partition_is_left_for_next_time(main: Connection, target: Target, sql: Ask, how: str) -> None:
    """It is reported, what is free leaves nevertheless, and nothing is half done."""
    layout, _ = days(main, target, sql, "native")
    layout = layout.model_copy(update={"retention_days": 1, "retention": how})
    plan = partitions.retention(main, layout, T, now=NOON, cutoff=utc("2026-11-20"), lock=SHORT)
    main.rollback()
    with closing(held(target, "LOCK TABLE public.t_p2026_11_18 IN ACCESS SHARE MODE")):
        first, second = partitions.run(target, plan)
    assert first.problem is not None and "t_p2026_11_18" in first.problem and "lock" in first.problem
    assert second.problem is None
    assert [name for name, _ in sql(BOUNDS, "t")] == ["rest", *(f"t_p2026_11_{day}" for day in (17, 18, 20, 21))]
    assert sql("SELECT detached_at FROM headrace.dispatch_partition WHERE table_name = 't_p2026_11_18'") == [(None,)]


@pytest.mark.parametrize("kind", ["native", "like"])
def test_partitions_are_listed(main: Connection, target: Target, sql: Ask, kind: str) -> None:
    """With bounds, sizes, whose they are, and whether the default partition has rows."""
    _, parent = days(main, target, sql, kind)
    if kind == "like":
        rows = partitions.listing(main, parent)
        assert [(row.table.name, row.kind, row.is_registered, row.bound) for row in rows] == [
            (f"l_{day}", "like", True, None) for day in (18, 19, 20, 21)
        ]
        return
    sql("INSERT INTO t (id, at) SELECT 1, '2026-11-18 12:00' FROM generate_series(1, 100); ANALYZE t_p2026_11_18")
    rows = partitions.listing(main, parent)
    main.rollback()
    assert [(row.table.name, row.is_registered, row.has_rows) for row in rows] == [
        *((f"t_p2026_11_{day}", True, None) for day in (18, 19, 20, 21)),
        ("rest", False, False), ("t_p2026_11_17", False, None),
    ]  # fmt: skip
    assert (rows[0].rows, rows[0].bytes > 0) == (100, True)
    assert rows[0].bound == "FOR VALUES FROM ('2026-11-18 00:00:00+00') TO ('2026-11-19 00:00:00+00')"
    sql("INSERT INTO t (at) VALUES ('2001-01-01')")
    assert [row.has_rows for row in partitions.listing(main, parent) if row.bound == "DEFAULT"] == [True]

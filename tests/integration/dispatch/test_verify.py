"""Verify: what differs between source and target is named, and what is only on its way is not called wrong."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.integration.dispatch.conftest import Queue, run
from workers import execution
from workers.dispatch import positions, pump, verification
from workers.dispatch.verification import Comparison
from workers.errors import PermanentFailure
from workers.settings import Settings

Conf = Callable[..., Settings]
PLAIN = {"mode": "plain", "partition": {"kind": "none"}}
COLUMNS = "id bigint PRIMARY KEY, at timestamptz, v text"


@pytest.fixture
def made(queue: Queue, dispatch_conf: Conf) -> Callable[..., Settings]:
    """Make a source table with a trigger, one of the same columns as the destination dst.t, and a consumer."""

    def make(columns: str = COLUMNS, target_columns: str | None = None, *options: str, **keys: Any) -> Settings:
        queue.logged("t", columns, *options)
        queue.ask("CREATE SCHEMA dst")
        queue.ask(f"CREATE TABLE dst.t ({target_columns or columns})")
        own = {"target": "dst.t", **keys.pop("own", {})}
        settings = dispatch_conf(queue.dsn, **{"tables": {"public.t": own}, **keys})
        positions.register(settings, "cube")
        return settings

    return make


def drain(settings: Settings, queue: Queue) -> None:
    """Apply everything up to now."""
    queue.tick()
    execution.load_rooms()
    assert execution.run_here(pump.look(settings, "cube"), settings, timeout=timedelta(seconds=20)) == []


def rows(queue: Queue, count: int, table: str = "t") -> None:
    """Rows 1..count, one a day from 2026-01-01."""
    queue.ask(
        f"INSERT INTO {table} (id, at, v) SELECT i, '2025-12-31 12:00Z'::timestamptz + i * interval '1 day', 'v' || i"
        " FROM generate_series(1, %s) i", count,
    )  # fmt: skip


def only(settings: Settings, **options: Any) -> Comparison:
    """The comparison of the one destination."""
    (found,) = verification.verify(settings, "cube", **options)
    return found


def newest_partition(queue: Queue) -> str:
    """The newest table like dst.t, as SQL."""
    found = queue.ask(
        "SELECT format('%I.%I', table_schema, table_name) FROM headrace.dispatch_partition ORDER BY covers_from"
    )
    return str(found[-1][0])


def test_plain_that_is_equal(made: Callable[..., Settings], queue: Queue) -> None:
    """After every event is applied, plain has the source's rows, and nothing waits."""
    conf = made(**PLAIN)
    rows(queue, 30)
    queue.ask("UPDATE t SET v = 'é \\ \t' WHERE id = 3")
    queue.ask("DELETE FROM t WHERE id = 4")
    drain(conf, queue)
    found = only(conf)
    assert (found.verdict, found.source_rows, found.target_rows) == ("equal", 29, 29)
    assert (found.source, found.destination, found.looked_at, found.mode) == ("public.t", "dst.t", ("dst.t",), "plain")
    assert (found.column, found.pending_events, found.failed_events, found.notes) == (None, 0, 0, ())


def test_plain_that_differs(made: Callable[..., Settings], queue: Queue) -> None:
    """In plain a row too few, one too many and one that is another are named by their keys."""
    conf = made(**PLAIN)
    rows(queue, 12)
    drain(conf, queue)
    queue.ask("DELETE FROM dst.t WHERE id = 2")
    queue.ask("UPDATE dst.t SET v = NULL WHERE id = 10")
    queue.ask("INSERT INTO dst.t VALUES (99, NULL, '')")
    found = only(conf)
    assert (found.missing, found.different, found.extra) == (('["2"]',), ('["10"]',), ('["99"]',))
    assert (found.verdict, found.source_rows, found.target_rows, found.pending_keys) == ("different", 12, 12, 0)


def test_empty_text_is_not_null(made: Callable[..., Settings], queue: Queue) -> None:
    """NULL at the source and '' at the target are different."""
    conf = made(**PLAIN)
    queue.ask("INSERT INTO t VALUES (1, NULL, NULL)")
    drain(conf, queue)
    assert only(conf).verdict == "equal"
    queue.ask("UPDATE dst.t SET v = ''")
    assert only(conf).different == ('["1"]',)


def test_a_doubled_row_differs(made: Callable[..., Settings], queue: Queue) -> None:
    """In plain a key that the target has twice is different."""
    conf = made(target_columns="id bigint, at timestamptz, v text", **PLAIN)
    rows(queue, 2)
    drain(conf, queue)
    queue.ask("INSERT INTO dst.t SELECT * FROM dst.t WHERE id = 2")
    found = only(conf)
    assert (found.verdict, found.different, found.target_rows) == ("different", ('["2"]',), 2)


def test_only_so_many_keys_are_named(made: Callable[..., Settings], queue: Queue) -> None:
    """All differences are counted, and as many named as were asked for, in the order of the keys' texts."""
    conf = made(**PLAIN)
    rows(queue, 12)
    drain(conf, queue)
    queue.ask("TRUNCATE dst.t")
    found = only(conf, limit=3)
    assert (found.missing, found.missing_count) == (('["1"]', '["10"]', '["11"]'), 12)


def test_more_rows_than_are_fetched_at_once(made: Callable[..., Settings], queue: Queue) -> None:
    """Large tables are read in portions, and the last row is compared as the first."""
    conf = made(**PLAIN)
    rows(queue, 12_000)
    drain(conf, queue)
    queue.ask("UPDATE dst.t SET v = 'x' WHERE id IN (1, 9999)")
    found = only(conf)
    assert (found.source_rows, found.target_rows, found.different) == (12_000, 12_000, ('["1"]', '["9999"]'))


def test_events_on_their_way_are_pending(made: Callable[..., Settings], queue: Queue) -> None:
    """What is changed, added or deleted after the last applied tick is pending, whether a tick ended it or not."""
    conf = made(**PLAIN)
    rows(queue, 5)
    drain(conf, queue)
    queue.ask("UPDATE t SET v = 'new' WHERE id = 1")
    queue.tick()
    queue.ask("DELETE FROM t WHERE id = 2")
    queue.ask("INSERT INTO t VALUES (6)")
    found = only(conf)
    assert (found.verdict, found.pending_keys, found.pending_events) == ("pending", 3, 3)
    assert (found.missing, found.extra, found.different) == ((), (), ())
    queue.ask("DELETE FROM dst.t WHERE id = 3")
    found = only(conf)
    assert (found.verdict, found.missing, found.pending_keys) == ("different", ('["3"]',), 3)
    queue.ask("INSERT INTO dst.t SELECT * FROM t WHERE id = 3")
    drain(conf, queue)
    found = only(conf)
    assert (found.verdict, found.pending_keys, found.pending_events) == ("equal", 0, 0)


def test_an_open_batch_is_pending(made: Callable[..., Settings], queue: Queue) -> None:
    """Events of a batch that is open but not applied are on their way."""
    conf = made(**PLAIN)
    rows(queue, 2)
    queue.tick()
    assert len(pump.look(conf, "cube")) == 1  # it opened the batch
    found = only(conf)
    assert (found.verdict, found.pending_keys, found.source_rows, found.target_rows) == ("pending", 2, 2, 0)


def test_keys_of_events_written_in_other_styles(made: Callable[..., Settings], queue: Queue) -> None:
    """An event on its way is of the row that it means, whatever its producer's time zone."""
    conf = made("at timestamptz PRIMARY KEY, v text", **PLAIN)
    run(queue.dsn, "SET TimeZone = 'America/New_York'; INSERT INTO t VALUES ('2026-01-01 00:00Z', 'a')")
    found = only(conf)
    assert (found.verdict, found.pending_keys, found.missing) == ("pending", 1, ())


def test_a_truncate_on_its_way(made: Callable[..., Settings], queue: Queue) -> None:
    """While a TRUNCATE is on its way, every difference of its table may be its doing."""
    conf = made(on_truncate="delete_all", **PLAIN)
    queue.ask("CREATE TRIGGER cut AFTER TRUNCATE ON t FOR EACH STATEMENT EXECUTE FUNCTION pgq.logutriga('q')")
    rows(queue, 4)
    drain(conf, queue)
    queue.ask("TRUNCATE t")
    found = only(conf)
    assert (found.verdict, found.pending_keys) == ("pending", 4)
    drain(conf, queue)
    assert only(conf).verdict == "equal"


def test_too_much_on_its_way_to_tell(
    made: Callable[..., Settings], queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where more events wait than are held in memory, a difference is neither pending nor wrong; a window helps."""
    conf = made(**PLAIN)
    rows(queue, 5)
    drain(conf, queue)
    monkeypatch.setattr(verification, "PENDING_EVENTS", 2)
    queue.ask("UPDATE t SET v = 'new' WHERE id > 2")
    found = only(conf)
    assert (found.verdict, found.pending_events, found.different_count) == ("unknown", None, 3)
    assert "--until" in found.notes[-1]
    assert only(conf, column="at", until=datetime(2026, 1, 3, tzinfo=UTC)).verdict == "equal"


def test_a_window(made: Callable[..., Settings], queue: Queue) -> None:
    """Only rows whose column is in [since, until) are compared."""
    conf = made(**PLAIN)
    rows(queue, 10)
    drain(conf, queue)
    queue.ask("DELETE FROM dst.t WHERE id = 1")
    day = datetime(2026, 1, 1, 12, tzinfo=UTC)
    within = only(conf, column="at", since=day + timedelta(days=1), until=day + timedelta(days=4))
    assert (within.verdict, within.column, within.source_rows, within.target_rows) == ("equal", "at", 3, 3)
    before = only(conf, column="at", until=day + timedelta(days=1))
    assert (before.verdict, before.source_rows, before.missing) == ("different", 1, ('["1"]',))


def test_a_window_without_a_column(made: Callable[..., Settings], queue: Queue) -> None:
    """Where nothing says by which column, whole tables are compared, and a note says so; a column must be a time."""
    conf = made(**PLAIN)
    rows(queue, 3)
    drain(conf, queue)
    since = datetime(2026, 1, 3, tzinfo=UTC)
    whole = only(conf, since=since)
    assert (whole.verdict, whole.column, whole.source_rows) == ("equal", None, 3)
    assert "--column" in whole.notes[0]
    for name in ("v", "nowhere"):
        found = only(conf, column=name, since=since)
        assert (found.verdict, "--column" in found.notes[0]) == ("unknown", True)


def test_native_partitions_by_a_field(made: Callable[..., Settings], queue: Queue) -> None:
    """A natively partitioned destination is read through its parent, and its field is the window's column."""
    conf = made(
        target_columns="id bigint, at timestamptz, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at",
        mode="plain", partition={"kind": "native", "by": "field:at"},
    )  # fmt: skip
    rows(queue, 6)
    drain(conf, queue)
    since = datetime(2026, 1, 3, tzinfo=UTC)
    found = only(conf, since=since)
    assert (found.verdict, found.column, found.source_rows, found.target_rows) == ("equal", "at", 4, 4)
    queue.ask("UPDATE dst.t SET v = 'x' WHERE id IN (1, 5)")
    assert only(conf, since=since).different == ('["5"]',)
    assert only(conf).different == ('["1"]', '["5"]')


def test_keep_latest_compares_the_newest_version(made: Callable[..., Settings], queue: Queue) -> None:
    """In keep_latest the newest table that has a row counts, and what is only in older ones was deleted since."""
    conf = made(mode="keep_latest", partition={"dateformat": "HH24_MI_SS_US"})
    rows(queue, 3)
    drain(conf, queue)
    queue.ask("UPDATE t SET v = 'second' WHERE id = 1")
    queue.ask("DELETE FROM t WHERE id = 2")
    drain(conf, queue)
    found = only(conf)
    assert len(found.looked_at) == 2
    assert (found.verdict, found.extra, found.source_rows, found.target_rows) == ("equal", ('["2"]',), 2, 3)
    assert "deleted" in found.notes[0]
    queue.ask(f"UPDATE {newest_partition(queue)} SET v = 'v1'")
    found = only(conf)
    assert (found.verdict, found.different) == ("different", ('["1"]',))
    queue.ask(f"DELETE FROM {newest_partition(queue)}")
    queue.ask(f"DELETE FROM {found.looked_at[0]} WHERE id = 3")
    found = only(conf)
    assert (found.verdict, found.missing, found.different) == ("different", ('["3"]',), ('["1"]',))


def test_keep_latest_without_partitions(made: Callable[..., Settings], queue: Queue) -> None:
    """With an empty dateformat the destination itself is read, and a row too many is wrong."""
    conf = made(mode="keep_latest", partition={"dateformat": ""})
    rows(queue, 3)
    queue.ask("DELETE FROM t WHERE id = 3")
    drain(conf, queue)
    assert (only(conf).verdict, only(conf).looked_at) == ("equal", ("dst.t",))
    queue.ask("INSERT INTO dst.t VALUES (3)")
    assert (only(conf).verdict, only(conf).extra) == ("different", ('["3"]',))


def test_a_row_that_moved_to_another_day(made: Callable[..., Settings], queue: Queue) -> None:
    """Where days go by a field, each version of a row may be the newest: one that is the source's is enough."""
    conf = made(
        target_columns="id bigint, at timestamptz, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at",
        mode="keep_latest", partition={"kind": "native", "by": "field:at"},
    )  # fmt: skip
    rows(queue, 3)
    queue.ask("UPDATE t SET at = at - interval '2 days', v = 'moved' WHERE id = 3")
    drain(conf, queue)
    assert queue.ask("SELECT count(*) FROM dst.t") == [(4,)]
    found = only(conf)
    assert (found.verdict, found.source_rows, found.target_rows) == ("equal", 3, 3)
    queue.ask("DELETE FROM dst.t WHERE v = 'moved'")
    assert (only(conf).verdict, only(conf).different) == ("different", ('["3"]',))


def test_native_partitions_by_batch_time(made: Callable[..., Settings], queue: Queue) -> None:
    """Where the time of the batch is filled in, the latest one says which version is the newest."""
    conf = made(
        target_columns=f"{COLUMNS.replace(' PRIMARY KEY', '')}, day timestamptz) PARTITION BY RANGE (day",
        mode="keep_latest", partition={"kind": "native", "by": "batch_time"},
    )  # fmt: skip
    rows(queue, 2)
    drain(conf, queue)
    queue.ask("INSERT INTO dst.t SELECT id, at, 'of an older day', day - interval '1 minute' FROM dst.t WHERE id = 1")
    assert only(conf).verdict == "equal"
    queue.ask("UPDATE dst.t SET day = day - interval '2 minutes' WHERE v = 'v1'")
    assert (only(conf).verdict, only(conf).different) == ("different", ('["1"]',))


def test_nothing_was_dispatched_yet(made: Callable[..., Settings], queue: Queue) -> None:
    """Before the first batch there is no table like the destination, and every row is on its way."""
    conf = made(mode="keep_latest")
    rows(queue, 2)
    found = only(conf)
    assert (found.verdict, found.pending_keys, found.looked_at) == ("pending", 2, ())


def test_keep_all_compares_keys(made: Callable[..., Settings], queue: Queue) -> None:
    """In keep_all every row of the source must be there at least once, and what was deleted may be there."""
    conf = made(mode="keep_all", on_delete="ignore")
    rows(queue, 4)
    queue.ask("UPDATE t SET v = 'second' WHERE id = 1")
    queue.ask("DELETE FROM t WHERE id = 2")
    drain(conf, queue)
    found = only(conf)
    assert (found.verdict, found.source_rows, found.target_rows, found.extra) == ("equal", 3, 4, ('["2"]',))
    assert "_ev_id" in found.notes[0]
    queue.ask(f"DELETE FROM {newest_partition(queue)} WHERE id = 3")
    assert (only(conf).verdict, only(conf).missing) == ("different", ('["3"]',))


def test_keep_all_with_numbers_compares_the_newest(made: Callable[..., Settings], queue: Queue) -> None:
    """With _ev_id the newest version must be the source's, and a tombstone says that the row is gone."""
    conf = made(mode="keep_all", on_delete="tombstone", meta_columns=["_op", "_ev_id"])
    rows(queue, 3)
    queue.ask("UPDATE t SET v = 'second' WHERE id = 1")
    queue.ask("DELETE FROM t WHERE id = 2")
    drain(conf, queue)
    found = only(conf)
    assert (found.verdict, found.source_rows, found.target_rows, found.extra) == ("equal", 2, 2, ())
    queue.ask(f"DELETE FROM {newest_partition(queue)} WHERE v = 'second'")
    assert (only(conf).verdict, only(conf).different) == ("different", ('["1"]',))


def test_rows_without_a_key_are_counted(queue: Queue, dispatch_conf: Conf) -> None:
    """Without a key rows are only counted: fewer than the source has are wrong, unless events are on their way."""
    queue.logged("t", "v text")
    queue.ask("CREATE SCHEMA dst; CREATE TABLE dst.t (v text)")
    conf = dispatch_conf(queue.dsn, mode="keep_all", tables={"public.t": {"target": "dst.t"}})
    positions.register(conf, "cube")
    queue.ask("INSERT INTO t VALUES ('a'), ('a')")
    assert (only(conf).verdict, only(conf).source_rows, only(conf).target_rows) == ("pending", 2, 0)
    drain(conf, queue)
    found = only(conf)
    assert (found.verdict, found.source_rows, found.target_rows) == ("equal", 2, 2)
    assert "counted" in found.notes[0]
    queue.ask("INSERT INTO t VALUES ('b')")
    assert only(conf).verdict == "pending"
    drain(conf, queue)
    queue.ask(f"DELETE FROM {newest_partition(queue)}")
    assert (only(conf).verdict, only(conf).target_rows) == ("different", 0)


def test_leaves_go_by_their_root(queue: Queue, dispatch_conf: Conf) -> None:
    """A partitioned source table is one table, whose leaves' events are its own."""
    queue.logged("t", "id bigint PRIMARY KEY, v text) PARTITION BY RANGE (id")
    queue.ask("CREATE TABLE t_a PARTITION OF t FOR VALUES FROM (0) TO (10)")
    queue.ask("CREATE TABLE t_b PARTITION OF t FOR VALUES FROM (10) TO (20)")
    queue.ask("CREATE SCHEMA dst; CREATE TABLE dst.t (id bigint PRIMARY KEY, v text)")
    conf = dispatch_conf(queue.dsn, tables={"public.t": {"target": "dst.t"}}, **PLAIN)
    positions.register(conf, "cube")
    queue.ask("INSERT INTO t VALUES (1, 'a'), (11, 'b')")
    drain(conf, queue)
    queue.ask("INSERT INTO t VALUES (12, 'c')")
    found = only(conf)
    assert (found.source, found.verdict, found.pending_keys, found.source_rows) == ("public.t", "pending", 1, 3)
    drain(conf, queue)
    queue.ask("DELETE FROM dst.t WHERE id = 11")
    assert (only(conf).verdict, only(conf).missing) == ("different", ('["11"]',))


def test_leaves_of_their_own(queue: Queue, dispatch_conf: Conf) -> None:
    """Without leaf_to_root each leaf is compared with its own destination."""
    queue.logged("t", "id bigint PRIMARY KEY, v text) PARTITION BY RANGE (id")
    queue.ask("CREATE TABLE t_a PARTITION OF t FOR VALUES FROM (0) TO (10)")
    queue.ask("CREATE TABLE t_b PARTITION OF t FOR VALUES FROM (10) TO (20)")
    queue.ask("CREATE SCHEMA dst; CREATE TABLE dst.a (id bigint, v text); CREATE TABLE dst.b (id bigint, v text)")
    own = {"public.t_a": {"target": "dst.a"}, "public.t_b": {"target": "dst.b"}}
    conf = dispatch_conf(queue.dsn, tables=own, leaf_to_root=False, **PLAIN)
    positions.register(conf, "cube")
    queue.ask("INSERT INTO t VALUES (1, 'a'), (11, 'b')")
    drain(conf, queue)
    queue.ask("DELETE FROM dst.b")
    found = {one.destination: one for one in verification.verify(conf, "cube")}
    assert {where: one.verdict for where, one in found.items()} == {"dst.a": "equal", "dst.b": "different"}
    assert (found["dst.b"].source, found["dst.b"].missing) == ("public.t_b", ('["11"]',))


def test_tables_that_lose_their_suffix(queue: Queue, dispatch_conf: Conf) -> None:
    """Several source tables of one destination are compared with it together."""
    queue.logged("t_2025", COLUMNS)
    queue.logged("t_2026", COLUMNS)
    queue.ask(f"CREATE TABLE t ({COLUMNS})")
    conf = dispatch_conf(queue.dsn, strip_suffix=r"_\d+", **PLAIN)
    positions.register(conf, "cube")
    rows(queue, 3, "t_2025")
    queue.ask("INSERT INTO t_2026 VALUES (10), (11)")
    drain(conf, queue)
    queue.ask("DELETE FROM t_2026 WHERE id = 10")
    found = only(conf, tables=["public.t_2025"])
    assert (found.source, found.source_rows, found.target_rows) == ("public.t", 4, 5)
    assert (found.verdict, found.pending_keys) == ("pending", 1)


def test_renamed_left_out_and_converted(made: Callable[..., Settings], queue: Queue) -> None:
    """Columns are compared under their names at the target and as its types read them; left-out ones are not."""
    conf = made(
        "id bigint PRIMARY KEY, secret text, doc json, ok boolean, code char(5), size numeric",
        "num integer PRIMARY KEY, secret text, doc jsonb, ok text, code char(5), size numeric(6, 1), _tick bigint",
        own={"columns": {"id": "num"}, "skip_columns": ["secret"]}, meta_columns=["_tick"], **PLAIN,
    )  # fmt: skip
    queue.ask("""INSERT INTO t VALUES (1, 'x', '{"b": 1,   "a": 2}', true, 'ab', 1.25)""")
    drain(conf, queue)
    assert only(conf).verdict == "equal"
    queue.ask("UPDATE dst.t SET size = 1.4")
    assert only(conf).different == ('["1"]',)


def test_what_the_trigger_ignores(made: Callable[..., Settings], queue: Queue) -> None:
    """Columns that the trigger leaves out are not compared, and the key that it names is the row's."""
    conf = made("id bigint, v text, noise text", None, "pkey=id", "ignore=noise", **PLAIN)
    queue.ask("INSERT INTO t VALUES (1, 'a', 'b')")
    drain(conf, queue)
    found = only(conf)
    assert (found.verdict, found.target_rows, found.notes) == ("equal", 1, ())
    queue.ask("UPDATE dst.t SET v = 'x'")
    assert only(conf).different == ('["1"]',)


def test_failed_events_are_counted(made: Callable[..., Settings], queue: Queue) -> None:
    """A difference that failed events may explain comes with their number."""
    conf = made(target_columns="id bigint PRIMARY KEY, at timestamptz, v varchar(3)", **PLAIN)
    queue.ask("INSERT INTO t VALUES (1, NULL, 'abc'), (2, NULL, 'too long')")
    drain(conf, queue)
    found = only(conf)
    assert (found.verdict, found.failed_events, found.missing) == ("different", 1, ('["2"]',))
    assert any("failed cube" in note for note in found.notes)


def test_hostile_names(queue: Queue, dispatch_conf: Conf) -> None:
    """Names with quotes, braces, dots and commas are names."""
    queue.ask('CREATE SCHEMA "S; x"')
    queue.logged('"S; x"."T {t}"', '"k ""1""" text, "a.b" text, "{v}" text, PRIMARY KEY ("k ""1""", "a.b")')
    queue.ask('CREATE SCHEMA dst; CREATE TABLE dst."T\'t" (LIKE "S; x"."T {t}")')
    conf = dispatch_conf(queue.dsn, tables={"S; x.T {t}": {"target": "dst.T't"}}, **PLAIN)
    positions.register(conf, "cube")
    queue.ask("INSERT INTO \"S; x\".\"T {t}\" VALUES ('\"1\"', 'é,', 'x'), ('%s', '', NULL)")
    drain(conf, queue)
    assert (only(conf).verdict, only(conf).target_rows) == ("equal", 2)
    queue.ask("""DELETE FROM dst."T't" WHERE "a.b" = 'é,'""")
    queue.ask('UPDATE "S; x"."T {t}" SET "{v}" = \'y\' WHERE "a.b" = \'\'')
    found = only(conf)
    assert (found.missing, found.pending_keys) == (('["\\"1\\"","é,"]',), 1)


def test_per_cent_in_names(made: Callable[..., Settings], queue: Queue) -> None:
    """A per cent sign in a column's name is read as a part of it."""
    conf = made('id bigint PRIMARY KEY, "100%s" text', **PLAIN)
    queue.ask("INSERT INTO t VALUES (1, 'a')")
    found = only(conf)
    assert (found.verdict, found.pending_keys) == ("pending", 1)
    queue.ask("INSERT INTO dst.t VALUES (1, 'a')")
    assert only(conf).verdict == "equal"


DRIVER = "sql_files.Query gives the driver {} or parameters together with names that have a per cent sign: TypeError"


def test_per_cent_in_a_key(queue: Queue, dispatch_conf: Conf) -> None:
    """A per cent sign in the names of a table and its key does not keep events from being applied and compared."""
    queue.logged('"50%s"', '"100%(x)s" text PRIMARY KEY, v text')
    queue.ask('CREATE SCHEMA dst; CREATE TABLE dst."50%s" (LIKE "50%s" INCLUDING ALL)')
    conf = dispatch_conf(queue.dsn, tables={"public.50%s": {"target": "dst.50%s"}}, **PLAIN)
    positions.register(conf, "cube")
    queue.ask("""INSERT INTO "50%s" VALUES ('1', 'a')""")
    queue.ask("""UPDATE "50%s" SET v = 'b'""")
    drain(conf, queue)
    found = only(conf)
    assert (found.verdict, found.target_rows, found.failed_events) == ("equal", 1, 0)


def test_one_table_does_not_spoil_the_others(queue: Queue, dispatch_conf: Conf) -> None:
    """A table that cannot be compared is reported with the reason, and the others are compared all the same."""
    queue.logged("a", "id bigint PRIMARY KEY, v text")
    queue.logged("b", "id bigint PRIMARY KEY, v text")
    queue.logged("c", "id bigint PRIMARY KEY, v text")
    queue.ask("CREATE SCHEMA dst; CREATE TABLE dst.a (id bigint, v integer); CREATE TABLE dst.c (LIKE c)")
    own = {f"public.{name}": {"target": f"dst.{name}"} for name in "abc"}
    conf = dispatch_conf(queue.dsn, tables=own, **PLAIN)
    positions.register(conf, "cube")
    for name in "abc":
        queue.ask(f"INSERT INTO {name} VALUES (1, 'no number')")
    drain(conf, queue)
    found = {one.source: one for one in verification.verify(conf, "cube")}
    assert [found[f"public.{name}"].verdict for name in "abc"] == ["unknown", "unknown", "equal"]
    assert "integer" in found["public.a"].notes[0]
    assert "not there at the target" in found["public.b"].notes[0]
    assert [one.source for one in verification.verify(conf, "cube", tables=["public.c"])] == ["public.c"]


def test_what_is_not_there_is_refused(made: Callable[..., Settings], queue: Queue, dispatch_conf: Conf) -> None:
    """A table without a trigger, and a consumer that is not in the settings, are refused by name."""
    conf = made(**PLAIN)
    with pytest.raises(PermanentFailure, match=r"no source table 'public.u'.*did you mean 'public.t'"):
        verification.verify(conf, "cube", tables=["public.u"])
    with pytest.raises(PermanentFailure, match="no consumer 'cub'"):
        verification.verify(conf, "cub")
    queue.ask("DROP TABLE t")
    with pytest.raises(PermanentFailure, match="no trigger"):
        verification.verify(conf, "cube")


@pytest.mark.parametrize("kind", ["logutriga", "jsontriga"])
def test_with_the_c_extension(c_pgq_dsn: str, make_queue: Callable[..., Queue], dispatch_conf: Conf, kind: str) -> None:
    """With PgQ in C and either trigger's events, what is on its way is pending, and what is not is wrong."""
    queue = make_queue(c_pgq_dsn)
    queue.logged("t", COLUMNS, kind=kind)
    queue.ask(f"CREATE SCHEMA dst; CREATE TABLE dst.t ({COLUMNS})")
    conf = dispatch_conf(c_pgq_dsn, tables={"public.t": {"target": "dst.t"}}, **PLAIN)
    positions.register(conf, "cube")
    rows(queue, 3)
    drain(conf, queue)
    assert only(conf).verdict == "equal"
    queue.ask("DELETE FROM dst.t WHERE id = 1")
    queue.ask("UPDATE t SET v = 'new' WHERE id = 2")
    found = only(conf)
    assert (found.verdict, found.missing, found.pending_keys) == ("different", ('["1"]',), 1)


def test_where_pgq_is_called_pgque(pgque_dsn: str, make_queue: Callable[..., Queue], dispatch_conf: Conf) -> None:
    """PgQ's schema may have another name."""
    queue = make_queue(pgque_dsn, "pgque")
    queue.logged("t", COLUMNS)
    queue.ask(f"CREATE SCHEMA dst; CREATE TABLE dst.t ({COLUMNS})")
    conf = dispatch_conf(pgque_dsn, pgq_schema="pgque", tables={"public.t": {"target": "dst.t"}}, **PLAIN)
    positions.register(conf, "cube")
    rows(queue, 1)
    found = only(conf)
    assert (found.verdict, found.pending_keys) == ("pending", 1)

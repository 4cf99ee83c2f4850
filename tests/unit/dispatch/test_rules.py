"""The pure decisions: which table goes where, what an event's type says, and what to do with an open batch."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from workers.dispatch import rules
from workers.dispatch.events import Kind, UnknownEvent, key_columns, kind_of
from workers.dispatch.names import Table, table
from workers.dispatch.source_store import Batch, fields
from workers.dispatch.store import Position
from workers.dispatch.verdicts import verdict
from workers.dispatch_settings import Consumer

START, END = datetime(2026, 11, 21, tzinfo=UTC), datetime(2026, 11, 21, 0, 0, 1, tzinfo=UTC)
BATCH = Batch(7, "q", "cube", prev_tick=10, tick=11, start=START, end=END, events=100)


def consumer(**keys: object) -> Consumer:
    """A consumer of queue q."""
    return Consumer(queue="q", **keys)


@pytest.mark.parametrize(
    ("keys", "source", "goes_to"),
    [
        ({}, "public.t", "public.t"),
        ({"tables": {"public.t": {"target": "arch.readings"}}}, "public.t", "arch.readings"),
        ({"tables": {"public.t": {"target": "readings"}}}, "public.t", "public.readings"),
        ({"tables": {"public.t": {"ignore": True}}}, "public.t", None),
        ({"only_tables": ["hdb.*"]}, "public.t", None),
        ({"only_tables": ["hdb.*"]}, "hdb.att", "hdb.att"),
        ({"only_tables": ["hdb.*"], "tables": {"public.t": {}}}, "public.t", "public.t"),
        ({"skip_tables": ["*.tmp_*"]}, "public.tmp_1", None),
    ],
)
def test_a_table_goes_where_the_settings_say(keys: dict[str, object], source: str, goes_to: str | None) -> None:
    """A table's own section stands above the filters, and the target's schema is public if none is said."""
    own = rules.of(consumer(**keys), table(source))
    assert (str(own.destination) if own else None) == goes_to


def test_a_delete_is_an_error_only_where_all_versions_are_kept() -> None:
    """The default policy follows the mode, the table's own mode too."""
    one = consumer(mode="keep_all", tables={"public.t": {"mode": "plain"}})
    found = [own.on_delete for name in ("public.a", "public.t") if (own := rules.of(one, table(name)))]
    assert found == ["error", "delete"]


def test_columns_are_renamed_and_left_out() -> None:
    """What is skipped or not listed has no column at the target."""
    one = consumer(tables={"public.t": {"columns": {"a": "b"}, "only_columns": ["a", "c", "d"], "skip_columns": ["d"]}})
    own = rules.of(one, table("public.t"))
    assert own is not None and [own.renamed(name) for name in "abcd"] == ["b", None, "c", None]


@pytest.mark.parametrize(
    ("suffix", "name", "stripped"),
    [(None, "t_2026", "t_2026"), (r"_\d+", "t_2026", "t"), (r"_\d+", "t_2026_b", "t_2026_b"), (".*", "t", "t")],
)
def test_a_suffix_is_cut_off_the_end_only(suffix: str | None, name: str, stripped: str) -> None:
    """The expression must reach the name's end, and never takes all of it."""
    assert rules.stripped(consumer(strip_suffix=suffix), Table("s", name)) == Table("s", stripped)


@pytest.mark.parametrize(
    ("keys", "merges"),
    [
        ({}, False),
        ({"merge_events": 9}, False),
        ({"merge_events": 9, "partition": {"by": "event_time"}}, True),
        ({"merge_events": 9, "partition": {"kind": "none"}}, True),
        ({"merge_events": 9, "partition": {"dateformat": ""}}, True),
        ({"merge_events": 9, "partition": {"kind": "native"}}, False),
        ({"merge_events": 9, "partition": {"kind": "none"}, "tables": {"a.b": {"partition": {}}}}, False),
    ],
)
def test_ticks_are_merged_only_where_no_row_moves_by_it(keys: dict[str, object], merges: bool) -> None:
    """A batch of several ticks ends later, so that its rows would belong to another day."""
    assert rules.merges(consumer(**keys)) is merges


@pytest.mark.parametrize(
    "keys",
    [
        {"on_delete": "tombstone"},
        {"mode": "keep_all", "on_truncate": "tombstone"},
        {"tables": {"a.b": {"mode": "keep_all", "on_delete": "delete"}}},
        {"partition": {"by": "field:"}},
        {"partition": {"by": "moon"}},
        {"partition": {"timezone": "Mars/Olympus"}},
        {"strip_suffix": "("},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(keys: dict[str, object]) -> None:
    """Tombstones need _op, keep_all deletes nothing, zones and expressions must exist."""
    with pytest.raises(ValidationError):
        consumer(**keys)


@pytest.mark.parametrize(
    ("type_", "extra1", "extra2", "data", "kind"),
    [
        ("I:id", "s.t", None, "id=1", Kind("logutriga", "I", "s.t", "id")),
        ("U:a,b:c", "s.t", None, "a=1", Kind("logutriga", "U", "s.t", "a,b:c")),
        ("D:", "s.t", None, "a=1", Kind("logutriga", "D", "s.t", "")),
        ("R", "s.t", None, "", Kind("logutriga", "R", "s.t", "")),
        ("I", "s.t", "id", "id=1&b=%20", Kind("logutriga", "I", "s.t", "id")),
        ('{"op":"INSERT","table":["s","t.u"],"pkey":["id"]}', "s.t.u", None, "{}",
         Kind("jsontriga", "I", Table("s", "t.u"), ("id",))),
    ],
)  # fmt: skip
def test_an_event_says_its_operation_table_and_key(
    type_: str, extra1: str, extra2: str | None, data: str, kind: Kind
) -> None:
    """In each of the three forms that PgQ's triggers have written."""
    assert kind_of(type_, extra1, extra2, data) == kind


@pytest.mark.parametrize(
    ("type_", "extra1", "extra2", "data"),
    [
        ("", "s.t", None, ""),
        ("x:y", "s.t", None, ""),
        ("pgq.tick-id", "", None, ""),
        ("I:id", "", None, "id=1"),
        ("I", "s.t", None, "(id) values ('1')"),
        ("U", "s.t", "id=1", "a='2' where id='1'"),
        ("I", "s.t", None, "id=1"),
        ("{}", "s.t", None, "{}"),
        ("{", "s.t", None, "{}"),
    ],
)
def test_other_events_are_unknown(type_: str, extra1: str, extra2: str | None, data: str) -> None:
    """Those of sqltriga and logtriga, of control programs and of people."""
    with pytest.raises(UnknownEvent):
        kind_of(type_, extra1, extra2, data)


@pytest.mark.parametrize(
    ("keys", "columns", "found"),
    [
        ("", ["a"], ()),
        ("a,b", ["b", "a"], ("a", "b")),
        ("a,b", ["a,b", "c"], ("a,b",)),
        ("a,b,c", ["a", "b,c"], ("a", "b,c")),
        (("x,y",), [], ("x,y",)),
    ],
)
def test_commas_in_key_columns_are_told_apart_by_the_row(
    keys: str | tuple[str, ...], columns: list[str], found: tuple[str, ...]
) -> None:
    """logutriga joins the key's columns by commas that it does not escape."""
    assert key_columns(keys, columns) == found


@pytest.mark.parametrize("columns", [["c"], ["a,b", "c", "a", "b,c"]])
def test_a_key_that_cannot_be_told_apart_is_refused(columns: list[str]) -> None:
    """None of the row's columns fit, or several readings do."""
    with pytest.raises(ValueError, match="does not fit"):
        key_columns("a,b,c", columns)


def position(tick: int | None, state: str = "active", queue: str = "q", at: datetime | None = None) -> Position:
    """A consumer's position."""
    return Position(queue, "cube", tick, at, state, None, None, None)


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (None, "park"),
        (position(None), "park"),
        (position(10), "apply"),
        (position(11), "finish"),
        (position(9), "park"),
        (position(12), "park"),
        (position(10, "parked"), "wait"),
        (position(10, queue="other"), "park"),
        (position(10, at=START), "apply"),
        (position(11, at=END), "finish"),
        (position(10, at=END), "park"),
        (position(11, at=START), "park"),
    ],
)
def test_a_batch_is_applied_at_its_own_tick_alone(where: Position | None, what: str) -> None:
    """Just before it: apply; just after it: finish. Elsewhere, or at another time, nobody knows what was applied."""
    assert verdict("cube", where, BATCH).what == what


def test_a_batch_over_several_ticks_does_not_begin_in_its_middle() -> None:
    """A position between a merged batch's ticks is a lost one."""
    merged = Batch(7, "q", "cube", prev_tick=10, tick=15, start=START, end=END, events=0)
    assert [verdict("cube", position(tick), merged).what for tick in (10, 12, 15)] == ["apply", "park", "finish"]


def test_a_line_of_copy_is_cut_and_unescaped() -> None:
    """Tabs, line ends and backslashes inside a value are COPY's escapes."""
    assert fields("1\tI:a\ta=1\ts.t\t\t\n") == ["1", "I:a", "a=1", "s.t", "", ""]
    assert fields("1\t\\\\x\ta\\tb\\nc\ts.t\t\t\n") == ["1", "\\x", "a\tb\nc", "s.t", "", ""]

"""A request's states: given up, paused, cancelled, doubled, out of its window, its table gone: in every step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest

from tests.integration.repack import dumps
from workers import database, execution, runs
from workers.errors import HeadraceError, NothingToDo, PermanentFailure
from workers.messages import Message, RepackStep
from workers.repack import choosing, copying, requests, store, verifying, work
from workers.repack.requests import Wish
from workers.repack_settings import Limits, Plan, Repack
from workers.settings import Settings
from workers.sql_files import queries

Ask = Callable[..., list[tuple[Any, ...]]]

ROWS = 2_400
FEW = 500  # rows of a first chunk, and of a first range of the comparison
TABLE = f"""
    CREATE SCHEMA app;
    CREATE TABLE app.t (id integer PRIMARY KEY, v integer NOT NULL CHECK (v >= 0), word text)
      WITH (autovacuum_enabled = false);
    CREATE INDEX by_v ON app.t (v);
    CREATE INDEX by_word ON app.t (word);
    INSERT INTO app.t SELECT n, n, 'word ' || n % 97 FROM generate_series(1, {ROWS}) n;
    UPDATE app.t SET v = v + 1 WHERE id % 2 = 0;
"""
# Messages as short as can be, and nobody waits long for anything.
SHORT: dict[str, Any] = {
    "slice_seconds": 0.001, "chunk_seconds": 0.05, "lock_timeout_seconds": 0.1, "lock_pause_seconds": 0.2,
    "rehearse": False, "swap_below_rows": 10,
}  # fmt: skip
IMPATIENT = Repack(requeue_seconds=0.001)
WAITERS = "SELECT count(*) FROM pg_locks WHERE relation = %s::regclass AND NOT granted"
BUILDING = "FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE 'CREATE INDEX%'"
LEFT = """
    SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname ~ '^headrace_'
    UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE tgname ~ 'headrace'
    UNION ALL SELECT 'function ' || proname FROM pg_proc WHERE proname ~ 'headrace'
"""


@dataclass
class Walk:
    """One request of app.t, taken through its steps one message at a time."""

    conf: Settings
    sql: Ask
    limits: dict[str, Any] = field(default_factory=dict)
    goal: str = "swap"
    plan: str | None = None
    id: int = 0

    def begin(self) -> None:
        """Ask for the rewrite."""
        execution.load_rooms()
        limits = Limits(**{**SHORT, **self.limits})
        wish = Wish(goal=self.goal, limits=limits, plan=self.plan)  # type: ignore[arg-type]
        self.id = requests.request(self.conf, "control", "app", "t", wish)

    @property
    def message(self) -> RepackStep:
        """What takes it further."""
        return requests.message("control", self.id, "app", "t")

    def row(self, *columns: str) -> tuple[Any, ...]:
        """Columns of the request."""
        return self.sql(f"SELECT {', '.join(columns)} FROM headrace.repack WHERE id = %s", self.id)[0]

    def hurry(self) -> None:
        """What it waits for is over."""
        self.sql("UPDATE headrace.repack SET due_at = clock_timestamp() WHERE id = %s", self.id)

    def step(self) -> list[Message]:
        """One message; the first index that it sends a message for is built here, those of the others are lost."""
        self.hurry()
        found = execution.execute(self.message, self.conf)
        for message in [one for one in found if not isinstance(one, RepackStep)][:1]:
            execution.execute(message, self.conf)
        return found

    def to(self, step: str, condition: str = "true") -> None:
        """Go on until it is in this step, and in the middle of it."""
        for _ in range(200):
            if self.row("step", condition) == (step, True):
                return
            assert self.row("state") == ("active",)
            self.step()
        raise AssertionError(f"never in {step}: {self.row('step', 'state', 'problem')}")

    def finish(self, seconds: float = 30) -> list[str]:
        """Do it to its end; the problems that remain."""
        self.hurry()
        return requests.finish(self.conf, [self.message], timeout=timedelta(seconds=seconds))

    def store(self, act: Callable[..., object], *arguments: object) -> object:
        """What a person's command does to the request."""
        with database.connection(self.conf.target(), purpose="tests", autocommit=True) as conn:
            return act(conn, self.id, *arguments)

    def abort(self) -> None:
        """A person wants it gone."""
        assert self.store(store.abandon, None, None)

    def contents(self) -> list[tuple[Any, ...]]:
        """What is in the table, in one value."""
        return self.sql("SELECT count(*), sum(hashtextextended(t::text, 0)::numeric) FROM app.t t")

    @contextmanager
    def at_work(self, message: RepackStep | None = None) -> Iterator[threading.Thread]:
        """Somebody works on the request in a thread of this process, until nothing is left to do."""

        def work() -> None:
            try:
                requests.finish(self.conf, [message or self.message], timeout=timedelta(seconds=20))
            finally:
                database.close_all()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield thread
        finally:
            thread.join(40)
            assert not thread.is_alive()

    @contextmanager
    def standing(self, message: RepackStep | None = None) -> Iterator[None]:
        """Somebody copies, and stands still in the middle of a chunk while the block runs; then the work goes on."""
        copy = f"headrace_new_{self.id}.t"
        with psycopg2.connect(self.conf.target().dsn) as holder, holder.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {copy} IN SHARE MODE")
            with self.at_work(message):
                try:
                    until(lambda: self.sql(WAITERS, copy) == [(1,)], "a chunk is being copied")
                    yield
                    time.sleep(work.LOOK_SECONDS)  # so long a worker need not look what people want
                finally:
                    holder.rollback()

    def until(self, columns: str, value: tuple[Any, ...], seconds: float = 20) -> float:
        """Wait until columns of the request have this value; after how many seconds."""
        began = time.monotonic()
        while self.row(columns) != value:
            assert time.monotonic() < began + seconds, (columns, value, self.row("step", "state", "problem"))
            time.sleep(0.02)
        return time.monotonic() - began


@pytest.fixture
def walk(conf: Settings, sql: Ask, monkeypatch: pytest.MonkeyPatch) -> Walk:
    """A table of several chunks and ranges, and a request that is not asked for yet."""
    monkeypatch.setattr(copying, "FIRST_CHUNK_ROWS", FEW)
    monkeypatch.setattr(verifying, "FIRST_RANGE_ROWS", FEW)
    sql(TABLE)
    return Walk(conf.model_copy(update={"repack": IMPATIENT}), sql)


# Where a request may be: limits, its goal, the step, and what makes it the middle of that step
PLACES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "requested": ({}, "swap", "prepare", "true"),
    "in mid-copy": ({}, "swap", "copy", "rows_copied > 0"),
    "half its indexes built": (
        {}, "swap", "index", "(SELECT count(built_at) BETWEEN 1 AND 2 FROM headrace.repack_index)",
    ),
    "ready": ({}, "ready", "replay", "backlog_rows = 0"),
    "about to swap": ({}, "swap", "swap", "true"),
    "half compared": ({}, "swap", "verify", "rows_verified > 0"),
    "kept": ({"keep_old_hours": 1}, "swap", "drop", "true"),
}  # fmt: skip


def come_to(walk: Walk, place: str) -> None:
    """Take a request to a place; a few rows are changed before it goes there, and there."""
    walk.limits, walk.goal, step, condition = PLACES[place]
    walk.begin()
    walk.to(step, condition)
    walk.sql("UPDATE app.t SET v = v + 1 WHERE id % 1000 = 7")
    walk.sql("DELETE FROM app.t WHERE id % 1000 = 8")


@pytest.mark.parametrize("place", PLACES)
def test_a_request_given_up_anywhere_leaves_nothing_behind(walk: Walk, dsn: str, place: str) -> None:
    """`abort` in every state: no schema, trigger or function is left, the table is as it was with all its rows."""
    before = dumps.schema(dsn)
    come_to(walk, place)
    contents = walk.contents()
    walk.abort()
    assert walk.finish() == []
    assert walk.row("state", "reason") == ("aborted", None)
    assert walk.sql(LEFT) == []
    assert walk.contents() == contents
    assert dumps.schema(dsn) == before


def test_a_request_that_was_given_up_cannot_be_given_up_again(walk: Walk) -> None:
    """A request whose log was broken takes everything away by itself; `abort` finds that it is over."""
    walk.begin()
    walk.to("copy")
    walk.sql("ALTER TABLE app.t DISABLE TRIGGER ALL; ALTER TABLE app.t ENABLE TRIGGER ALL")
    assert "cannot be trusted" in walk.finish()[0]
    assert walk.row("state", "reason") == ("failed", "log_broken")
    assert walk.sql(LEFT) == []
    assert not walk.store(store.abandon, None, None)
    with pytest.raises(NothingToDo, match="is over"):
        execution.execute(walk.message, walk.conf)
    assert walk.row("state", "reason") == ("failed", "log_broken")


@pytest.mark.parametrize("step", ["copy", "replay", "verify"])
def test_a_worker_in_the_middle_lets_go_within_seconds(walk: Walk, step: str) -> None:
    """`abort` while a worker copies, replays or compares: everything is gone within five seconds."""
    walk.limits = {"slice_seconds": 60}
    walk.begin()
    walk.to(step)
    walk.sql("UPDATE app.t SET word = 'changed'")
    contents = walk.contents()
    slow = {"copy": "app.t", "replay": "headrace_log_{}.log", "verify": "headrace_old_{}.t"}[step].format(walk.id)
    with psycopg2.connect(walk.conf.target().dsn) as holder, holder.cursor() as cursor:
        # It stands still in mid-statement when the person asks, and may not go on at once.
        cursor.execute(f"LOCK TABLE {slow} IN ACCESS EXCLUSIVE MODE")
        with walk.at_work():
            until(lambda: walk.sql(WAITERS, slow) == [(1,)], "it works")
            walk.abort()
            holder.rollback()
            assert walk.until("state", ("aborted",)) < 5
    assert walk.sql(LEFT) == []
    assert walk.contents() == contents


def until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def test_an_index_that_is_being_built_does_not_delay_a_person(walk: Walk) -> None:
    """`abort`, which cancels what is being done, in the middle of a long CREATE INDEX: gone within five seconds."""
    walk.sql("""
        CREATE FUNCTION app.slow(integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql AS
        'BEGIN IF current_query() LIKE ''%headrace_new%'' THEN PERFORM pg_sleep(0.004); END IF; RETURN $1; END';
        CREATE INDEX slowly ON app.t (app.slow(v));
    """)
    walk.begin()
    walk.to("index")
    with walk.at_work():
        until(lambda: walk.sql(f"SELECT count(*) {BUILDING}") == [(1,)], "the slow index is being built")
        walk.abort()
        walk.sql(f"SELECT pg_cancel_backend(pid) {BUILDING}")
        assert walk.until("state", ("aborted",), 40) < 5
    assert walk.sql(LEFT) == []


# Paused, cancelled


def test_a_paused_request_stands_still_and_goes_on_where_it_was(walk: Walk) -> None:
    """`pause` in mid-copy: the worker lets go, messages come to nothing, changes are logged; `resume` does the rest."""
    walk.limits = {"slice_seconds": 60}
    walk.begin()
    walk.to("copy")
    with walk.standing():
        assert walk.store(store.pause, "somebody")
    paused = walk.row("step", "state", "rows_copied", "position")
    assert paused[:2] == ("copy", "active") and paused[2] < ROWS
    with pytest.raises(NothingToDo, match="paused by somebody"):
        execution.execute(walk.message, walk.conf)
    assert requests.due(walk.conf, "control", resend=True) == []
    walk.sql("UPDATE app.t SET v = v + 1 WHERE id <= 100")
    contents = walk.contents()
    assert walk.row("step", "state", "rows_copied", "position") == paused
    assert walk.store(store.resume)
    assert walk.finish() == []
    assert walk.row("state", "rows_copied") == ("done", ROWS)
    assert walk.contents() == contents


@pytest.mark.parametrize("place", ["requested", "in mid-copy", "half its indexes built", "ready", "half compared"])
def test_a_request_paused_anywhere_is_done_after_it_is_resumed(walk: Walk, place: str) -> None:
    """`pause` and `resume` between any two messages change nothing; a paused request can be given up, too."""
    come_to(walk, place)
    contents = walk.contents()
    assert walk.store(store.pause, "somebody")
    assert not walk.store(store.pause, "somebody else")
    assert walk.finish() == ["app.t is paused by somebody"]
    assert walk.store(store.resume)
    walk.store(store.want_swap)
    assert walk.finish() == []
    assert walk.row("state", "paused_by") == ("done", None)
    assert walk.contents() == contents


def asked(walk: Walk) -> RepackStep:
    """A message with a run that people follow, as the command line sends it."""
    with database.connection(walk.conf.target(), purpose="tests") as conn:
        [message] = runs.request(conn, [walk.message], by="somebody")
        conn.commit()
    assert isinstance(message, RepackStep)
    requests.follow(walk.conf, "control", walk.id, message.run)
    return message


def cancel(walk: Walk, run: int | None) -> None:
    """What `headrace cancel` does."""
    foundation = queries("foundation")
    with database.connection(walk.conf.target(), purpose="tests", autocommit=True) as conn:
        row = foundation["request_cancel"].row(conn, {"id": run, "by": "somebody"})
        assert row is not None
        if row[0] == "running":
            foundation["cancel_backend"].run(conn, {"pid": row[2], "start": row[3]})


def test_a_cancelled_run_stops_its_request_within_seconds(walk: Walk) -> None:
    """`headrace cancel` of a run in mid-copy: it stops within five seconds and stays so, until somebody resumes it."""
    walk.limits = {"slice_seconds": 60}
    walk.begin()
    walk.to("copy")
    message = asked(walk)
    with walk.standing(message):
        cancel(walk, message.run)
        walk.until("paused_by IS NOT NULL", (True,), 5)
    assert walk.row("step", "state") == ("copy", "active")
    assert walk.sql("SELECT state FROM headrace.run WHERE id = %s", message.run) == [("cancelled",)]
    assert requests.due(walk.conf, "control", resend=True) == []
    assert walk.store(store.resume)
    assert walk.finish() == []
    assert walk.row("state", "rows_copied") == ("done", ROWS)


def test_a_run_cancelled_between_two_messages_stops_its_request(walk: Walk) -> None:
    """`headrace cancel` of a run whose next message is on its way: that message stops the request."""
    walk.begin()
    message = asked(walk)
    [follow_up] = execution.execute(message, walk.conf)
    assert walk.row("step") == ("copy",)
    cancel(walk, message.run)
    with pytest.raises(HeadraceError):
        execution.execute(follow_up, walk.conf)
    assert walk.row("state", "paused_by IS NOT NULL") == ("active", True)
    assert requests.due(walk.conf, "control", resend=True) == []


# Two of them, and none


def test_a_table_has_one_request_at_a_time(walk: Walk) -> None:
    """A second request for a table is refused with the first one's id, in every state; afterwards it is taken."""
    for place in ("requested", "in mid-copy", "half compared"):
        come_to(walk, place)
        first = walk.id
        with pytest.raises(PermanentFailure, match=rf"being rewritten already \(repack {first}\)"):
            walk.begin()
        assert walk.finish() == []
        assert walk.row("state") == ("done",)


def test_two_who_work_on_one_request_do_not_disturb_each_other(walk: Walk) -> None:
    """While one session has a request, messages of others come to nothing; each row is copied once."""
    walk.begin()
    walk.to("copy", "rows_copied > 0")
    copy = f"headrace_new_{walk.id}.t"
    with psycopg2.connect(walk.conf.target().dsn) as holder, holder.cursor() as cursor, walk.at_work(), walk.at_work():
        cursor.execute(f"LOCK TABLE {copy} IN SHARE MODE")
        until(lambda: walk.sql(WAITERS, copy) == [(1,)], "one of them copies")
        for _ in range(3):
            with pytest.raises(NothingToDo, match="is being worked on"):
                execution.execute(walk.message, walk.conf)
        assert requests.due(walk.conf, "control", resend=True) == []
        assert walk.sql(WAITERS, copy) == [(1,)]
        holder.rollback()
    assert walk.row("state", "rows_copied") == ("done", ROWS)


@pytest.mark.parametrize("place", PLACES)
def test_a_table_that_is_dropped_meanwhile_ends_its_request(walk: Walk, place: str) -> None:
    """DROP TABLE by its owner in any state: the request ends by itself, says so, and leaves nothing behind."""
    come_to(walk, place)
    walk.sql("DROP TABLE app.t")
    deadline = time.monotonic() + 8
    while walk.row("state") == ("active",):
        assert time.monotonic() < deadline, walk.row("step", "problem", "failures")
        walk.sql("UPDATE headrace.repack SET keep_until = clock_timestamp() WHERE keep_until IS NOT NULL")
        with suppress(HeadraceError, psycopg2.Error):
            walk.step()
    assert walk.row("problem IS NOT NULL OR state = 'done'") == (True,)
    assert walk.sql(LEFT) == []


# Time


def test_an_old_table_is_kept_until_its_time_is_over(walk: Walk) -> None:
    """keep_old_hours: the old table waits in headrace_old_<id> with its rows as they were, then it goes."""
    come_to(walk, "kept")
    walk.finish()
    assert walk.row("state", "step", "keep_until > now() + interval '59 minutes'") == ("active", "drop", True)
    assert walk.sql(f"SELECT count(*) FROM headrace_old_{walk.id}.t") == [(ROWS,)]
    walk.sql("UPDATE headrace.repack SET due_at = keep_until")
    assert requests.due(walk.conf, "control", resend=True) == []
    walk.sql("UPDATE headrace.repack SET keep_until = clock_timestamp()")
    assert walk.finish() == []
    assert walk.row("state") == ("done",)
    assert walk.sql(LEFT) == []


def test_sleep_ratio_gives_others_their_time(walk: Walk) -> None:
    """After each chunk so many of its durations are waited, however often the message comes meanwhile."""
    walk.limits = {"sleep_ratio": 100, "chunk_seconds": 0.1}
    walk.begin()
    walk.to("copy")
    [again] = execution.execute(walk.message, walk.conf)
    assert isinstance(again, RepackStep) and again.wait_seconds > 0.2
    copied, _due = walk.row("rows_copied", "due_at")
    assert 0 < copied < ROWS
    with pytest.raises(NothingToDo, match="not due before"):
        execution.execute(walk.message, walk.conf)
    assert walk.row("rows_copied") == (copied,)
    assert walk.row("problem") == ("a pause of 100 chunk durations",)


def windows(*, is_open: bool) -> str:
    """A window with now in the middle of it, or on the other side of the day."""
    now = datetime.now(UTC) + timedelta(hours=0 if is_open else 12)
    return f"{now - timedelta(hours=2):%H:%M}-{now + timedelta(hours=2):%H:%M}"


def planned(walk: Walk, *, is_open: bool) -> Settings:
    """The settings with a plan whose window is open, or not."""
    plan = Plan(windows=windows(is_open=is_open))
    return walk.conf.model_copy(update={"repack": Repack(plans={"nightly": plan}, requeue_seconds=0.001)})


def test_nothing_is_done_outside_of_a_plans_window(walk: Walk) -> None:
    """A window that closes between two messages: no progress outside; inside it goes on where it was."""
    opened, closed = planned(walk, is_open=True), planned(walk, is_open=False)
    walk.conf, walk.plan = opened, "nightly"
    walk.begin()
    walk.to("copy", "rows_copied > 0")
    walk.conf = closed
    before = walk.row("step", "rows_copied", "position")
    assert walk.step() == []
    assert walk.row("step", "rows_copied", "position") == before
    waits, problem = walk.row("due_at - clock_timestamp()", "problem")
    assert timedelta(minutes=4) < waits <= timedelta(minutes=5)  # somebody may have given the plan other windows
    assert problem.startswith("outside its windows until ")
    assert requests.due(closed, "control", resend=True) == []
    assert choosing.due(closed, "control") == []
    walk.conf = opened
    assert walk.finish() == []
    assert walk.row("state", "rows_copied") == ("done", ROWS)


def test_a_window_that_closes_in_mid_copy_stops_the_worker(walk: Walk) -> None:
    """A worker that copies when the window closes stops between two chunks; a person can still give it up."""
    opened, closed = planned(walk, is_open=True), planned(walk, is_open=False)
    walk.conf, walk.plan = opened, "nightly"
    walk.limits = {"slice_seconds": 60}
    walk.begin()
    walk.to("copy")
    with walk.standing():
        opened.repack.plans["nightly"] = closed.repack.plans["nightly"]  # the clock's part
        walk.conf = closed
    assert walk.row("step", "problem LIKE 'outside its windows%%'") == ("copy", True)
    walk.abort()
    assert walk.row(f"rows_copied < {ROWS}") == (True,)
    assert walk.finish() == []
    assert walk.row("state") == ("aborted",)
    assert walk.sql(LEFT) == []

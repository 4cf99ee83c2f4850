"""Loading the events of a batch in the target's open transaction: by COPY, and past those that cannot be applied.

Every chunk of a destination's events goes in under a savepoint. What the server refuses is halved until the event is
found; it goes to `failed_event` with the reason, and the others go on. Locks, lost servers and full disks are no
event's fault: they end the attempt, and nothing of it stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workers import database
from workers.database import Connection, DatabaseError
from workers.dispatch import catalog, source_store, store, urlencoded
from workers.dispatch.context import Context
from workers.dispatch.destinations import Destination, Refused, Route
from workers.dispatch.events import UnknownEvent, kind_of
from workers.dispatch.names import Table
from workers.dispatch.plans import Emptied, Failure, Key, Newest, Plan, Record, Step, key_text
from workers.errors import PermanentFailure

# Errors that no event is to blame for: connections, transactions, rights (a missing one must not empty a queue into
# failed_event), resources, locks, people who cancel, the server itself. All others are: data, constraints, names and
# types, limits, and whatever SQLSTATE a trigger at the destination raises of its own.
_NOT_BLAMED = (
    "08", "0B", "25", "26", "28", "2D", "3B", "3D", "40", "42501", "53", "55", "57", "58", "F0", "XX001", "XX002",
)  # fmt: skip
ERROR_CHARACTERS = 2000
_DUPLICATE, _GONE = ("23505", "23P01"), ("42P01", "42703")
_CHECK, _NO_PARENT = "23514", "23503"


class TooManyFailures(PermanentFailure):
    """More events of one batch failed than the settings allow: nothing of it is applied."""


class Loader:
    """Applies events of one batch, or failed ones again. One per transaction; the caller commits."""

    def __init__(self, conn: Connection, context: Context) -> None:
        self.conn, self.context = conn, context
        self.failures: dict[int, Failure] = {}
        self.events = 0
        self.ignored = 0
        self.replayed: int | None = None  # the failed event that is applied again: it supersedes only older ones
        self._routes: dict[tuple[str, str], Route | Failure | None] = {}
        self._destinations: dict[Table, Destination] = {}
        self._plain = False
        self._childless: dict[int, tuple[Route, Record]] = {}
        self._waiting = store.waiting_keys(conn, context.name)

    def load(self, lines: Sequence[str]) -> None:
        """Apply lines of `source_store.Pgq.read`. Raises TooManyFailures, RetryLater's errors of psycopg2."""
        text = "".join(lines)
        if "\\" in text:
            self.load_records([source_store.fields(line) for line in lines])
        else:
            self.load_records([line.split("\t") for line in text[:-1].split("\n")], plain=True)

    def load_records(self, records: Sequence[Record], *, plain: bool = False) -> None:
        """Apply events in the order of their numbers; `plain`: none has a backslash, tab or line end unencoded."""
        self._plain = plain
        routes = self._routes
        groups: dict[Destination, list[tuple[Route, Record]]] = {}
        self.events += len(records)
        for record in records:
            # An event of the oldest form names its key apart, so that its route cannot be remembered.
            try:
                route = routes[record[1], record[3]]
            except KeyError:
                route = self._route(record)
            if type(route) is Route:
                group = groups.get(route.destination)
                if group is None:
                    groups[route.destination] = [(route, record)]
                else:
                    group.append((route, record))
            elif route is None:
                self.ignored += 1
            else:
                assert isinstance(route, Failure)
                self._fail(int(record[0]), route)
        for destination, items in groups.items():
            self._apply(destination, items)

    def try_references_again(self) -> None:
        """Apply events whose foreign key found nothing: their parents came later, in another table's chunk."""
        left: int | None = None
        while True:
            again = {event: item for event, item in self._childless.items() if self.failures[event].state == "waiting"}
            if not again or (left is not None and len(again) >= left):
                return
            left, self._childless = len(again), {}
            for event, (route, record) in sorted(again.items()):
                del self.failures[event]
                self._apply(route.destination, [(route, record)])

    def rows_failed(self, whole: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The rows of failed_event for what failed here, out of the whole events."""
        rows = []
        codec = urlencoded.codec(self.conn.info.parameter_status("server_encoding") or "UTF8")
        for event in whole:
            failure = self.failures[event["ev_id"]]
            facts = {name: getattr(failure, name) for name in ("destination", "key", "sqlstate", "error", "state")}
            facts |= {"consumer": self.context.name, "tick": self.context.tick, "batch_end": self.context.end}
            rows.append({name: _storable(value, codec) for name, value in {**event, **facts}.items()})
        return rows

    def _route(self, record: Record) -> Route | Failure | None:
        """What becomes of events of this type and table; None where they are left out."""
        _id, type_, data, extra1, extra2 = record[:5]
        route: Route | Failure | None
        try:
            kind = kind_of(type_, extra1, extra2 or None, data)
            source, rules = self.context.tables.rules(kind.table)
            if rules is None:
                route = None
            else:
                destination = self._destinations.get(rules.destination)
                if destination is None:
                    destination = Destination(self.conn, self.context, rules.destination)
                    self._destinations[rules.destination] = destination
                route = Route(destination, kind, source, rules, self.context)
        except UnknownEvent as error:
            named = f"unknown event: {error}"
            route = None if self.context.consumer.on_unknown == "ignore" else Failure(named)
        except Refused as error:
            route = Failure(str(error))
        if type_ == "R" or ":" in type_ or type_[:1] == "{":
            self._routes[type_, extra1] = route
        return route

    def _apply(self, destination: Destination, items: Sequence[tuple[Route, Record]], *, careful: bool = False) -> None:
        plan = destination.plan(items, plain=self._plain)
        if plan.steps:
            catalog.savepoint(self.conn)
            try:
                for step in plan.steps:
                    self._run(step, careful=careful)
                catalog.check_now(self.conn)
                superseding = self._superseding(plan)
            except (DatabaseError, ValueError) as error:
                code = database.sqlstate(error)
                if self.conn.closed or not _is_blamed(error, code):
                    raise
                catalog.roll_back(self.conn)
                self._apply_in_parts(destination, items, error, code, careful=careful)
                return
            catalog.release(self.conn)
            self._supersede(superseding, below=int(items[-1][1][0]))
            for step in plan.steps:
                for emptied in step.emptied:
                    self._forget_emptied(emptied, plan)
        self.ignored += plan.ignored
        newer = self._newer(destination, items, plan)
        for event, failure in plan.failures.items():
            if event < newer.get((failure.destination, failure.key), 0):
                failure.state = "superseded"  # a later event of this very plan was applied
            self._fail(event, failure)

    def _apply_in_parts(
        self,
        destination: Destination,
        items: Sequence[tuple[Route, Record]],
        error: Exception,
        code: str | None,
        *,
        careful: bool,
    ) -> None:
        is_moved = code == _CHECK and "partition constraint" in str(error)
        if not careful and (is_moved or code in _GONE):
            # Rows of the default partition have just moved to one of their own; or somebody has changed the table.
            destination.forget_places(route for route, _record in items)
            self._apply(destination, items, careful=True)
        elif code in _DUPLICATE and not careful:
            # A row that must be new is there: from before the queue began, or from after an ignored TRUNCATE.
            self._apply(destination, items, careful=True)
        elif len(items) > 1:
            middle = len(items) // 2
            self._apply(destination, items[:middle], careful=careful)
            self._apply(destination, items[middle:], careful=careful)
        else:
            (route, record) = items[0]
            where, key = destination.identity(route, record)
            described = database.describe_error(error)
            text = ": ".join(part for part in (described["message"], described.get("detail")) if part)
            if code == _NO_PARENT:
                self._childless[int(record[0])] = (route, record)
            self._fail(int(record[0]), Failure(text, code, where, key))

    def _run(self, step: Step, *, careful: bool) -> None:
        for emptied in step.emptied:
            for one in self._reach(emptied.table, emptied.parent, everywhere=emptied.everywhere):
                catalog.delete_all_rows(self.conn, one)
        for newest in step.newest.values():
            stale = newest.rows if careful else newest.stale
            everywhere = newest.everywhere
            here = [key for key in stale if key not in everywhere]
            self._delete(newest, [newest.place.table], here)
            if everywhere:
                tables = self._reach(newest.place.table, newest.place.parent, everywhere=True)
                self._delete(newest, tables, list(everywhere))
        for newest in step.newest.values():
            lines: dict[Any, list[str]] = {}
            for row in newest.rows.values():
                if row is not None:
                    lines.setdefault(row[0], []).append(row[1])
            for shape, texts in lines.items():
                catalog.copy_in(self.conn, shape.place.table, shape.columns, texts)
        for shape, texts in step.added.items():
            catalog.copy_in(self.conn, shape.place.table, shape.columns, texts)

    def _delete(self, newest: Newest, tables: Sequence[Table], keys: Sequence[Key]) -> None:
        if keys:
            rows = [key if isinstance(key, tuple) else (key,) for key in keys]
            for table in tables:
                catalog.delete_keys(self.conn, table, newest.shape.key_columns, rows)

    def _reach(self, table: Table, parent: Table, *, everywhere: bool) -> list[Table]:
        """The relations that a change of one place, or of all partitions, goes to."""
        if not everywhere or catalog.range_key(self.conn, parent) is not None:
            return [parent if everywhere else table]
        return list(dict.fromkeys([table, *catalog.like_partitions(self.conn, parent)]))

    def _everywhere(self, table: Table, parent: Table) -> set[str]:
        """The names that failed events of a destination's rows may go by."""
        tables = {table, parent, *self._reach(table, parent, everywhere=True)}
        return {str(one) for one in tables | set(catalog.partitions_below(self.conn, parent))}

    def _newer(
        self, destination: Destination, items: Sequence[tuple[Route, Record]], plan: Plan
    ) -> dict[tuple[str | None, str | None], int]:
        """Of the rows with failed events in this plan: the number of the last event that was applied."""
        rows = {(str(one.place.identity), key_text(key)) for step in plan.steps for one in step.newest.values()
                for key in one.rows} if plan.failures else set()  # fmt: skip
        for step in plan.steps if plan.failures else ():
            for one in step.newest.values():
                if one.everywhere:
                    reached = self._everywhere(one.place.table, one.place.parent)
                    rows |= {(name, key_text(key)) for name in reached for key in one.everywhere}
        if not any((failure.destination, failure.key) in rows for failure in plan.failures.values()):
            return {}
        applied = [
            (route, record) for route, record in items
            if int(record[0]) not in plan.failures and route.policy != "ignore"
        ]  # fmt: skip
        found = {}
        for route, record in applied:
            where, key = destination.identity(route, record)
            found[where, key] = int(record[0])
            if route.policy == "delete_all" and route.op == "D":
                found |= {(name, key): int(record[0]) for name in {one for one, _key in rows}}
        return found

    def _superseding(self, plan: Plan) -> list[tuple[str, str]]:
        """The failed events' rows of which this plan has a newer version."""
        if not self._waiting:
            return []
        found = []
        for step in plan.steps:
            for newest in step.newest.values():
                where = str(newest.place.identity)
                if newest.everywhere and str(newest.place.parent) != where:
                    reached = self._everywhere(newest.place.table, newest.place.parent)
                    gone = {key_text(row) for row in newest.everywhere}
                    found += [(one, key) for one in reached for key in gone & self._waiting.get(one, set())]
                waiting = self._waiting.get(where)
                if not waiting:
                    continue
                found += [(where, key) for row in newest.rows if (key := key_text(row)) in waiting]
        return found

    def _forget_emptied(self, emptied: Emptied, plan: Plan) -> None:
        """A TRUNCATE supersedes every failed event of its tables that is older."""
        tables = {emptied.table}
        if emptied.everywhere:
            tables |= {emptied.parent, *self._reach(emptied.table, emptied.parent, everywhere=True)}
            tables |= set(catalog.partitions_below(self.conn, emptied.parent))
        names = [str(table) for table in tables]
        store.supersede_all(self.conn, self.context.name, names, below=self.replayed)
        for event, failure in (*self.failures.items(), *plan.failures.items()):
            if event < emptied.event and failure.destination in names:
                failure.state = "superseded"

    def _supersede(self, rows: Sequence[tuple[str, str]], *, below: int) -> None:
        for destination, key in rows:
            store.supersede(self.conn, self.context.name, destination, [key], below=self.replayed)
            for event, failure in self.failures.items():
                if event < below and (failure.destination, failure.key) == (destination, key):
                    failure.state = "superseded"

    def _fail(self, event: int, failure: Failure) -> None:
        if len(failure.error) > ERROR_CHARACTERS:  # it quotes a value of a megabyte
            failure.error = failure.error[: ERROR_CHARACTERS - 1] + "…"
        self.failures[event] = failure
        if failure.destination is not None and failure.key is not None and failure.state == "waiting":
            self._waiting.setdefault(failure.destination, set()).add(failure.key)
        if self.replayed is None and len(self.failures) > self.context.consumer.max_failed:
            raise TooManyFailures(
                f"{self.context.name}: more than {self.context.consumer.max_failed} events of the batch that ends with"
                f" tick {self.context.tick}, or of a slice of it, cannot be applied, the last one because:"
                f" {failure.error}; nothing of it is applied. Mend the cause and `headrace dispatch resume"
                f" {self.context.name}`, or raise max_failed"
            )


def _storable(value: Any, codec: str) -> Any:
    """A text as the target can hold it: without NUL, and with \\xNN for what its encoding lacks."""
    if not isinstance(value, str):
        return value
    return value.replace("\0", "\\0").encode(codec, "backslashreplace").decode(codec)


def _is_blamed(error: Exception, code: str | None) -> bool:
    if not isinstance(error, DatabaseError):
        return True  # psycopg2 refuses texts with NUL or lone surrogates by ValueError
    if code == "0A000" and "row-level security" in str(error):
        return False  # a policy keeps COPY out altogether
    return code is not None and not code.startswith(_NOT_BLAMED)
